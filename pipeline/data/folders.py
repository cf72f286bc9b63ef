"""Finds the photographs in a folder, at any depth."""

import os
import stat
from array import array
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.data.containers import file_content, reading
from pipeline.data.folder_tree import FolderTimes, visit
from pipeline.data.listing import Listing, is_photograph

# A file server takes its time for each file, which isn't ours: many are asked for at once.
READERS = 16
FILES_EACH = 64  # that a reader takes at a time
File = tuple[bytes, bytes, os.stat_result]  # name, path, status


class _Sampler:
    """Adds files to a listing in the order in which they are given, samples of them read."""

    def __init__(self, listing: Listing, readers: Executor) -> None:
        self._listing = listing
        self._readers = readers
        self._waiting: list[File] = []

    def add(self, file: File) -> None:
        self._waiting.append(file)
        if len(self._waiting) == READERS * FILES_EACH:
            self.finish()

    def finish(self) -> None:
        starts = range(0, len(self._waiting), FILES_EACH)
        parts = [self._waiting[start : start + FILES_EACH] for start in starts]
        contents = self._readers.map(_contents, parts)
        for file, content in zip(self._waiting, chain.from_iterable(contents), strict=True):
            name, _, status = file
            if content is None:
                self._listing.refuse(name, "no such file or directory")
            else:
                self._listing.add_file(
                    name, status.st_size, modified_ns=status.st_mtime_ns, content=content
                )
        self._waiting = []


def list_folder(listing: Listing, root: Path) -> None:
    """Add every photograph below `root`.

    A file to which links lead is added once, or the same photograph could be on both sides of
    the validation: as itself where it is below `root`, else as the first of the links by name.
    """
    times = FolderTimes(root)
    files = array("q")
    links: list[bytes] = []
    with ThreadPoolExecutor(READERS) as readers:
        sampler = _Sampler(listing, readers)

        def add(name: bytes, entry: os.DirEntry[bytes]) -> None:
            if not is_photograph(entry.name):
                listing.leave_out(name)
            elif entry.is_symlink():
                links.append(name)
            elif (status := _status(listing, name, entry.path)) is not None:
                sampler.add((name, entry.path, status))
                files.append(_file_number(status))

        def lose(name: bytes) -> None:
            times.add_closed(name)
            listing.lose(name, "permission denied", place=root / os.fsdecode(name))

        visit(root, entered=times.add, found=add, closed=lose)
        listing.folder_times |= times.record()
        if links:
            listed = np.sort(np.asarray(files, dtype=np.int64))
            _add_links(listing, sampler, root, sorted(links), listed)
        sampler.finish()


def _add_links(
    listing: Listing, sampler: _Sampler, root: Path, links: list[bytes], listed: np.ndarray
) -> None:
    """`listed`: the numbers of the files that are listed as themselves, ascending."""
    added: set[int] = set()
    for name in links:
        path = os.path.join(os.fsencode(root), name)
        status = _status(listing, name, path)
        if status is None:
            continue
        number = _file_number(status)
        at = np.searchsorted(listed, number)
        if number in added or number in listed[at : at + 1]:
            listing.repeated_links += 1
        else:
            added.add(number)
            sampler.add((name, path, status))


def _file_number(status: os.stat_result) -> int:
    """The same for every path that leads to the file: 64 bits, as pairs would fill the memory."""
    return hash((status.st_dev, status.st_ino))


def _status(listing: Listing, name: bytes, path: bytes) -> os.stat_result | None:
    """None where there is no file to list, which the listing then says."""
    try:
        status = os.stat(path)
    except OSError as error:
        listing.refuse(name, (error.strerror or "can't be listed").lower())
        return None
    if not stat.S_ISREG(status.st_mode):
        listing.refuse(name, "not a file")
        return None
    return status


def _contents(files: Sequence[File]) -> list[int | None]:
    return [_content(path, status.st_size) for _, path, status in files]


def _content(path: bytes, size: int) -> int | None:
    """The digest of the photograph; None once it is deleted, 0 for what nobody may read, which is
    left out when it is to be decoded."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except PermissionError:
        return 0
    try:
        with reading(path):
            return file_content(descriptor, size)
    finally:
        os.close(descriptor)
