"""What jobs say of themselves in the run's folder, which is all there is where SLURM can't be
asked."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.submitted import Submission
from pipeline.durations import duration

TAIL_BYTES = 4000
ENDED_BY_SLURM = "ended by SLURM"  # what a batch script says of it
START = re.compile(r"^start (\d+) ")
SECONDS_ALIVE = 300.0  # after the last sign of life


@dataclass(frozen=True, kw_only=True)
class Account:
    """How far a job, or a task of an array, is by what it said last."""

    state: str  # submitted, started, running, stopped, failed or ended
    said: str = ""
    time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job, or one task of an array."""

    record: Submission
    number: int | None  # of an array's task

    @property
    def id(self) -> str:
        """As sacct writes it."""
        return self.record.job if self.number is None else f"{self.record.job}_{self.number}"


def last_tasks(records: Sequence[Submission]) -> list[Task]:
    """Of a stage's records what was handed in last for each of its parts: parts that were in the
    queue already are not handed in again with others."""
    of_part = {}
    for record in records:
        if (record.content, record.parts) == (records[-1].content, records[-1].parts):
            for number in record.tasks or (None,):
                of_part[record.offset + (number or 0)] = Task(record=record, number=number)
    return [of_part[part] for part in sorted(of_part)]


def jobs_of(tasks: Sequence[Task]) -> str:
    return ", ".join(dict.fromkeys(task.record.job for task in tasks))


def accounts(tasks: Sequence[Task], folder: Path) -> list[Account]:
    return [_account(task.record.account(folder, task.number)) for task in tasks]


def _account(path: Path) -> Account:
    events = Path(f"{path}.events")
    said = [line[20:] for line in last_lines(events)]  # without the time
    if not said:
        return Account(state="submitted")
    last, changed = said[-1], events.stat().st_mtime
    if last == ENDED_BY_SLURM:
        # Cancelled, or requeued by SLURM itself: its script can't tell.
        return Account(state="stopped", said=last, time=changed)
    if last == "done" or last.startswith("failed"):
        return Account(state="ended" if last == "done" else "failed", said=last, time=changed)
    if last.startswith("to be requeued: "):
        return Account(state="started", said=last, time=changed)
    # It started, or was told to stop, or is an older copy that has noticed the newer one.
    starts = [found[1] for line in said if (found := START.match(line))]
    try:
        age = max(0.0, time.time() - Path(f"{path}-{starts[-1]}.alive").stat().st_mtime)
    except (IndexError, FileNotFoundError):
        return Account(state="started", said=last, time=changed)
    state = "running" if age < SECONDS_ALIVE else "started"
    text = f"{last}, last sign of life {duration(age)} ago"
    return Account(state=state, said=text, time=changed)


def failures(tasks: Sequence[Task], folder: Path) -> list[str]:
    """What they said when they gave up."""
    said = []
    for task in tasks:
        account = task.record.account(folder, task.number)
        ended, events = Path(f"{account}.ended"), Path(f"{account}.events")
        if ended.is_file() and ended.read_text().strip() != "0":
            part = "" if task.number is None else f"part {task.record.offset + task.number} "
            said.append(part + last_line(events)[20:])
    return said


def last_line(path: Path) -> str:
    return (last_lines(path) or [""])[-1]


def last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
