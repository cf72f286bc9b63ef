"""Locks for file systems without flock: a file that its holder touches for as long as it lives.

Every holder has a file of its own, made before it looks for those of others: of two that come at
once, at least one sees the other and lets go, so that they never hold together.
"""

import errno
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # without a beat, after which a holder counts as dead
# What flock says on Lustre without -o flock, and on NFS without a lock daemon.
UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


class HeldByAnother(BlockingIOError):  # noqa: N818 - as BlockingIOError, no failure
    """By one that lives, as far as its last beat tells."""


class Heartbeat:
    """The right that `lock` stands for, alone or shared, held until `end`; HeldByAnother where it
    is not to be had. One that `takes_over` ends all that are in its way."""

    def __init__(self, lock: Path, *, shared: bool, takes_over: bool = False) -> None:
        kind = "shared" if shared else "exclusive"
        self._path = lock.with_name(f"{lock.name}.{kind}-{uuid.uuid4().hex}")
        self._path.touch(exist_ok=False)
        try:
            now = _last_beat(self._path)
            for other, beat in _others(lock, shared=shared):
                if other == self._path:
                    continue
                if now - beat < STALE_SECONDS and not takes_over:
                    raise HeldByAnother
                other.unlink(missing_ok=True)  # if it was only asleep, it finds out by that
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        self._is_over = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return
            except OSError:  # a file system that is away for a moment
                continue

    def is_lost(self) -> bool:
        """Whether another has taken over."""
        return not self._path.exists()

    def end(self) -> None:
        self._is_over.set()
        self._path.unlink(missing_ok=True)


def is_held(lock: Path) -> bool:
    """Whether somebody holds `lock` alone."""
    try:
        with tempfile.TemporaryFile(dir=lock.parent) as file:
            now = os.fstat(file.fileno()).st_mtime
    except OSError:  # as whoever may not write there can only look
        now = time.time()
    return any(now - beat < STALE_SECONDS for _, beat in _others(lock, shared=True))


def _others(lock: Path, *, shared: bool) -> Iterator[tuple[Path, float]]:
    """Who can't hold beside a holder that is shared, or is not, and when they last gave a beat, by
    the clock of the file system."""
    kinds = ("exclusive",) if shared else ("exclusive", "shared")
    starts = tuple(f"{lock.name}.{kind}-" for kind in kinds)
    for name in os.listdir(lock.parent):
        if name.startswith(starts):
            with suppress(FileNotFoundError):
                yield lock.with_name(name), _last_beat(lock.with_name(name))


def _last_beat(path: Path) -> float:
    with path.open("rb") as file:  # asked by name alone, NFS may know an older answer
        return os.fstat(file.fileno()).st_mtime
