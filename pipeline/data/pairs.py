"""Real pairs: every clean photograph and its corrupted version, matched by name, cut alike."""

import os
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.folders import list_folder
from pipeline.data.listing import Listing, replacing, write_index
from pipeline.data.source import SourceError, UnreadablePhotograph
from pipeline.data.source_index import (
    CORRUPTED_FOLDER,
    PARTNERS_FILE,
    SourceIndex,
    photograph_key,
)

NAMED = 5  # in a message; the rest is counted

# How published benchmarks mark the two sides of a pair: norain-001 and rain-001 (Rain100L),
# 1_GT and 1_in (Rain12), img_001_SRF_4_HR and img_001_SRF_4_LR (SelfExSR), babyx2 (Set5).
_PREFIX = re.compile(r"^(no)?rain[-_](?=.)", re.IGNORECASE)
_SUFFIX = re.compile(r"(?<=.)[-_](hr|lr|gt|in|clean|noisy|rainy|rain|norain)$", re.IGNORECASE)
_SCALE = re.compile(r"(?<=.)x[2-8]$", re.IGNORECASE)


class PairError(ValueError):
    """Two photographs that can't be a pair; the message names them and says what to do."""


def bare_name(stem: str) -> str:
    """`stem` without what marks a side of a pair, the scale left on it."""
    return _SUFFIX.sub("", _PREFIX.sub("", stem))


def write_pairs(
    clean: Path,
    corrupted: Path,
    folder: Path,
    *,
    progress: Callable[[int, str], None],
    skip_damaged: bool,
) -> Listing:
    """List both folders into `folder` and write which photographs are a pair."""
    if clean.samefile(corrupted):
        raise SourceError(
            f"{clean}: is both clean and corrupted; name two folders, moving the photographs apart "
            "where they lie side by side"
        )
    below = folder / CORRUPTED_FOLDER
    below.mkdir(exist_ok=True)
    others = write_index(
        str(corrupted),
        below,
        partial(list_folder, root=corrupted),
        progress=progress,
        skip_damaged=skip_damaged,
    )
    listing = write_index(
        str(clean),
        folder,
        partial(list_folder, root=clean),
        progress=progress,
        corrupted_root=str(corrupted),
        skip_damaged=skip_damaged,
    )
    listing.folder_times |= others.folder_times
    listing.repeated_links += others.repeated_links
    listing.lost += others.lost
    for each in others.unreadable:
        listing.unreadable.append(each | {"path": corrupted_name(each["path"])})
    partners = match_pairs(SourceIndex(folder, clean), SourceIndex(below, corrupted))
    with replacing(folder / PARTNERS_FILE) as file:
        np.save(file, partners)
    return listing


def corrupted_name(name: str) -> str:
    """What a photograph is called beside the clean ones."""
    return f"{CORRUPTED_FOLDER}: {name}"


@contextmanager
def read_as_corrupted(name: str) -> Iterator[None]:
    """A photograph that can't be read here is the corrupted one of that name."""
    try:
        yield
    except UnreadablePhotograph as error:
        error.name = corrupted_name(name)
        raise


def match_pairs(clean: SourceIndex, corrupted: SourceIndex) -> np.ndarray:
    """(n,) the number in `corrupted` of each photograph of `clean`.

    They have the same path up to the suffix, or paths whose last part differs as in benchmarks.
    """
    ways = ((_stem, _stem), (_bare_path, _bare_path), (_bare_path, _bare_small_path))
    for name, corrupted_name in ways:
        sides = _hashed(clean, name), _hashed(corrupted, corrupted_name)
        if np.array_equal(np.unique(sides[0]), np.unique(sides[1])):
            break
    _check_names(clean, corrupted, *sides)
    by_hash = np.argsort(sides[1])
    return by_hash[np.searchsorted(sides[1], sides[0], sorter=by_hash)].astype("<i8")


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _bare_path(path: str) -> str:
    folder, stem = os.path.split(_stem(path))
    return os.path.join(folder, bare_name(stem))


def _bare_small_path(path: str) -> str:
    return _SCALE.sub("", _bare_path(path))


def _hashed(index: SourceIndex, name: Callable[[str], str]) -> np.ndarray:
    """(n,) what is compared: 64 bits a photograph, as millions of names would fill the memory."""
    paths = (os.fsdecode(index.relative_path(number)) for number in range(len(index)))
    hashes = array("Q", (photograph_key(os.fsencode(name(path))) for path in paths))
    return np.asarray(hashes, dtype="<u8")


def _check_names(
    clean: SourceIndex, corrupted: SourceIndex, of_clean: np.ndarray, of_corrupted: np.ndarray
) -> None:
    problems = []
    for index, ours, others, what in (
        (corrupted, of_corrupted, of_clean, "no clean photograph"),
        (clean, of_clean, of_corrupted, "no corrupted photograph"),
    ):
        by_hash = np.argsort(ours, kind="stable")
        twice = by_hash[:-1][ours[by_hash[1:]] == ours[by_hash[:-1]]]
        if len(twice):
            same = np.flatnonzero(ours == ours[twice[0]])[:2]
            names = " and ".join(index.name(int(number)) for number in same)
            raise SourceError(
                f"{index.root}: {names} read as the same name; give every photograph its own"
            )
        alone = np.flatnonzero(~np.isin(ours, others))
        if len(alone):
            names = ", ".join(sorted(index.name(int(number)) for number in alone[:NAMED]))
            more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
            problems.append(f"{what} for {names}{more}")
    if problems:
        raise SourceError(
            f"{clean.root}, {corrupted.root}: {'; '.join(problems)}. Pairs are matched by name, as "
            "a/001.png with a/001.png, norain-001.png with rain-001.png, baby.png with babyx2.png"
        )


def check_sizes(clean: np.ndarray, corrupted: np.ndarray, *, scale: int, names: str) -> None:
    """Both are (height, width, 3); up to `scale` - 1 pixels of `clean` may be left over."""
    for side, small in zip(clean.shape[:2], corrupted.shape[:2], strict=True):
        if not 0 <= side - scale * small < scale:
            sizes = (f"{image.shape[1]}×{image.shape[0]}" for image in (clean, corrupted))
            raise PairError(
                f"{names}: {' and '.join(sizes)} pixels, but the clean photograph must be {scale} "
                "times as large per side; check that they belong together and to this task"
            )
