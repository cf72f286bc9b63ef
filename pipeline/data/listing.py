"""Lists a folder of photographs once, into the index that everything else maps.

Memory stays small (about 100 bytes a photograph): paths go straight to disk, and only keys, sizes
and offsets are held for sorting.
"""

import fnmatch
import hashlib
import mmap
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.artifacts import sync_folder
from pipeline.data.order import keyed_number, mix
from pipeline.data.source import (
    INDEX_FILE,
    INDEX_ROW,
    PATHS_FILE,
    PHOTOGRAPH_SUFFIXES,
    SourceError,
    SourceIndex,
    UnreadablePhotograph,
    photograph_key,
    read_photograph,
    readable,
)

REPORT_EVERY = 1000  # photographs between two calls of progress
PATHS_AT_ONCE = 65536


@dataclass(kw_only=True)
class Listing:
    """What a walk through the folder found."""

    keys: array = field(default_factory=lambda: array("Q"))
    sizes: array = field(default_factory=lambda: array("q"))
    lengths: array = field(default_factory=lambda: array("l"))  # of the paths, in bytes
    unreadable: list[dict[str, str]] = field(default_factory=list)
    other_files: int = 0


def write_index(root: Path, folder: Path, *, progress: Callable[[int], None]) -> Listing:
    """List every photograph below `root` into `folder`, sorted by key, none for validation yet."""
    spool = folder / f".{PATHS_FILE}.spool"
    try:
        with spool.open("wb") as paths:
            listing = _walk(root, paths.write, progress)
        if not listing.keys:
            raise SourceError(
                f"{root}: no photograph in it, at any depth ({listing.other_files} other files); "
                f"names end in one of {' '.join(sorted(PHOTOGRAPH_SUFFIXES))}"
            )
        rows, starts = _sorted_rows(listing)
        with spool.open("rb") as file:
            unsorted = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _check_keys(rows, starts, unsorted)
            _write_paths(folder / PATHS_FILE, rows, starts, unsorted)
            unsorted.close()
    finally:
        spool.unlink(missing_ok=True)
    _save(rows, folder)
    return listing


def _walk(root: Path, write: Callable[[bytes], object], progress: Callable[[int], None]) -> Listing:
    """Every folder once: those reached through a link after all others, so that the path by which
    a photograph is known depends on the tree alone and a loop of links comes to an end."""
    base = os.fsencode(root)
    listing = Listing()
    visited: set[tuple[int, int]] = set()
    plain, linked = [b""], list[bytes]()
    while plain or linked:
        if not plain:
            linked.sort(reverse=True)
        relative = (plain or linked).pop()
        here = os.path.join(base, relative) if relative else base
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            folders: list[bytes] = []
            with os.scandir(here) as entries:
                for entry in entries:
                    name = os.path.join(relative, entry.name)
                    if _is_folder(entry):
                        (linked if entry.is_symlink() else folders).append(name)
                    elif not entry.name.startswith(b"."):
                        _add(listing, entry, name, write)
                        if len(listing.keys) % REPORT_EVERY == 0:
                            progress(len(listing.keys))
        except PermissionError:
            if not relative:
                raise
            listing.unreadable.append({"path": readable(relative), "reason": "permission denied"})
            continue
        plain += sorted(folders, reverse=True)
    listing.unreadable.sort(key=lambda each: each["path"])
    return listing


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(b".")
    except OSError:  # a link that leads to itself
        return False


def _add(
    listing: Listing, entry: os.DirEntry[bytes], name: bytes, write: Callable[[bytes], object]
) -> None:
    suffix = os.path.splitext(entry.name)[1].decode("latin-1").lower()
    if suffix not in PHOTOGRAPH_SUFFIXES:
        listing.other_files += 1
        return
    try:
        is_file, size = entry.is_file(), entry.stat().st_size
    except OSError as error:
        reason = (error.strerror or "can't be listed").lower()
        listing.unreadable.append({"path": readable(name), "reason": reason})
        return
    if not is_file:
        listing.unreadable.append({"path": readable(name), "reason": "not a file"})
        return
    listing.keys.append(photograph_key(name))
    listing.sizes.append(size)
    listing.lengths.append(len(name))
    write(name)


def _sorted_rows(listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """The index by key, and for each of its rows where the path begins in the spool."""
    keys = np.asarray(listing.keys, dtype="<u8")
    lengths = np.asarray(listing.lengths, dtype="<i8")
    by_key = np.argsort(keys, kind="stable")
    rows = np.zeros(len(keys), dtype=INDEX_ROW)
    rows["key"] = keys[by_key]
    rows["size"] = np.asarray(listing.sizes, dtype="<i8")[by_key]
    rows["path_bytes"] = lengths[by_key]
    rows["path_offset"] = np.cumsum(lengths[by_key] + 1) - (lengths[by_key] + 1)
    return rows, (np.cumsum(lengths) - lengths)[by_key]


def _check_keys(rows: np.ndarray, starts: np.ndarray, paths: mmap.mmap) -> None:
    same = np.flatnonzero(rows["key"][1:] == rows["key"][:-1])
    if len(same):
        first, second = (
            readable(paths[starts[number] : starts[number] + rows["path_bytes"][number]])
            for number in (same[0], same[0] + 1)
        )
        raise SourceError(f"{first} and {second} have the same key; rename one of them")


def _write_paths(path: Path, rows: np.ndarray, starts: np.ndarray, paths: mmap.mmap) -> None:
    ends = starts + rows["path_bytes"]
    with _replacing(path) as file:
        for first in range(0, len(rows), PATHS_AT_ONCE):
            part = slice(first, first + PATHS_AT_ONCE)
            pairs = zip(starts[part].tolist(), ends[part].tolist(), strict=True)
            file.write(b"".join(paths[start:end] + b"\0" for start, end in pairs))


def _save(rows: np.ndarray, folder: Path) -> None:
    with _replacing(folder / INDEX_FILE) as file:
        np.save(file, rows)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file too large to hold that is there whole, on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


class _Usable:
    """Whether a photograph can be read and is large enough; asks each file once."""

    def __init__(self, index: SourceIndex, largest_crop: int) -> None:
        self._index = index
        self._largest_crop = largest_crop
        self._known: dict[int, bool] = {}
        self.unreadable: list[dict[str, str]] = []

    def __call__(self, number: int) -> bool:
        if number not in self._known:
            self._known[number] = self._ask(number)
        return self._known[number]

    def _ask(self, number: int) -> bool:
        try:
            height, width = read_photograph(self._index.path(number)).shape[:2]
        except UnreadablePhotograph as error:
            self.unreadable.append({"path": self._index.name(number), "reason": str(error)})
            return False
        return min(height, width) >= self._largest_crop


def choose_validation(
    index: SourceIndex,
    folder: Path,
    *,
    seed: int,
    validation_images: int,
    held_out: Sequence[str],
    largest_crop: int,
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Mark in the index which photographs never enter training; returns the marks (n,) and what
    was found unreadable on the way.

    Those that match a pattern of `held_out`; without patterns, the `validation_images` smallest by
    a keyed hash among those that can be read and are at least `largest_crop` pixels per side. At
    least one such photograph must be on either side.
    """
    is_usable = _Usable(index, largest_crop)
    ranks = mix(index.keys ^ keyed_number("validation", seed))
    by_rank = np.argsort(ranks, kind="stable")
    if held_out:
        mask = _matching(index, held_out)
        has_validation = any(is_usable(number) for number in by_rank if mask[number])
    else:
        mask = np.zeros(len(index), dtype=bool)
        mask[list(islice(filter(is_usable, by_rank), validation_images))] = True
        has_validation = bool(mask.any())
    has_training = any(is_usable(number) for number in by_rank if not mask[number])
    if not (has_validation and has_training):
        size = f"readable and at least {largest_crop} pixels per side"
        first = "".join(f"; {each['path']}: {each['reason']}" for each in is_usable.unreadable[:1])
        if held_out:
            side = "matching" if not has_validation else "other"
            raise SourceError(
                f"{index.root}: held_out {', '.join(held_out)}: no {side} photograph is {size}; "
                f"training and validation need at least one each{first}"
            )
        usable = int(mask.sum())
        if usable >= 2:
            raise SourceError(
                f"{index.root}: validation_images: {validation_images} would keep all {usable} "
                f"usable photographs ({size}) out of training; use at most {usable - 1}"
            )
        raise SourceError(
            f"{index.root}: {usable} of {len(index)} photographs can be used ({size}); training "
            f"and validation need at least 2{first}"
        )
    rows = np.load(folder / INDEX_FILE)
    rows["validation"] = mask
    _save(rows, folder)
    return mask, sorted(is_usable.unreadable, key=lambda each: each["path"])


def _matching(index: SourceIndex, patterns: Sequence[str]) -> np.ndarray:
    """Which relative paths match one of the patterns; every pattern must match something."""
    mask = np.zeros(len(index), dtype=bool)
    expressions = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
    unused = set(range(len(patterns)))
    for number in range(len(index)):
        path = os.fsdecode(index.relative_path(number))
        for place, expression in enumerate(expressions):
            if expression.match(path):
                mask[number] = True
                unused.discard(place)
    if unused:
        names = ", ".join(patterns[place] for place in sorted(unused))
        raise SourceError(
            f"{index.root}: held_out: {names} matches no photograph; patterns are of paths below "
            f"the folder, such as {index.name(0)}"
        )
    return mask


def source_identity(index: SourceIndex, validation: np.ndarray) -> str:
    """What dependents are fingerprinted by: every key, size and side, wherever the files lie."""
    digest = hashlib.sha256()
    for part in (index.keys, index.sizes, validation):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
