"""Runs one stage: locks its folder, runs it, seals it. Also the program of every process of a
distributed stage: `accelerate launch launch/stage.py CONFIG --stage NAME`."""

import argparse
import logging
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts launch/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.begun import record_beginning, refuse_in_requeue
from launch.supervision import (
    accounted,
    end_with_parent,
    ended_when_taken_over,
    leave,
    postponed,
    stopped_by_signals,
    touching,
)
from launch.terminal import add_part_arguments, exit_code_of, progress_line, set_up_logging
from pipeline.artifacts import JSON, Artifact, look_again, open_artifact, seal, set_aside
from pipeline.config import RunConfig, Runtime
from pipeline.config_file import ConfigError, load_config
from pipeline.data.worker_processes import THREAD_VARIABLES
from pipeline.graph import Graph, Job, Progress, Resolved, Stage, StageError, resolve_stage
from pipeline.locks import writing
from stages.recipe import build_graph

logger = logging.getLogger(__name__)

SECONDS_UNTIL_SEEN, SECONDS_BETWEEN_LOOKS = 120.0, 2.0


def run_stage(
    resolved: Resolved,
    inputs: Mapping[str, Artifact],
    *,
    runtime: Runtime,
    progress: Progress,
    part: tuple[int, int] = (0, 1),
) -> Artifact | None:
    """Run a stage that isn't done and seal it; None where parts of an array are still missing.

    `part` is i of n of an array stage; any other stage is made by the first part that comes, and
    the others wait for it. In a distributed stage every rank calls this; only rank 0 locks, writes
    and seals.
    """
    stage, folder = resolved.stage, resolved.folder
    assert folder is not None
    assert resolved.fingerprint is not None
    is_writer = int(os.environ.get("RANK", "0")) == 0
    if stage.launch == "distributed":
        refuse_in_requeue(resolved, inputs)
    with ExitStack() as stack:
        if is_writer:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder, part, whole=stage.launch != "array"))
            finished = open_artifact(folder)  # by another run, while this one waited
            if finished is not None:
                return finished
            stack.enter_context(_log_file(folder, part))
            if stage.launch == "distributed":
                record_beginning(resolved, inputs)
            if "SLURM_JOB_ID" in os.environ:
                stack.enter_context(ended_when_taken_over(folder))
            logger.info("%s begins in %s", stage.name, folder)
        began = time.monotonic()
        job = Job(
            config=stage.config,
            fingerprint=resolved.fingerprint,
            folder=folder,
            inputs=inputs,
            runtime=runtime,
            progress=progress,
            part=part,
        )
        try:
            summary = stage.run(job)
        except OSError as error:
            error.filename = error.filename or str(folder)  # a failing write doesn't say where
            raise
        seconds = time.monotonic() - began
        if summary is None or not is_writer:
            return None
        artifact = _sealed(resolved, job, summary, seconds=seconds)
        logger.info("%s done in %.1f s", stage.name, seconds)
        return artifact


def _sealed(resolved: Resolved, job: Job, summary: dict[str, JSON], *, seconds: float) -> Artifact:
    """Seal what a stage has made; two parts of an array may have found it whole at once."""
    stage = resolved.stage
    with writing(job.folder, name=".lock-seal", patience=math.inf):
        return open_artifact(job.folder) or seal(
            job.folder,
            stage=stage.name,
            version=stage.version,
            fingerprint=job.fingerprint,
            config=stage.config.model_dump(mode="json"),
            inputs={role: artifact.identity for role, artifact in job.inputs.items()},
            summary=summary,
            seconds=seconds,
            known=job.digests,
            progress=lambda done, total: job.progress(done, total, "files sealed"),
        )


def make_room(folder: Path) -> None:
    """Set a sealed folder aside so that its stage can be made again in its place."""
    if open_artifact(folder) is not None:
        with writing(folder):
            set_aside(folder)


@contextmanager
def _locked(folder: Path, part: tuple[int, int], *, whole: bool) -> Iterator[None]:
    """The whole folder for a whole stage; for a part of an array, that part of it."""
    number, parts = part
    # Of a job that was cancelled something may still be ending on another node.
    patience = 120.0 if "SLURM_JOB_ID" in os.environ else 1.0
    if whole or parts == 1:
        with writing(folder, patience=patience if parts == 1 else math.inf):
            yield
    else:
        with writing(folder, shared=True), writing(folder, name=f".lock-{number}-of-{parts}"):
            yield


@contextmanager
def _log_file(folder: Path, part: tuple[int, int]) -> Iterator[None]:
    """Also write what is logged into the stage's own log, one plain line each."""
    (folder / "logs").mkdir(exist_ok=True)
    name = "log.txt" if part[1] == 1 else f"log-{part[0]}-of-{part[1]}.txt"
    handler = logging.FileHandler(folder / "logs" / name, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


def resolve_with_inputs(
    graph: Graph, stage: Stage, run_folder: Path
) -> tuple[Resolved, dict[str, Artifact]]:
    """A stage and its sealed inputs; StageError naming those that aren't done."""
    known: dict[str, Resolved] = {}
    for each in graph.stages:
        known[each.name] = resolve_stage(each, known, run_folder)
        if each.name == stage.name:
            break
    missing = [each.name for each in stage.inputs.values() if known[each.name].state != "done"]
    if missing:
        raise StageError(f"{stage.name}: its inputs are not done: {', '.join(missing)}")
    inputs = {}
    for role, parent in stage.inputs.items():
        artifact = known[parent.name].artifact
        assert artifact is not None
        inputs[role] = artifact
    return known[stage.name], inputs


def _once_inputs_are_seen(
    graph: Graph, stage: Stage, run_folder: Path, *, patience: float
) -> tuple[Resolved, dict[str, Artifact]]:
    """`resolve_with_inputs`, looking again for so many seconds: a network file system may show a
    node only after a minute what another one has made."""
    until = time.monotonic() + patience
    while True:
        try:
            return resolve_with_inputs(graph, stage, run_folder)
        except StageError as error:
            if time.monotonic() >= until:
                raise
            logger.warning("%s; looking again", error)
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for name in graph.upstream(stage.name):
            look_again(run_folder / name)


def set_threads(runtime: Runtime) -> None:
    """Before numpy and torch are imported: they read these once."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(runtime.threads_per_process)))


def config_arguments(path: Path, overrides: Sequence[str]) -> list[str]:
    """The part of a command line that says which run is meant."""
    return [str(path), *(part for each in overrides for part in ("--set", each))]


def run_command(config_arguments: Sequence[str], *options: str) -> str:
    """A command to suggest, quoted for a shell."""
    return shlex.join(["python", "-m", "launch", "run", *config_arguments, *options])


def run_one(arguments: Sequence[str], *, stage_name: str | None = None) -> int:
    """The program of `launch/stage.py` and `launch/pretrain.py`; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Run one stage of a run, in every process that a launcher started. "
        "Exit codes: 0 done, 1 failed, 2 config or usage, 75 stopped with a checkpoint."
    )
    parser.add_argument("config", type=Path)
    if stage_name is None:
        parser.add_argument("--stage", required=True, help="its name, as `plan` shows it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add_part_arguments(parser)
    parser.add_argument(
        "--outcome", type=Path, help="a file to add the exit code to: launchers don't pass it on"
    )
    parser.add_argument(
        "--account",
        metavar="PREFIX",
        help="of PREFIX.alive, touched whenever something moves on, and PREFIX.why, what failed",
    )
    parsed = parser.parse_args(arguments)
    set_up_logging()
    if "LOCAL_RANK" in os.environ:  # a launcher's process, which must not outlive it
        end_with_parent()
    with exit_code_of() as outcome, postponed(signal.SIGUSR2), accounted(parsed.account):
        config = load_config(parsed.config, tuple(parsed.overrides))
        arguments_of_config = config_arguments(parsed.config, parsed.overrides)
        part = checked_part(parsed.part, parsed.parts)
        name = stage_name or parsed.stage
        _run_named(config, arguments_of_config, name, part=part, account=parsed.account)
    if parsed.outcome is not None:
        with parsed.outcome.open("a") as file:
            file.write(f"{outcome.code}\n")
    return outcome.code


def checked_part(part: int, parts: int) -> tuple[int, int]:
    if not 0 <= part < parts:
        raise ConfigError(
            f"--part {part} --parts {parts}: parts are numbered from 0 to one less than --parts"
        )
    return part, parts


def _run_named(
    config: RunConfig,
    config_arguments: Sequence[str],
    stage_name: str,
    *,
    part: tuple[int, int],
    account: str | None,
) -> None:
    graph = build_graph(config)
    stage = graph.stage(stage_name)
    if part[1] > 1 and stage.launch != "array":
        raise ConfigError(f"--parts {part[1]}: {stage_name} is not shared out in parts")
    set_threads(config.runtime)
    try:
        run_folder = config.runtime.runs / config.name
        patience = SECONDS_UNTIL_SEEN if account is not None else 0.0
        resolved, inputs = _once_inputs_are_seen(graph, stage, run_folder, patience=patience)
    except StageError as error:
        if account is not None:  # its batch script was started because they are done
            raise
        raise ConfigError(
            f"{error}\nmake them with: {run_command(config_arguments, '--before', stage_name)}"
        ) from None
    if resolved.state == "done":
        logger.warning("%s is done: %s", stage_name, resolved.folder)
        return
    with ExitStack() as stack:
        progress = stack.enter_context(progress_line(stage.name))
        if account is not None:
            progress = touching(Path(f"{account}.alive"), progress)
        stack.enter_context(stopped_by_signals(stage.name))  # a training's own hold while it runs
        run_stage(resolved, inputs, runtime=config.runtime, progress=progress, part=part)


if __name__ == "__main__":
    leave(run_one(sys.argv[1:]))
