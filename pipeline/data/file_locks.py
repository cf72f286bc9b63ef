"""Locks that the kernel releases when their process ends, however it ends, on files that may be
renamed and deleted meanwhile."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.heartbeats import UNSUPPORTED


def hold(path: Path, *, wait: bool) -> int | None:
    """A descriptor of the file, locked until it is closed; None if another holds it and not `wait`.

    The file, and its folder, are made where they are missing.
    """
    while True:
        descriptor = _opened(path)
        with closed_on_error(descriptor):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                locked = True
            except BlockingIOError:
                locked = False
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    error.strerror = "no flock here; set runtime.shard_cache to a local disk"
                error.filename = str(path)
                raise
            # Renamed or deleted since it was opened, it is another's file by now, or nobody's.
            if locked and is_at(path, descriptor):
                return descriptor
        os.close(descriptor)
        if not locked:
            return None


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that has this path now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
