"""`ipt submit` and `ipt cancel`: the graph as jobs of SLURM, each waiting for what it reads."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from launch import slurm
from launch.arrays import arrays, dependency
from launch.cluster import Cluster
from launch.local import check_folders
from launch.sbatch import SLURM_FOLDER, Place, check_processes, job_name, render
from launch.sight import ended_lately, resolve_once_seen
from launch.stage import make_room
from launch.submitted import (
    LiveStage,
    Submission,
    comment,
    dependencies,
    live_stages,
    note_cancelled,
    parts_made,
    read_records,
    record,
    settled_stages,
)
from launch.terminal import CommandFailed
from pipeline.artifacts import canonical_digest, look_again, write_atomically
from pipeline.config import RunConfig
from pipeline.config_file import load_config, load_settings
from pipeline.graph import Graph, Resolved, Stage
from pipeline.locks import writing
from stages.recipe import build_graph

PATIENCE = 300.0  # seconds, for another submission of the same run


def submit(path: Path, overrides: tuple[str, ...], cluster_path: Path, *, dry_run: bool) -> int:
    """Hand in a job for every stage that is not done and that SLURM does not have already."""
    config = load_config(path, overrides)
    cluster = load_settings(cluster_path, Cluster)
    graph = build_graph(config)
    check_processes(config, cluster, graph.stages)
    run_folder = (config.runtime.runs / config.name).absolute()
    check_folders(graph, config, run_folder)
    content = _content(config)
    snapshot = run_folder / SLURM_FOLDER / f"config-{canonical_digest(_values(config))[:12]}.yaml"
    place = Place(config=config, snapshot=snapshot, cluster=cluster)
    slurm.warn_of_variables()
    if dry_run:
        _print_scripts(graph, place)
        return 0
    slurm.require()
    for name in ("logs", "jobs"):
        (place.folder / name).mkdir(parents=True, exist_ok=True)
    with writing(place.folder, patience=PATIENCE):
        origin = f"# {path}{''.join(f' --set {each}' for each in overrides)}\n"
        write_atomically(snapshot, origin + yaml.safe_dump(_values(config), sort_keys=False))
        submission = _Submitting(place=place, content=content)
        submission.hand_in(graph)
    _print_end(submission.handed_in, path, overrides)
    return 0


def cancel(path: Path, overrides: tuple[str, ...]) -> int:
    """Cancel what was submitted of this run, and nothing else."""
    config = load_config(path, overrides)
    run_folder = (config.runtime.runs / config.name).absolute()
    folder = run_folder / SLURM_FOLDER
    slurm.require()
    if not folder.is_dir():
        print(f"nothing of {config.name} was ever submitted")
        return 0
    with writing(folder, patience=PATIENCE):  # not in the middle of a submission
        live = live_stages(slurm.queued_jobs(), read_records(folder), run_folder)
        if live:
            _cancel(folder, [job for stage in live.values() for job in stage.waiting])
    for name, stage in live.items():
        _print_cancelled(name, stage)
    if not live:
        print(f"nothing of {config.name} is in the queue")
    return 0


def _cancel(folder: Path, jobs: Sequence[str]) -> None:
    note_cancelled(folder, jobs)
    slurm.cancel(jobs)


def _values(config: RunConfig) -> dict[str, object]:
    """What a config says beyond the defaults, as YAML would."""
    return {"name": config.name} | config.model_dump(mode="json", exclude_defaults=True)


def _content(config: RunConfig) -> str:
    """A digest of all that decides results."""
    values = config.model_dump(mode="json", exclude_defaults=True, exclude={"runtime"})
    return canonical_digest(values)[:12]


def _print_scripts(graph: Graph, place: Place) -> None:
    print(f"# would be written to {place.folder} and submitted so; what is in the queue already")
    print("# is not looked at")
    resolved = graph.resolve(place.run_folder)
    for stage in graph.stages:
        if resolved[stage.name].state == "done":
            continue
        waits_for = [
            each.name for each in stage.inputs.values() if resolved[each.name].state != "done"
        ]
        parts = place.cluster.resources(stage).parts or 1
        limits = slurm.DEFAULT_MAX_ARRAY_SIZE
        calls = arrays(stage, range(parts), place.cluster, most=limits)
        for array in calls:
            followed = [] if array.follows is None else [calls[array.follows]]
            before = [f"{stage.name}[{each.offset}…]" for each in followed]
            options = [*dependency(waits_for, before), *array.options]
            script = f"{stage.name}.sbatch"
            print(f"\n# sbatch {shlex.join([*options, script, *array.arguments])}")
        print(render(stage, place), end="")


@dataclass(kw_only=True)
class _Submitting:
    """One submission, stage after stage; the lock of the SLURM folder is held."""

    place: Place
    content: str
    handed_in: list[Submission] = field(default_factory=list)
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def hand_in(self, graph: Graph) -> None:
        place = self.place
        self.records = read_records(place.folder)
        live = settled_stages(self.records, place.run_folder)
        self._refuse_other_configs(graph, live)
        for kept in live.values():  # SLURM may have refused to cancel it
            note_cancelled(place.folder, kept.waiting, forget=True)
        # After the queue was read: what has ended meanwhile is sealed by now.
        look_again(place.folder)
        lately = ended_lately(
            [
                each
                for each in self.records
                if each.stage not in live and each.content == self.content
            ],
            place.folder,
            now=place.snapshot.stat().st_mtime,  # by the file server's clock
        )
        resolved = resolve_once_seen(graph, place.run_folder, lately)
        self.most = slurm.max_array_size()
        self._refuse_arrays_where_there_are_none(resolved)
        waits: dict[str, tuple[str, ...]] = {}  # for what the dependents of a stage wait
        for stage in graph.stages:
            each, mine = resolved[stage.name], live.get(stage.name)
            if each.state == "done":
                print(f"✓ {stage.name:<32} done")
                continue
            parents = [parent.name for parent in stage.inputs.values()]
            again = self._made_again(parents)
            if mine is not None and again:
                # It waits for what won't come, or runs on what is no longer there.
                _cancel(place.folder, list(mine.waiting))
                why = f": it reads what is made again, {', '.join(again)}"
                _print_cancelled(stage.name, mine, why)
                mine = None
            known = dependencies(mine, self.records, place.folder) if mine else ()
            if known:
                print(f"▸ {stage.name:<32} in the queue: job {', '.join(known)}")
            after = tuple(dict.fromkeys(job for name in parents for job in waits.get(name, ())))
            new = self._hand_in_stage(each, mine, after)
            waits[stage.name] = (*known, *(submission.job for submission in new))

    def _made_again(self, names: Sequence[str]) -> list[str]:
        handed_in = {submission.stage for submission in self.handed_in}
        return [name for name in names if name in handed_in]

    def _refuse_other_configs(self, graph: Graph, live: dict[str, LiveStage]) -> None:
        """Jobs of one run must all mean the same by it."""
        for name, stage in live.items():
            why = ""
            if stage.content != self.content:
                why = "another config"
            elif stage.parts != self._parts(graph.stage(name)):
                why = f"{stage.parts} parts"
            if why:
                raise CommandFailed(
                    f"{name} is in the queue with {why} (job {', '.join(stage.waiting)}): wait "
                    "for it, or give `ipt cancel`, then submit again"
                )

    def _refuse_arrays_where_there_are_none(self, resolved: Mapping[str, Resolved]) -> None:
        names = [
            each.stage.name
            for each in resolved.values()
            if each.stage.launch == "array" and each.state != "done"
        ]
        if names and not self.most:
            raise CommandFailed(
                "this cluster takes no job arrays (MaxArraySize = 0 in `scontrol show config`), "
                f"and these stages are arrays even with parts: 1: {', '.join(names)}. Make each "
                "of them with `ipt run CONFIG --until STAGE`, inside a job of one node, then "
                "submit the rest"
            )

    def _parts(self, stage: Stage) -> int:
        is_array = stage.launch == "array"
        return (self.place.cluster.resources(stage).parts or 1) if is_array else 1

    def _hand_in_stage(
        self, resolved: Resolved, mine: LiveStage | None, after: tuple[str, ...]
    ) -> list[Submission]:
        stage, place = resolved.stage, self.place
        parts = self._parts(stage)
        needed = set(range(parts))
        if mine:
            needed -= mine.parts_live | parts_made(stage.name, mine, self.records, place.folder)
        if not needed:
            return []
        if resolved.is_stale and mine is None:
            assert resolved.folder is not None
            make_room(resolved.folder)
        script = place.folder / f"{stage.name}.sbatch"
        write_atomically(script, render(stage, place))
        # What is in the queue already has its own share of what may run at once.
        has_limit = place.cluster.resources(stage).at_once is not None
        in_queue = tuple(mine.waiting) if mine and has_limit else ()
        new: list[Submission] = []
        for array in arrays(stage, needed, place.cluster, most=self.most):
            before = in_queue if array.follows is None else (new[array.follows].job,)
            submission = Submission(
                job="",
                stage=stage.name,
                name=job_name(place.config, stage),
                content=self.content,
                parts=parts,
                offset=array.offset,
                tasks=array.tasks,
                after=(*after, *before),
                time=self.time,
                since=max(mine.since, default=self.time) if mine else self.time,
            )
            said = f"--comment={comment(submission, place.run_folder)}"
            options = [said, *dependency(after, before), *array.options]
            job = slurm.submit(script, options=options, arguments=array.arguments)
            submission = Submission(**{**vars(submission), "job": job})
            record(place.folder, submission)
            new.append(submission)
            self.handed_in.append(submission)
            tasks = "" if array.tasks is None else f", {len(array.tasks)} of {parts} parts"
            waiting = f", after {', '.join(submission.after)}" if submission.after else ""
            print(f"▸ {stage.name:<32} job {job}{tasks}{waiting}", flush=True)
        return new


def _print_cancelled(name: str, stage: LiveStage, why: str = "") -> None:
    for job in stage.waiting:
        states = {each.state.lower() for each in stage.queued if each.job == job}
        print(f"✗ {name:<32} job {job} ({', '.join(sorted(states))}) cancelled{why}", flush=True)


def _print_end(handed_in: Sequence[Submission], path: Path, overrides: Sequence[str]) -> None:
    arguments = shlex.join([str(path), *(part for each in overrides for part in ("--set", each))])
    if handed_in:
        print(f"\n{len(handed_in)} jobs submitted; how far they are: ipt status {arguments}")
    else:
        print("\nnothing to submit: every stage is done or in the queue")
