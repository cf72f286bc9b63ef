"""Shards that are elsewhere, kept on this machine as long as there is room. Never imports torch
nor webdataset.

A shard's file is named by its SHA-256: runs share it, and another content is another file. While
it is fetched it is `<sha256>.part`, and who fetches it holds the lock of that file, which the
kernel releases if its process is killed; so there are no lock files that outlive their use. The
lock of the folder is held for moments, while files appear under their names or are deleted.
"""

import errno
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.downloads import BACKOFF_SECONDS
from pipeline.data.file_locks import closed_on_error, hold, is_at
from pipeline.data.shard_streams import copy_verified
from pipeline.data.shards import ShardError, ShardRecord

logger = logging.getLogger(__name__)

LOCK = ".lock"
FINISHED = ".tar"
IN_FLIGHT = ".part"
ATTEMPTS = 100  # to find a shard that others fetch or delete meanwhile
POLL_SECONDS = 0.05  # between two looks at what another process fetches
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|part)")  # what else is in the folder is left alone
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FetchCancelled(Exception):  # noqa: N818 - by who asked for it
    """The shard isn't needed any more."""


@dataclass(frozen=True, kw_only=True)
class _Finished:
    used_ns: int  # when it was last used
    bytes: int
    path: Path


class ShardCache:
    """Shards fetched from elsewhere, kept in a folder of bounded size that the processes of a
    machine share.

    The folder, on a disk of this machine, never has more than `limit` bytes of shards, finished or
    in flight; the least recently used ones make room. A shard that is deleted while somebody has
    it open stays readable there, and its bytes stay on the disk until then.
    """

    def __init__(
        self, folder: Path, *, limit: int, backoff_seconds: float = BACKOFF_SECONDS
    ) -> None:
        self.folder = folder
        self.limit = limit
        self.backoff_seconds = backoff_seconds

    def open(self, url: str, record: ShardRecord) -> int:
        """A read-only file descriptor of the shard's bytes, verified; fetched from `url` if they
        are not here. Counts as a use.

        A shard that was here before is hashed: 0.2 s for 256 MB. Raises ShardError.
        """
        with self._usable():
            for _ in range(ATTEMPTS):
                descriptor = self._verified(record)
                if descriptor is None:
                    descriptor = self._fetched(url, record, cancelled=threading.Event())
                if descriptor is not None:
                    return descriptor
                time.sleep(POLL_SECONDS)
            raise ShardError(
                f"{self.folder}: {url} can't be kept there: it disappears as soon as it is made; "
                "use a folder on a disk of this machine that nobody deletes"
            )

    def fetch(self, url: str, record: ShardRecord, *, cancelled: threading.Event) -> None:
        """Bring the shard here unless it is. Counts as a use.

        Raises ShardError, or FetchCancelled soon after `cancelled` was set.
        """
        if not self.touch(record):
            with self._usable():
                descriptor = self._fetched(url, record, cancelled=cancelled)
            if descriptor is not None:
                os.close(descriptor)

    def touch(self, record: ShardRecord) -> bool:
        """Count a use of the shard, if it is here; whether it is. Costs microseconds."""
        try:
            _mark_used(self._path(record))
        except OSError:
            return False
        return True

    def _path(self, record: ShardRecord) -> Path:
        return self.folder / f"{record.sha256}{FINISHED}"

    def _verified(self, record: ShardRecord) -> int | None:
        """The shard as it was here before; None where it isn't, or was damaged and is deleted."""
        path = self._path(record)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with closed_on_error(descriptor):
            size = os.fstat(descriptor).st_size
            if size != record.bytes:
                damage = f"{size:,} instead of {record.bytes:,} bytes"
            elif _digest(descriptor) != record.sha256:
                damage = "SHA-256 differs"
            else:
                _mark_used(descriptor)
                return descriptor
            logger.warning("%s: damaged (%s); it is fetched again", path, damage)
            with self._locked_folder():
                if is_at(path, descriptor):  # else somebody has already replaced it
                    path.unlink()
        os.close(descriptor)
        return None

    def _fetched(self, url: str, record: ShardRecord, *, cancelled: threading.Event) -> int | None:
        """The shard, just fetched; None where it is worth looking again: another process has
        fetched it meanwhile, or the folder was deleted underneath."""
        if record.bytes > self.limit:
            raise ShardError(
                f"runtime.shard_cache_gib: {self.limit / 2**30:.3g} GiB are less than the "
                f"{record.bytes / 2**30:.3g} GiB of one shard, {url}; allow a multiple of that"
            )

        def pause(seconds: float) -> None:
            if cancelled.wait(seconds):
                raise FetchCancelled(url)

        path = self._path(record)
        temporary = path.with_suffix(IN_FLIGHT)
        try:
            while (part := hold(temporary, wait=False)) is None:
                pause(POLL_SECONDS)
                if path.exists():
                    return None
            try:
                return None if path.exists() else self._fill(part, record, url=url, pause=pause)
            finally:
                with suppress(OSError):
                    if is_at(temporary, part):
                        temporary.unlink()
                os.close(part)
        except FileNotFoundError:
            return None

    def _fill(
        self, part: int, record: ShardRecord, *, url: str, pause: Callable[[float], None]
    ) -> int:
        """Fetch into the temporary file whose lock we hold, and give it the shard's name."""
        path = self._path(record)
        temporary = path.with_suffix(IN_FLIGHT)
        descriptor = os.open(temporary, os.O_RDONLY)
        with closed_on_error(descriptor):
            self._copy(part, record, url=url, pause=pause)
            with self._locked_folder():
                if is_at(temporary, part):
                    temporary.rename(path)
                    _mark_used(path)
                else:
                    logger.warning("%s: deleted while %s was fetched", temporary, url)
        return descriptor

    def _copy(
        self, part: int, record: ShardRecord, *, url: str, pause: Callable[[float], None]
    ) -> None:
        """Write the shard's bytes, once there is room for all of them."""
        to_free = 0
        while True:
            os.ftruncate(part, 0)  # nothing of a killed process, nor of an attempt that failed
            while not self._make_room(part, record, to_free=to_free):
                pause(POLL_SECONDS)  # until others have what they fetch
            try:
                copy_verified(
                    url,
                    record,
                    into=part,
                    backoff_seconds=self.backoff_seconds,
                    pause=pause,
                    between_chunks=lambda: pause(0),
                )
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                logger.warning(
                    "%s: %s while fetching %s; deleting what was used least recently",
                    self.folder,
                    error.strerror,
                    url,
                )
                to_free = record.bytes

    def _make_room(self, part: int, record: ShardRecord, *, to_free: int) -> bool:
        """Give the temporary file its full size, by which others know what it will take; False
        while too much is in flight for that.

        Deletes what was used least recently: down to the limit, and at least `to_free` bytes where
        the disk was full.
        """
        with self._locked_folder():
            finished, in_flight = self._contents()
            kept = sum(each.bytes for each in finished)
            if in_flight + record.bytes > self.limit or (to_free and in_flight and not finished):
                return False
            if to_free and not finished:
                raise ShardError(
                    f"{self.folder}: the disk is full, {record.bytes:,} bytes are needed for a "
                    "shard and no shard is left to delete; free some space, or have the shards "
                    "cached on another disk"
                )
            to_free = max(to_free, kept + in_flight + record.bytes - self.limit)
            for each in finished:
                if to_free <= 0:
                    break
                each.path.unlink(missing_ok=True)
                to_free -= each.bytes
            os.ftruncate(part, record.bytes)
            return True

    def _contents(self) -> tuple[list[_Finished], int]:
        """The finished shards, least recently used first, and the bytes of those in flight.

        Deletes temporary files of processes that were killed.
        """
        finished = []
        in_flight = 0
        for path in self.folder.iterdir():
            if not _OURS.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == FINISHED:
                    finished.append(
                        _Finished(used_ns=status.st_mtime_ns, bytes=status.st_size, path=path)
                    )
                else:
                    abandoned = hold(path, wait=False)
                    if abandoned is None:
                        in_flight += status.st_size
                    else:
                        path.unlink(missing_ok=True)
                        os.close(abandoned)
        return sorted(finished, key=lambda each: each.used_ns), in_flight

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        lock = hold(self.folder / LOCK, wait=True)
        assert lock is not None, "waited for it"
        try:
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ShardError(
                f"{self.folder}: shards can't be cached there ({error.strerror or error}); it must "
                "be a folder on a disk of this machine that you may write in"
            ) from error


def _mark_used(file: Path | int) -> None:
    now = time.time_ns()  # the kernel's own stamp is milliseconds coarse
    os.utime(file, ns=(now, now))


def _digest(descriptor: int) -> str:
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.lseek(descriptor, 0, os.SEEK_SET)
    return digest
