"""Collects photographs, wherever they are found, into the index that everything else maps.

Memory stays small (about 170 bytes a photograph): names go straight to disk, and only numbers are
held for sorting.
"""

import glob
import hashlib
import mmap
import os
import socket
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.artifacts import sync_folder
from pipeline.data.containers import (
    Container,
    ContainerReader,
    Places,
    content_digest,
    write_places,
)
from pipeline.data.file_names import PHOTOGRAPH_SUFFIXES
from pipeline.data.source import SourceError, readable
from pipeline.data.source_index import (
    INDEX_FILE,
    INDEX_ROW,
    OWN_FILE,
    PATHS_FILE,
    photograph_key,
)

REPORT_EVERY = 1000  # photographs between two calls of progress


class Listing:
    """What was found so far; the names are in `names`, one after the other."""

    def __init__(self, names: BinaryIO, folder: Path, progress: Callable[[int, str], None]) -> None:
        self.unreadable: list[dict[str, str]] = []
        self.lost: list[str] = []  # the places among them that hide who knows how many photographs
        self.containers: list[Container] = []
        self.other_files = 0
        self.tars = self.parquet_files = 0  # of the other files
        self.commit: str | None = None  # of a dataset of the Hub
        self.repeated_links = 0  # to files that are listed themselves
        self.folder_times: dict[str, int | str] = {}  # see `folder_tree.FolderTimes`
        self._names = names
        self._reader = ContainerReader(folder, self.containers)
        self._progress = progress
        self._keys = array("Q")
        self._sizes = array("q")
        self._lengths = array("i")  # of the names, in bytes
        self._numbers = array("i")  # of the containers
        self._offsets = array("q")
        self._modified_ns = array("q")
        self._contents = array("I")

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, name: bytes, size: int, *, offset: int, container: int | None = None) -> None:
        """A photograph of `size` bytes in a container, the last one if none is named."""
        if container is None:
            container = len(self.containers) - 1
        content = content_digest(
            size, lambda start, count: self._reader.read(container, offset + start, count)
        )
        self._append(name, size, container=container, offset=offset, modified_ns=0, content=content)

    def add_file(self, name: bytes, size: int, *, modified_ns: int, content: int) -> None:
        """A photograph that is a file of its own."""
        self._append(
            name, size, container=OWN_FILE, offset=0, modified_ns=modified_ns, content=content
        )

    def _append(
        self,
        name: bytes,
        size: int,
        *,
        container: int,
        offset: int,
        modified_ns: int,
        content: int,
    ) -> None:
        self._keys.append(photograph_key(name))
        self._sizes.append(size)
        self._lengths.append(len(name))
        self._numbers.append(container)
        self._offsets.append(offset)
        self._modified_ns.append(modified_ns)
        self._contents.append(content)
        self._names.write(name)
        if len(self) % REPORT_EVERY == 0:
            self.tell("photographs listed")

    def tell(self, note: str) -> None:
        """A sign of life: whoever watches takes a stage that gives none for one that hangs."""
        self._progress(len(self), note)

    def leave_out(self, name: bytes) -> None:
        """A file whose name is no photograph's."""
        self.other_files += 1
        self.tars += name.endswith(b".tar")
        self.parquet_files += name.endswith(b".parquet")

    def refuse(self, name: bytes, reason: str) -> None:
        self.unreadable.append({"path": readable(name), "reason": reason})

    def lose(self, name: bytes, reason: str, *, place: Path) -> None:
        """Refuse a tar or a folder, and with it photographs that nobody can count."""
        self.refuse(name, reason)
        self.lost.append(f"{readable(os.fsencode(place))}: {reason}")

    def sorted_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The index by key, and for each of its rows where the name begins in `names`."""
        keys = np.asarray(self._keys, dtype="<u8")
        lengths = np.asarray(self._lengths, dtype="<i8")
        by_key = np.argsort(keys, kind="stable")
        rows = np.zeros(len(keys), dtype=INDEX_ROW)
        rows["key"] = keys[by_key]
        rows["size"] = np.asarray(self._sizes)[by_key]
        rows["path_bytes"] = lengths[by_key]
        rows["path_offset"] = np.cumsum(lengths[by_key] + 1) - (lengths[by_key] + 1)
        rows["container"] = np.asarray(self._numbers)[by_key]
        rows["offset"] = np.asarray(self._offsets)[by_key]
        rows["modified_ns"] = np.asarray(self._modified_ns)[by_key]
        return rows, (np.cumsum(lengths) - lengths)[by_key]

    def content(self) -> str:
        """The digest of all contents by key: the same in whatever order they were found."""
        by_key = np.argsort(np.asarray(self._keys, dtype="<u8"), kind="stable")
        contents = np.asarray(self._contents, dtype="<u4")[by_key]
        return hashlib.sha256(contents.tobytes()).hexdigest()


def is_photograph(name: bytes) -> bool:
    """Whether the name says so."""
    return os.path.splitext(name)[1].decode("latin-1").lower() in PHOTOGRAPH_SUFFIXES


def write_index(
    where: str,
    folder: Path,
    find: Callable[[Listing], None],
    *,
    progress: Callable[[int, str], None],
    corrupted_root: str | None = None,
    skip_damaged: bool = False,
) -> Listing:
    """List all that `find` adds into `folder`, sorted by key, none for validation yet.

    SourceError where a tar or a folder could not be listed whole, unless `skip_damaged`.
    """
    spool = folder / f".{PATHS_FILE}.spool"
    try:
        with spool.open("wb") as names:
            listing = Listing(names, folder, progress)
            find(listing)
        listing.unreadable.sort(key=lambda each: each["path"])
        if not len(listing):
            raise SourceError(_nothing_found(where, listing))
        if listing.lost and not skip_damaged:
            more = f" (and {len(listing.lost) - 1} more)" if len(listing.lost) > 1 else ""
            raise SourceError(
                f"{listing.lost[0]}{more}; how many photographs that hides is unknown: mend or "
                "replace it (of what was downloaded, delete it here to have it fetched again), or "
                "do without by skip_damaged: true beside the path of the source"
            )
        rows, starts = listing.sorted_rows()
        with spool.open("rb") as file:
            unsorted = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _check_keys(rows, starts, unsorted)
            _write_paths(folder / PATHS_FILE, rows, starts, unsorted)
            unsorted.close()
    finally:
        spool.unlink(missing_ok=True)
    write_places(
        folder,
        Places(
            containers=listing.containers,
            content=listing.content(),
            corrupted_root=corrupted_root,
        ),
    )
    save_rows(rows, folder)
    return listing


def _nothing_found(where: str, listing: Listing) -> str:
    others = f"{listing.other_files} other files"
    advice = f"names end in one of {' '.join(sorted(PHOTOGRAPH_SUFFIXES))}"
    if listing.tars:
        others += f", {listing.tars} of them tars"
        advice = (
            "tars in a tar are not read: unpack the outer one and name the others: folder/*.tar"
            if listing.containers
            else f"tars in a folder are read by name: set the path of the source to {where}/*.tar, "
            f"or to {where}/**/*.tar if they lie deeper; unpack those of real pairs"
        )
    elif listing.parquet_files and not listing.containers:
        others += f", {listing.parquet_files} of them parquet files"
        advice = (
            "parquet files are read by name: set the path of the source to "
            f"{where}/**/*.parquet; of real pairs, only image files are read"
        )
    first = "".join(f"; {each['path']}: {each['reason']}" for each in listing.unreadable[:1])
    return f"{where}: no photograph in it, at any depth ({others}); {advice}{first}"


def _check_keys(rows: np.ndarray, starts: np.ndarray, paths: mmap.mmap) -> None:
    same = np.flatnonzero(rows["key"][1:] == rows["key"][:-1])
    if len(same):
        first, second = (
            readable(paths[starts[number] : starts[number] + rows["path_bytes"][number]])
            for number in (same[0], same[0] + 1)
        )
        what = f"{first} is there twice" if first == second else f"{first} and {second}"
        raise SourceError(f"{what}: the same key, which the name gives; rename one of them")


def _write_paths(path: Path, rows: np.ndarray, starts: np.ndarray, paths: mmap.mmap) -> None:
    ends = starts + rows["path_bytes"]
    with replacing(path) as file:
        for start, end in zip(starts, ends, strict=True):
            file.write(paths[start:end] + b"\0")


def save_rows(rows: np.ndarray, folder: Path) -> None:
    with replacing(folder / INDEX_FILE) as file:
        np.save(file, rows)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file too large to hold that is there whole, on disk, or not at all. The caller has a lock
    there; one that has lost it to another goes on in a file of its own, or fails."""
    for left in unfinished(path):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def unfinished(path: Path) -> Iterator[Path]:
    """What `replacing` writes before it is there under its name, whoever does or did."""
    return path.parent.glob(f".{glob.escape(path.name)}.*tmp")
