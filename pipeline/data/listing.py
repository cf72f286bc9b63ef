"""Lists a folder of photographs once, into the index that everything else maps.

Memory stays small (about 100 bytes a photograph): paths go straight to disk, and only keys, sizes
and offsets are held for sorting.
"""

import hashlib
import mmap
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
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


@dataclass(kw_only=True)
class Listing:
    """What a walk through the folder found."""

    keys: array = field(default_factory=lambda: array("Q"))
    sizes: array = field(default_factory=lambda: array("q"))
    lengths: array = field(default_factory=lambda: array("l"))  # of the paths, in bytes
    unreadable: list[dict[str, str]] = field(default_factory=list)
    other_files: int = 0

    def refuse(self, path: bytes, reason: str) -> None:
        self.unreadable.append({"path": readable(path), "reason": reason})


def write_index(root: Path, folder: Path, *, progress: Callable[[int], None]) -> Listing:
    """List every photograph below `root` into `folder`, sorted by key, none for validation yet."""
    spool = folder / f".{PATHS_FILE}.spool"
    try:
        with spool.open("wb") as paths:
            listing = _walk(root, paths, progress)
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


def _walk(root: Path, paths: BinaryIO, progress: Callable[[int], None]) -> Listing:
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
                        _add(listing, entry, name, paths)
                        if len(listing.keys) % REPORT_EVERY == 0:
                            progress(len(listing.keys))
        except PermissionError:
            if not relative:
                raise
            listing.refuse(relative, "permission denied")
            continue
        plain += sorted(folders, reverse=True)
    listing.unreadable.sort(key=lambda each: each["path"])
    return listing


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(b".")
    except OSError:  # a link that leads to itself
        return False


def _add(listing: Listing, entry: os.DirEntry[bytes], name: bytes, paths: BinaryIO) -> None:
    suffix = os.path.splitext(entry.name)[1].decode("latin-1").lower()
    if suffix not in PHOTOGRAPH_SUFFIXES:
        listing.other_files += 1
        return
    try:
        status = entry.stat()
    except OSError as error:
        listing.refuse(name, (error.strerror or "can't be listed").lower())
        return
    if not stat.S_ISREG(status.st_mode):
        listing.refuse(name, "not a file")
        return
    listing.keys.append(photograph_key(name))
    listing.sizes.append(status.st_size)
    listing.lengths.append(len(name))
    paths.write(name)


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
        for start, end in zip(starts, ends, strict=True):
            file.write(paths[start:end] + b"\0")


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
    unreadable: list[dict[str, str]] = []

    @cache
    def is_usable(number: int) -> bool:
        try:
            image = read_photograph(index.path(number))
        except UnreadablePhotograph as error:
            unreadable.append({"path": index.name(number), "reason": str(error)})
            return False
        return min(image.shape[:2]) >= largest_crop

    by_rank = np.argsort(mix(index.keys ^ keyed_number("validation", seed)), kind="stable")
    if held_out:
        mask = _matching(index, held_out)
    else:
        mask = np.zeros(len(index), dtype=bool)
        mask[list(islice(filter(is_usable, by_rank), validation_images))] = True
    has_validation, has_training = (
        any(is_usable(number) for number in by_rank[mask[by_rank] == side])
        for side in (True, False)
    )
    usable = int(mask.sum())
    size = f"readable and at least {largest_crop} pixels per side"
    first = "".join(f"; {each['path']}: {each['reason']}" for each in unreadable[:1])
    if held_out and not (has_validation and has_training):
        side = "matching" if not has_validation else "other"
        raise SourceError(
            f"{index.root}: held_out {', '.join(held_out)}: no {side} photograph is {size}; "
            f"training and validation need at least one each{first}"
        )
    if not has_training and usable >= 2:
        raise SourceError(
            f"{index.root}: validation_images: {validation_images} would keep all {usable} "
            f"usable photographs ({size}) out of training; use at most {usable - 1}"
        )
    if not has_training:
        raise SourceError(
            f"{index.root}: {usable} of {len(index)} photographs can be used ({size}); training "
            f"and validation need at least 2{first}"
        )
    rows = np.load(folder / INDEX_FILE)
    rows["validation"] = mask
    _save(rows, folder)
    return mask, sorted(unreadable, key=lambda each: each["path"])


def _matching(index: SourceIndex, patterns: Sequence[str]) -> np.ndarray:
    """Which relative paths match one of the patterns; every pattern must match something."""
    mask = np.zeros(len(index), dtype=bool)
    for pattern in patterns:
        matches = [
            fnmatchcase(os.fsdecode(index.relative_path(number)), pattern)
            for number in range(len(index))
        ]
        if not any(matches):
            raise SourceError(
                f"{index.root}: held_out: {pattern} matches no photograph; patterns are of paths "
                f"below the folder, such as {index.name(0)}"
            )
        mask |= matches
    return mask


def source_identity(index: SourceIndex, validation: np.ndarray) -> str:
    """What dependents are fingerprinted by: every key, size and side, wherever the files lie."""
    digest = hashlib.sha256()
    for part in (index.keys, index.sizes, validation):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
