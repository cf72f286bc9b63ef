"""Images of a test set that belong together, by their names: the same, or as in benchmarks."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.data.file_names import is_photograph_file
from pipeline.data.pairs import bare_name
from pipeline.data.source import readable
from pipeline.tasks import Task

Fault = dict[str, str]  # path and reason of what can't be used


class TestSetError(ValueError):
    """A test set that can't be used as it is; the message names the files."""


def folder_of_task(folder: Path, task: Task) -> Path:
    """`folder`, or the part of it for this task, as LR_bicubic/X2 or rainy/derain."""
    names = [task.name]
    if task.scale > 1:
        names += [f"X{task.scale}", f"x{task.scale}"]
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def images_of(folder: Path) -> dict[str, Path]:
    """The images that lie directly in `folder`, by stem."""
    if not folder.is_dir():
        raise TestSetError(f"{folder}: no such folder; a test set names a folder of images")
    images = by_stem(path for path in sorted(folder.iterdir()) if is_photograph_file(path))
    if not images:
        below = sorted(
            {str(each.parent) for each in folder.rglob("*") if is_photograph_file(each)}
        )[:5]
        hint = f"; there are some in {', '.join(below)}" if below else ""
        raise TestSetError(f"{folder}: no image lies directly in it{hint}")
    return images


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in paths:
        stem = readable(os.fsencode(path.stem))
        if stem in images:
            raise TestSetError(
                f"{path.parent}: {images[stem].name} and {path.name} have the same name; keep one"
            )
        images[stem] = path
    return images


def paired(
    clean: Mapping[str, Path], corrupted: Mapping[str, Path], task: Task
) -> tuple[dict[str, tuple[Path, Path]], list[Fault]]:
    """(clean, corrupted) by name, and what has no partner.

    Their names are the same, or differ as in benchmarks.
    """
    if clean.keys() != corrupted.keys():
        clean, corrupted = _by_bare_name(clean, task), _by_bare_name(corrupted, task)
    how = (
        "they are paired by name, as 001.png with 001.png, norain-001.png with rain-001.png, "
        f"baby.png with babyx{max(task.scale, 2)}.png"
    )
    faults = [
        {"path": str(there[name]), "reason": f"no {what} image for it; {how}"}
        for there, others, what in ((corrupted, clean, "clean"), (clean, corrupted, "corrupted"))
        for name in sorted(there.keys() - others.keys())
    ]
    both = sorted(clean.keys() & corrupted.keys())
    if not both:
        raise TestSetError(
            f"{next(iter(clean.values())).parent}: none of its {len(clean)} images has a corrupted "
            f"version in {next(iter(corrupted.values())).parent}; {how}"
        )
    return {name: (clean[name], corrupted[name]) for name in both}, faults


def _by_bare_name(images: Mapping[str, Path], task: Task) -> dict[str, Path]:
    bare: dict[str, Path] = {}
    for stem, path in images.items():
        name = bare_name(stem)
        if task.scale > 1:
            name = re.sub(rf"(?<=.)x{task.scale}$", "", name, flags=re.IGNORECASE)
        if name in bare:
            raise TestSetError(
                f"{path.parent}: {bare[name].name} and {path.name} both read as {name!r}; "
                "give every image a name of its own"
            )
        bare[name] = path
    return bare
