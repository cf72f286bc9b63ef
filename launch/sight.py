"""What the jobs of a run have made, once it is in sight: a network file system may show a machine
only after a minute what another one has written."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.job_accounts import jobs_of, last_tasks
from launch.stage import SECONDS_BETWEEN_LOOKS, SECONDS_UNTIL_SEEN
from launch.submitted import Submission, ended_well
from pipeline.artifacts import MANIFEST, look_again
from pipeline.graph import Graph, Resolved


def ended_lately(records: Sequence[Submission], folder: Path, *, now: float) -> dict[str, str]:
    """Of stages that all ended well, so lately that it may not be in sight yet: their jobs."""
    jobs = {}
    for name in {record.stage for record in records}:
        tasks = last_tasks([record for record in records if record.stage == name])
        if not all(ended_well(task.record, folder, task.number) for task in tasks):
            continue
        ends = [Path(f"{task.record.account(folder, task.number)}.ended") for task in tasks]
        if max(end.stat().st_mtime for end in ends) > now - SECONDS_UNTIL_SEEN:
            jobs[name] = jobs_of(tasks)
    return jobs


def resolve_once_seen(
    graph: Graph, run_folder: Path, ended: Mapping[str, str]
) -> dict[str, Resolved]:
    """Every stage as it stands, after a while for those of `ended` (their jobs) to be done: made
    again, one would take its files from the jobs that read them."""
    until = time.monotonic() + SECONDS_UNTIL_SEEN
    said: set[str] = set()
    while True:
        for stage in graph.stages:
            look_again(run_folder / stage.name)
        resolved = graph.resolve(run_folder)
        unseen = [
            (name, f"job {ended[name]} ended well, but there is no {MANIFEST} in {each.folder}")
            for name, each in resolved.items()
            if name in ended and each.folder and each.state != "done" and not each.is_stale
        ]
        is_over = time.monotonic() > until
        for name, what in unseen:
            if is_over:
                print(f"· {name:<32} {what} {SECONDS_UNTIL_SEEN:.0f} s later: it is made again")
            elif name not in said:
                said.add(name)
                print(f"· {name:<32} {what}: looking again for up to {SECONDS_UNTIL_SEEN:.0f} s")
        if is_over or not unseen:
            return resolved
        time.sleep(SECONDS_BETWEEN_LOOKS)
