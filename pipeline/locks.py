"""Who may write in a folder: one process at a time, or the parts of an array side by side.

SLURM may start a job again while its first copy still runs, on a node that it can't reach. The
newer copy then takes the lock over, and the older one finds that out before it seals anything.

Where the file system has no flock, a heartbeat holds the lock (`pipeline.heartbeats`).
"""

import fcntl
import json
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline import heartbeats
from pipeline.heartbeats import Heartbeat, HeldByAnother

logger = logging.getLogger(__name__)

Record = dict[str, Any]  # as JSON gives it: host, pid, job, restart, since
# After a lock was taken over, what its older holder has to notice that in; it looks every second.
GRACE_SECONDS = 3.0


class ArtifactError(Exception):
    """A folder that can't be used as it is; the message says what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lock:
    path: Path
    file: IO[str]
    heartbeat: Heartbeat | None  # where flock is not supported
    record: str  # what this process wrote into it; empty where it shares the lock

    def check(self) -> None:
        """Read the owner again; ArtifactError where it is no longer this process."""
        is_lost = self.heartbeat is not None and self.heartbeat.is_lost()
        if not self.record and not is_lost:
            return
        try:
            found = self.path.read_text()
        except FileNotFoundError:
            found = ""
        if is_lost or found != self.record:
            raise ArtifactError(
                f"{self.path.parent}: another run has taken over here ({found or 'no record'}); "
                "this one writes nothing more"
            )


_held: list[_Lock] = []  # by this process


@contextmanager
def writing(
    folder: Path,
    *,
    shared: bool = False,
    name: str = ".lock",
    patience: float = 1.0,
    pause: Callable[[float], None] | None = None,
) -> Iterator[None]:
    """Hold the right to write in `folder`, or raise ArtifactError saying who holds it after
    `patience` seconds.

    `shared` lets the parts of an array in together and keeps whole-stage writers out. `pause` waits
    for so many seconds, and may raise what ends the wait.
    """
    lock = _acquire(folder / name, shared=shared, patience=patience, pause=pause or time.sleep)
    _held.append(lock)
    try:
        yield
    finally:
        _held.remove(lock)
        _let_go(lock.file, lock.heartbeat)


def check_owner(folder: Path) -> None:
    """ArtifactError where this process holds a lock on `folder` or a folder around it that another
    has meanwhile taken over."""
    for lock in list(_held):
        if folder.is_relative_to(lock.path.parent):
            try:
                lock.check()
            except ArtifactError:
                if lock in _held:  # or another thread has let it go meanwhile
                    raise


def holder(folder: Path) -> str | None:
    """Who is writing in `folder` now, as its lock says; None where nobody is."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (folder / ".lock").read_text().strip()
    except OSError as error:
        if error.errno not in heartbeats.UNSUPPORTED:
            raise
        if heartbeats.is_held(folder / ".lock"):
            return (folder / ".lock").read_text().strip()
    return None


def owner() -> Record:
    """This process, as locks and manifests name it."""
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0") if job else None,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _acquire(path: Path, *, shared: bool, patience: float, pause: Callable[[float], None]) -> _Lock:
    began = time.monotonic()
    while True:
        file = path.open("a+")
        try:
            heartbeat = _hold(path, file, shared=shared)
        except BlockingIOError as error:
            record = _read(file)
            file.close()
            if not shared and _restarts_since(record) > 0:
                return _take_over(path)
            needed = heartbeats.STALE_SECONDS + heartbeats.BEAT_SECONDS
            if isinstance(error, HeldByAnother) and patience < needed:
                patience = needed
                logger.warning(
                    "%s: held by another run (%s); it takes up to %.0f s to see whether that lives",
                    path.parent,
                    record or "no record",
                    needed,
                )
            # For a moment: `holder` takes the lock for an instant to see whether it is free.
            if time.monotonic() > began + patience:
                raise ArtifactError(
                    f"{path.parent}: another run is writing here ({record or 'no record'}); "
                    "wait for it, or stop it, then run the same command again"
                ) from None
            # Two that come at once must not meet again and again.
            pause(random.uniform(0.2, 1.0) if isinstance(error, HeldByAnother) else 0.05)
            continue
        with _let_go_on_failure(file, heartbeat):
            if not _is_at(path, file):  # taken over since it was opened: nobody's any more
                _let_go(file, heartbeat)
                continue
            record = _read(file)
            if _restarts_since(record) < 0:
                raise ArtifactError(
                    f"{path.parent}: a newer copy of this job was here ({record}); this one, which "
                    "SLURM has given up, writes nothing"
                )
            record_now = _write(file, shared=shared)
            lock = _Lock(path=path, file=file, heartbeat=heartbeat, record=record_now)
            if not shared and _restarts_since(record) > 0:
                # On some network file systems a lock holds for one machine, and the older copy goes
                # on.
                time.sleep(GRACE_SECONDS)
                lock.check()
            return lock


def _hold(path: Path, file: IO[str], *, shared: bool, takes_over: bool = False) -> Heartbeat | None:
    """Lock `file` by flock; where the file system has none, hold the lock at `path` by a heartbeat.
    BlockingIOError where another has it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in heartbeats.UNSUPPORTED:
            raise
        return Heartbeat(path, shared=shared, takes_over=takes_over)
    return None


@contextmanager
def _let_go_on_failure(file: IO[str], heartbeat: Heartbeat | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _let_go(file, heartbeat)
        raise


def _let_go(file: IO[str], heartbeat: Heartbeat | None) -> None:
    if heartbeat is not None:
        heartbeat.end()
    file.close()


def _take_over(path: Path) -> _Lock:
    """Put a lock of our own in the place of one whose holder is an older copy of this job."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    file = temporary.open("a+")
    heartbeat = _hold(path, file, shared=False, takes_over=True)
    with _let_go_on_failure(file, heartbeat):
        record = _write(file, shared=False)
        lock = _Lock(path=path, file=file, heartbeat=heartbeat, record=record)
        temporary.rename(path)
        time.sleep(GRACE_SECONDS)
        lock.check()  # a still newer copy may have come
    return lock


def _write(file: IO[str], *, shared: bool) -> str:
    """Note the owner; what is shared has none."""
    record = "" if shared else json.dumps(owner())
    file.truncate(0)
    file.write(record)
    file.flush()
    return record


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _restarts_since(record: str) -> int:
    """How often SLURM has started this process's job again since its copy that wrote `record`;
    negative for a newer copy, 0 for anybody else's record."""
    try:
        other = json.loads(record)
    except ValueError:
        return 0
    mine = owner()
    if mine["job"] is None or other.get("job") != mine["job"]:
        return 0
    return int(mine["restart"]) - int(other.get("restart") or 0)
