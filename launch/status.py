"""`ipt status`: how far a run is, from its folders, and from SLURM where there is one."""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import slurm
from launch.job_accounts import (
    ENDED_BY_SLURM,
    Account,
    Task,
    accounts,
    failures,
    jobs_of,
    last_line,
    last_lines,
    last_tasks,
)
from launch.sbatch import SLURM_FOLDER
from launch.submitted import LiveStage, Submission, live_stages, read_records
from launch.terminal import CommandFailed, print_table
from pipeline.config_file import load_config
from pipeline.durations import duration
from pipeline.graph import Resolved
from pipeline.locks import holder
from stages.recipe import build_graph

BAD = {state.lower() for state in slurm.ENDED_BADLY}
STEP = re.compile(r"\bstep (\d+)/(\d+)\b")
NEVER_BEGAN = "never began: what it waits for was not made"


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
    lost: set[str] = set()  # failed, or waits for what did
    for name, each in resolved.items():
        of_stage = [record for record in records if record.stage == name]
        tasks = last_tasks(of_stage)
        is_lost = any(parent.name in lost for parent in each.stage.inputs.values())
        row = _row(each, (live or {}).get(name), tasks, folder, is_asked=live is not None)
        if row is None and live is None:
            row = _row_of_untold(tasks, folder, is_lost=is_lost)
        elif row is None:
            is_missing_input = any(
                resolved[parent.name].state != "done" for parent in each.stage.inputs.values()
            )
            row = _row_of_gone(tasks, folder, accounted, is_missing_input=is_missing_input)
        if row.state == "failed" or (is_lost and row.state == "cancelled"):
            lost.add(name)
        step, left = ("", "") if row.state == "done" else _progress(each)
        rows.append([_mark(row.state), name, row.state, row.job, row.why, step, left])
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
    tasks: Sequence[Task],
    folder: Path,
    *,
    is_asked: bool,
) -> _Row | None:
    """What folders and queue say for certain; None of a job that is not in the queue, or of which
    nobody knows whether it is."""
    job = ", ".join(live.waiting) if live else jobs_of(tasks)
    if resolved.state == "done":
        return _Row(state="done", job=job, why=resolved.reason)
    if live is not None:
        states = [queued.state.lower() for queued in live.queued]
        reasons = {queued.reason for queued in live.queued if queued.is_waiting} - {"None"}
        why = "; ".join([*sorted(reasons), *failures(tasks, folder)])
        return _Row(state=_counted(states), job=job, why=why)
    owner = holder(resolved.folder) if resolved.folder and resolved.state == "resume" else None
    if owner:
        return _Row(state="running", job=job, why=owner)
    failed = failures(tasks, folder)
    if failed and (is_asked or _have_ended(accounts(tasks, folder))):
        return _Row(state="failed", job=job, why="; ".join(failed))
    return None if tasks else _Row(state=resolved.state, why=resolved.reason)


def _row_of_gone(
    tasks: Sequence[Task], folder: Path, accounted: dict[str, str], *, is_missing_input: bool
) -> _Row:
    """A stage whose jobs SLURM has finished with, and that is not made."""
    found, states = accounts(tasks, folder), []
    for task, account in zip(tasks, found, strict=True):
        guess = "ended" if account.said and account.said != ENDED_BY_SLURM else "cancelled"
        states.append(accounted.get(task.id, guess).lower())
    why = _newest(found).said or (NEVER_BEGAN if is_missing_input else "never began")
    return _Row(state=_counted(states), job=jobs_of(tasks), why=why)


def _row_of_untold(tasks: Sequence[Task], folder: Path, *, is_lost: bool) -> _Row:
    """A stage whose jobs are in the queue, run or have ended: SLURM can't be asked."""
    found, jobs = accounts(tasks, folder), jobs_of(tasks)
    if is_lost and all(each.state == "submitted" for each in found):
        return _Row(state="cancelled", job=jobs, why=NEVER_BEGAN)
    why = "; ".join(failures(tasks, folder)) or _newest(found).said
    return _Row(state=_counted([each.state for each in found]), job=jobs, why=why)


def _mark(state: str) -> str:
    words = set(re.findall(r"[a-z_]+", state))
    if state == "done" or words & {"running", "started"}:
        return "✓" if state == "done" else "▸"
    return "✗" if words & BAD else "·"


def _have_ended(found: Sequence[Account]) -> bool:
    return all(each.state in ("ended", "failed") for each in found)


def _newest(found: Sequence[Account]) -> Account:
    return max(found, key=lambda each: each.time)


def _counted(states: Sequence[str]) -> str:
    """Such as "1 running, 3 pending"; without a number where there is one job."""
    counts = Counter(states)
    return ", ".join(f"{f'{n} ' if len(states) > 1 else ''}{state}" for state, n in counts.items())


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
    lines = [line[20:] for line in last_lines(log)]  # without the time
    steps = [line for line in lines if STEP.search(line)]
    line = (steps or lines or [""])[-1]
    age = time.time() - log.stat().st_mtime
    assert resolved.folder is not None
    left = _time_left(resolved.folder / "metrics.jsonl") if steps else ""
    return f"{line[:78]} ({age:.0f} s ago)" if line else "", left


def _time_left(metrics: Path) -> str:
    """As the training itself last logged it."""
    try:
        return duration(json.loads(last_line(metrics))["seconds_left"])
    except (ValueError, KeyError):
        return ""
