"""`ipt status`: how far a run is, from its folders, and from SLURM where there is one."""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import slurm
from launch.sbatch import SLURM_FOLDER
from launch.submitted import LiveStage, Submission, live_stages, read_records
from launch.terminal import CommandFailed, print_table
from pipeline.config_file import load_config
from pipeline.durations import duration
from pipeline.graph import Resolved
from pipeline.locks import holder
from stages.recipe import build_graph

MARKS = {"done": "✓", "running": "▸", "failed": "✗", "cancelled": "✗"}
STEP = re.compile(r"\bstep (\d+)/(\d+)\b")
TAIL_BYTES = 4000
ENDED_BY_SLURM = "ended by SLURM"  # what a batch script says of it


@dataclass(frozen=True, kw_only=True)
class _Row:
    state: str
    job: str = ""
    why: str = ""


def status(path: Path, overrides: tuple[str, ...]) -> int:
    """Print how far each stage is, which job has it, why it waits or failed, where its log is."""
    config = load_config(path, overrides)
    run_folder = config.runtime.runs / config.name
    resolved = build_graph(config).resolve(run_folder)
    folder = (run_folder / SLURM_FOLDER).absolute()
    records = read_records(folder)
    live, accounted = _ask_slurm(records, run_folder.absolute())
    print(f"{config.name}: {path}, in {run_folder}\n")
    rows, logs = [], []
    for name, each in resolved.items():
        of_stage = [record for record in records if record.stage == name]
        row = _row(each, (live or {}).get(name), of_stage, folder, accounted)
        step, left = ("", "") if row.state == "done" else _progress(each)
        rows.append([MARKS.get(row.state, "·"), name, row.state, row.job, row.why, step, left])
        log = _log(each, of_stage, folder)
        if log is not None and row.state != "done":
            logs.append(f"  {name:<32} {log}")
    print_table(["", "stage", "state", "job", "", "last line", "left"], rows)
    if logs:
        print("\nlogs\n" + "\n".join(logs))
    if live is None and records:
        print("\nSLURM does not answer here: states of jobs are what the folders say")
    return 0


def _ask_slurm(
    records: Sequence[Submission], run_folder: Path
) -> tuple[dict[str, LiveStage] | None, dict[str, str]]:
    """What SLURM has of the run, and how its ended jobs ended; None where it can't be asked."""
    if not records or not slurm.is_here():
        return None, {}
    try:
        live = live_stages(slurm.queued_jobs(), records, run_folder)
    except CommandFailed:
        return None, {}
    return live, slurm.accounted_states([record.job for record in records])


def _row(
    resolved: Resolved,
    live: LiveStage | None,
    records: Sequence[Submission],
    folder: Path,
    accounted: dict[str, str],
) -> _Row:
    jobs = ", ".join(live.waiting) if live else records[-1].job if records else ""
    if resolved.state == "done":
        return _Row(state="done", job=jobs, why=resolved.reason)
    if live is not None:
        counts = Counter(job.state.lower() for job in live.queued)
        is_one = len(live.queued) == 1
        state = ", ".join(f"{'' if is_one else f'{n} '}{state}" for state, n in counts.items())
        reasons = {job.reason for job in live.queued if job.is_waiting} - {"None"}
        failed = _failures(records, folder)
        return _Row(state=state, job=jobs, why="; ".join([*sorted(reasons), *failed]))
    owner = holder(resolved.folder) if resolved.folder and resolved.state == "resume" else None
    if owner:
        return _Row(state="running", job=jobs, why=owner)
    failed = _failures(records, folder)
    if failed:
        return _Row(state="failed", job=jobs, why="; ".join(failed))
    if records:
        known = {state for job, state in accounted.items() if job.partition("_")[0] == jobs}
        last = _last_event(records[-1], folder)
        guess = "ended" if last and last != ENDED_BY_SLURM else "cancelled"
        why = last or "never began: what it waits for was not made"
        return _Row(state=", ".join(sorted(known)).lower() or guess, job=jobs, why=why)
    return _Row(state=resolved.state, why=resolved.reason)


def _failures(records: Sequence[Submission], folder: Path) -> list[str]:
    """What the last jobs of a stage said when they gave up."""
    if not records:
        return []
    said = []
    last = [record for record in records if record.time >= records[-1].time]
    for record in last:
        for task in record.tasks or (None,):
            account = record.account(folder, task)
            ended, events = Path(f"{account}.ended"), Path(f"{account}.events")
            if ended.is_file() and ended.read_text().strip() != "0":
                part = "" if task is None else f"part {record.offset + task} "
                said.append(part + _last_line(events)[20:])
    return said


def _last_event(record: Submission, folder: Path) -> str:
    events = folder.glob(f"jobs/{record.job}[._]*events")
    newest = max(events, key=lambda path: path.stat().st_mtime, default=None)
    return _last_line(newest)[20:] if newest else ""


def _log(resolved: Resolved, records: Sequence[Submission], folder: Path) -> Path | None:
    """The log that was written last: the stage's own, or that of its job."""
    found = list((resolved.folder / "logs").glob("log*.txt")) if resolved.folder else []
    if records:
        found += folder.glob(f"logs/{resolved.stage.name}-{records[-1].job}*.log")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _progress(resolved: Resolved) -> tuple[str, str]:
    """The last step in the stage's own log, or its last line, and the time that is left."""
    logs = list((resolved.folder / "logs").glob("log*.txt")) if resolved.folder else []
    if not logs:
        return "", ""
    log = max(logs, key=lambda path: path.stat().st_mtime)
    lines = [line[20:] for line in _last_lines(log)]  # without the time
    steps = [line for line in lines if STEP.search(line)]
    line = (steps or lines or [""])[-1]
    age = time.time() - log.stat().st_mtime
    assert resolved.folder is not None
    left = _time_left(resolved.folder / "metrics.jsonl") if steps else ""
    return f"{line[:78]} ({age:.0f} s ago)" if line else "", left


def _time_left(metrics: Path) -> str:
    """As the training itself last logged it."""
    try:
        return duration(json.loads(_last_line(metrics))["seconds_left"])
    except (ValueError, KeyError):
        return ""


def _last_line(path: Path) -> str:
    return (_last_lines(path) or [""])[-1]


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
