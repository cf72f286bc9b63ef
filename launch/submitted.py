"""What was submitted of a run: the records in its folder, and which of it SLURM still has."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.slurm import QueuedJob, queued_jobs
from pipeline.artifacts import sync_folder

RECORDS = "jobs.jsonl"
MARK = "ipt"  # how a comment of ours begins
COMPLETING_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that was handed in: a stage, or some parts of an array stage."""

    job: str
    stage: str
    name: str
    content: str  # digest of what the run's config says about content
    parts: int = 1  # that share the stage
    offset: int = 0  # part of the array's task 0
    tasks: tuple[int, ...] | None = None  # of the array; None: no array
    after: tuple[str, ...] = ()  # what it waits for
    time: str = ""
    since: str = ""  # the time of the submission that handed the stage in anew

    def account(self, folder: Path, task: int | None) -> Path:
        """Where a job keeps account of itself, without the suffix."""
        return folder / "jobs" / (self.job if task is None else f"{self.job}_{task}")


@dataclass(frozen=True, kw_only=True)
class LiveStage:
    """What SLURM has of one stage."""

    content: str
    parts: int
    waiting: dict[str, set[int | None]] = field(default_factory=dict)  # tasks by job
    queued: list[QueuedJob] = field(default_factory=list)
    parts_live: set[int] = field(default_factory=set)
    since: set[str] = field(default_factory=set)


def note_cancelled(folder: Path, jobs: Iterable[str], *, forget: bool = False) -> None:
    """For their batch scripts, which SLURM doesn't tell it apart from a preemption."""
    for job in jobs:
        mark = folder / "jobs" / f"{job}.cancelled"
        if forget:
            mark.unlink(missing_ok=True)
        else:
            mark.touch()


def comment(submission: Submission, run_folder: Path) -> str:
    """What a job carries in SLURM, so that it is known even where its record was never written."""
    facts = (submission.content, submission.parts, submission.offset, submission.stage)
    return ",".join([MARK, *map(str, facts), str(run_folder)])


def record(folder: Path, submission: Submission) -> None:
    line = json.dumps(asdict(submission), sort_keys=True).encode() + b"\n"
    with (folder / RECORDS).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a record that a full disk cut short
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_records(folder: Path) -> list[Submission]:
    """Oldest first; a line that a full disk cut short is left out."""
    path = folder / RECORDS
    if not path.is_file():
        return []
    submissions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        tasks = values.pop("tasks")
        after = tuple(values.pop("after"))
        submissions.append(
            Submission(tasks=None if tasks is None else tuple(tasks), after=after, **values)
        )
    return submissions


def live_stages(
    queue: Iterable[QueuedJob], records: Sequence[Submission], run_folder: Path
) -> dict[str, LiveStage]:
    """What of this run SLURM has not finished with, by stage."""
    of_record = {each.job: each for each in records}
    live: dict[str, LiveStage] = {}
    for job in queue:
        submission = _identify(job, run_folder) or of_record.get(job.job)
        if submission is None or submission.name != job.name:
            continue
        stage = live.setdefault(
            submission.stage, LiveStage(content=submission.content, parts=submission.parts)
        )
        stage.waiting.setdefault(job.job, set()).add(job.task)
        stage.queued.append(job)
        if job.job in of_record:
            stage.since.add(of_record[job.job].since)
        stage.parts_live.add(submission.offset + (job.task or 0))
    return live


def settled_stages(records: Sequence[Submission], run_folder: Path) -> dict[str, LiveStage]:
    """`live_stages` once no job of them is on its way out, so that it is known which ones go on."""
    until = time.monotonic() + COMPLETING_SECONDS
    while True:
        live = live_stages(queued_jobs(), records, run_folder)
        queued = [job for stage in live.values() for job in stage.queued]
        if all(job.state != "COMPLETING" for job in queued) or time.monotonic() > until:
            return live
        time.sleep(1)


def _identify(job: QueuedJob, run_folder: Path) -> Submission | None:
    """A job by its comment; None where it is of another run, or of none."""
    mark, *facts = job.comment.split(",", 5)
    if mark != MARK or len(facts) != 5 or facts[-1] != str(run_folder):
        return None
    content, parts, offset, stage, _ = facts
    return Submission(
        job=job.job,
        stage=stage,
        name=job.name,
        content=content,
        parts=int(parts),
        offset=int(offset),
    )


def dependencies(live: LiveStage, records: Sequence[Submission], folder: Path) -> tuple[str, ...]:
    """What a dependent must wait for: whole arrays, or, where a task of one has failed for good
    and is made again, the tasks that are left."""
    of_record = {each.job: each for each in records}
    ids: list[str] = []
    for job, tasks in live.waiting.items():
        submission = of_record.get(job)
        others = set(submission.tasks or ()) - tasks if submission else set()
        if submission is None or all(ended_well(submission, folder, task) for task in others):
            ids.append(job)
        else:
            ids += [f"{job}_{task}" for task in sorted(task for task in tasks if task is not None)]
    return tuple(ids)


def parts_made(name: str, live: LiveStage, records: Sequence[Submission], folder: Path) -> set[int]:
    """The parts of a stage in the queue that are no longer there, as they ended well."""
    return {
        record.offset + task
        for record in records
        if record.stage == name and record.since and record.since in live.since
        for task in record.tasks or ()
        if ended_well(record, folder, task)
    }


def ended_well(submission: Submission, folder: Path, task: int | None) -> bool:
    path = Path(f"{submission.account(folder, task)}.ended")
    return path.is_file() and path.read_text().strip() == "0"
