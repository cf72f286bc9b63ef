"""Decides which photographs never enter training, and what a source is to its dependents."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.data.listing import save_rows
from pipeline.data.order import keyed_number, mix
from pipeline.data.pairs import read_as_corrupted
from pipeline.data.source import SourceError, UnreadablePhotograph
from pipeline.data.source_index import INDEX_FILE, SourceIndex

# Photographs of usable size that are looked at for one of the preferred size.
LOOKED_AT = 4


def choose_validation(
    index: SourceIndex,
    folder: Path,
    *,
    seed: int,
    validation_images: int,
    held_out: Sequence[str],
    largest_crop: int,
    preferred_crop: int,
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Mark in the index which photographs never enter training; returns the marks (n,) and what
    was found unreadable on the way.

    Those that match a pattern of `held_out`; without patterns, the `validation_images` smallest by
    a keyed hash among those that can be read and are at least `largest_crop` pixels per side; of
    the first few, those of `preferred_crop` come first. At least one that can be used must be on
    either side.
    """
    unreadable: list[dict[str, str]] = []

    @cache
    def shorter_side(number: int) -> int:
        """In pixels, 0 if it can't be read."""
        try:
            image = _readable_photograph(index, number)
        except UnreadablePhotograph as error:
            unreadable.append({"path": error.name or index.name(number), "reason": str(error)})
            return 0
        return min(image.shape[:2])

    by_rank = np.argsort(mix(index.keys ^ keyed_number("validation", seed)), kind="stable")
    if held_out:
        mask = _matching(index, held_out)
    else:
        mask = np.zeros(len(index), dtype=bool)
        ranked = (number for number in by_rank if shorter_side(number) >= largest_crop)
        mask[_first(ranked, validation_images, lambda n: shorter_side(n) >= preferred_crop)] = True
    has_validation, has_training = (
        any(shorter_side(number) >= largest_crop for number in by_rank[mask[by_rank] == side])
        for side in (True, False)
    )
    if not (has_validation and has_training):
        size = f"readable and at least {largest_crop} pixels per side"
        first = "".join(f"; {each['path']}: {each['reason']}" for each in unreadable[:1])
        usable = int(mask.sum())
        if held_out:
            side = "matching" if not has_validation else "other"
            found = f"held_out {', '.join(held_out)}: no {side} photograph is {size}; training and "
            found += f"validation need at least one each{first}"
        elif usable >= 2:
            found = f"validation_images: {validation_images} would keep all {usable} usable "
            found += f"photographs ({size}) out of training; use at most {usable - 1}"
        else:
            found = f"{usable} of {len(index)} photographs can be used ({size}); training and "
            found += f"validation need at least 2{first}"
        raise SourceError(f"{index.root}: {found}")
    rows = np.load(folder / INDEX_FILE)
    rows["validation"] = mask
    save_rows(rows, folder)
    return mask, sorted(unreadable, key=lambda each: each["path"])


def _first(ranked: Iterable[int], count: int, is_preferred: Callable[[int], bool]) -> list[int]:
    """`count` of them; of the first LOOKED_AT times as many, those that are preferred first."""
    preferred: list[int] = []
    others: list[int] = []
    for number in islice(ranked, LOOKED_AT * count):
        (preferred if is_preferred(number) else others).append(number)
        if len(preferred) == count:
            break
    return [*preferred, *others][:count]


def _readable_photograph(index: SourceIndex, number: int) -> np.ndarray:
    """The photograph, its corrupted version decoded too where there is one."""
    image = index.photograph(number)
    if index.corrupted is not None:
        partner = int(index.partners[number])
        with read_as_corrupted(index.corrupted.name(partner)):
            index.corrupted.photograph(partner, held=image.nbytes)
    return image


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
    """What dependents are fingerprinted by: every key, size, side and content, wherever the files
    lie and whenever they were written."""
    digest = hashlib.sha256(index.content.encode())
    parts = [index.keys, index.sizes, validation]
    if index.corrupted is not None:
        digest.update(index.corrupted.content.encode())
        parts += [index.corrupted.keys, index.corrupted.sizes, index.partners]
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
