"""The processes that a command has started, and theirs: launchers put each in a session of its own,
so no signal to a group reaches them all."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def process_tree(root: int) -> list[int]:
    """A process and all that descend from it, parents first; those that are gone left out."""
    found = [root]
    for pid in found:
        try:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def kill_tree(root: int) -> None:
    """End all of them by SIGKILL, so that none can start or warn another first."""
    seen: set[int] = set()
    while left := [pid for pid in process_tree(root) if pid not in seen]:
        for pid in left:
            _send(pid, signal.SIGSTOP)
        seen.update(left)
    for pid in seen:
        _send(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether it still runs: not gone, nor ended without anybody having asked how."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def rank_of(root: int, rank: int) -> int:
    """The process below a launcher that is rank `rank`; LookupError while there is none."""
    for pid in process_tree(root):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment:  # its own workers inherit that, and come later
            return pid
    raise LookupError(f"no rank {rank} below process {root}")


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
