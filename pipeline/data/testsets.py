"""Photographs to evaluate on: corrupted and clean, paired, the same pixels in every run."""

# H W height and width of the clean image; its corrupted version is `scale` times smaller per side.

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config import TestSetConfig
from pipeline.corruptions.apply import corrupt
from pipeline.corruptions.bicubic import modcrop
from pipeline.corruptions.grey import with_channels
from pipeline.corruptions.keyed import generator
from pipeline.data.pairs import bare_name
from pipeline.data.source import (
    UnreadablePhotograph,
    is_photograph_file,
    read_photograph,
    readable,
)
from pipeline.data.source_index import SourceIndex
from pipeline.tasks import Task

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 11  # of the clean image after the border is cut: the window of SSIM


class TestSetError(ValueError):
    """A test set that can't be used as it is; the message names the files."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One test image, both (height, width, C): RGB, or grey for the tasks that are.

    `clean` is uint8. `corrupted` is uint8 too, or float32 in [0, 1] for drawn noise, which may
    leave that range where the task doesn't clip.
    """

    name: str
    corrupted: np.ndarray
    clean: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Picture:
    place: str  # for messages
    read: Callable[[], np.ndarray]

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True, kw_only=True)
class _Item:
    name: str
    clean: _Picture
    corrupted: _Picture | None  # None: corrupted here, in the task's way


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The images of one test set for one task, in the order of their names.

    Iterating reads one image at a time. What can't be used in a source's validation images is
    left out and listed in `skipped`, as in training; in a folder that somebody names as a
    benchmark it is an error, because a mean over fewer images is another benchmark.
    """

    items: Sequence[_Item]
    task: Task
    seed: int
    rain_layers: np.ndarray | None
    is_benchmark: bool
    skipped: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_given(self) -> bool:
        """Whether the corrupted images are files; where not, they are made here, by the task."""
        return any(item.corrupted is not None for item in self.items)

    def __iter__(self) -> Iterator[Pair]:
        self.skipped.clear()
        for item in self.items:
            try:
                yield self._read(item)
            except UnreadablePhotograph as error:
                if self.is_benchmark:
                    raise TestSetError(
                        f"{item.clean}: {error}; repair the file or take it out of the test set"
                    ) from error
                logger.warning("%s: left out of the test set: %s", item.clean, error)
                self.skipped.append({"path": str(item.clean), "reason": str(error)})

    def _read(self, item: _Item) -> Pair:
        scale = self.task.scale
        clean = with_channels(item.clean.read(), self.task.channels)
        if item.corrupted is not None:
            given = with_channels(item.corrupted.read(), self.task.channels)
            return Pair(name=item.name, corrupted=given, clean=self._fit(clean, given, item))
        clean = modcrop(clean, scale)
        if min(clean.shape[:2]) < SMALLEST_SIDE + 2 * (scale if scale > 1 else 0):
            raise UnreadablePhotograph(
                f"{clean.shape[1]}×{clean.shape[0]} pixels are too few for {self.task.name}"
            )
        rng = generator("test", self.seed, self.task.name, item.name)
        corrupted = corrupt(clean, self.task.corruption, rng, rain_layers=self.rain_layers)
        return Pair(name=item.name, corrupted=corrupted, clean=clean)

    def _fit(self, clean: np.ndarray, corrupted: np.ndarray, item: _Item) -> np.ndarray:
        """The clean image, cut at the bottom and right to `scale` times the corrupted one."""
        scale = self.task.scale
        height, width = (side * scale for side in corrupted.shape[:2])
        surplus = (clean.shape[0] - height, clean.shape[1] - width)
        if not all(0 <= pixels < scale for pixels in surplus):
            raise TestSetError(
                f"{item.corrupted} is {corrupted.shape[1]}×{corrupted.shape[0]} pixels and "
                f"{item.clean} {clean.shape[1]}×{clean.shape[0]}: for {self.task.name} the clean "
                f"image must be {scale} times as large per side; check that they belong together"
            )
        return clean[:height, :width]


def open_test_set(
    config: TestSetConfig,
    task: Task,
    *,
    seed: int,
    sources: Mapping[str, SourceIndex],
    rain_layers: np.ndarray | None = None,
) -> TestSet:
    """The test set that `config` names, for one task.

    Noise and rain are one fixed draw per (seed, task, image name): every model meets the same
    pixels. `rain_layers` is the bank of the rain-layers stage, (n, size, size) uint8.
    """
    if config.source is not None:
        where = f"source {config.source}"
        items = _validation_items(sources[config.source])
    else:
        assert config.path is not None  # TestSetConfig names one of the two
        where = config.path
        items = _folder_items(config.path, config.corrupted, task)
    if not items:
        raise TestSetError(f"{where}: no image to evaluate on; add at least one")
    is_drawn_here = any(item.corrupted is None for item in items)
    if task.needs_rain_layers and is_drawn_here and rain_layers is None:
        raise TestSetError(f"{where}: {task.name} needs the layers of the rain-layers stage")
    return TestSet(
        items=items,
        task=task,
        seed=seed,
        rain_layers=rain_layers,
        is_benchmark=config.source is None,
    )


def _validation_items(index: SourceIndex) -> list[_Item]:
    numbers = np.flatnonzero(index.validation).tolist()
    names = [Path(index.name(number)) for number in numbers]
    stems = Counter(name.stem for name in names)
    items = [
        _Item(
            # The same stem twice: the relative path tells them apart.
            name=name.stem if stems[name.stem] == 1 else name.as_posix(),
            clean=_indexed(index, number),
            corrupted=(
                _indexed(index.corrupted, int(index.partners[number]))
                if index.corrupted is not None
                else None
            ),
        )
        for number, name in zip(numbers, names, strict=True)
    ]
    return sorted(items, key=lambda item: item.name)


def _indexed(index: SourceIndex, number: int) -> _Picture:
    return _Picture(place=index.place(number), read=partial(index.photograph, number))


def _of_file(path: Path) -> _Picture:
    return _Picture(place=str(path), read=partial(read_photograph, path))


def _folder_items(path: str, corrupted: str | None, task: Task) -> list[_Item]:
    folder = Path(path).expanduser()
    clean = _images_of(folder)
    if corrupted is None:
        return [
            _Item(name=stem, clean=_of_file(image), corrupted=None) for stem, image in clean.items()
        ]
    part = _folder_of_task(Path(corrupted).expanduser(), task)
    return _paired(clean, folder, _images_of(part), task)


def _folder_of_task(folder: Path, task: Task) -> Path:
    """`folder`, or the part of it for this task, as LR_bicubic/X2 or rainy/derain."""
    names = [task.name]
    if task.scale > 1:
        names += [f"X{task.scale}", f"x{task.scale}"]
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _images_of(folder: Path) -> dict[str, Path]:
    """The images that lie directly in `folder`, by stem."""
    if not folder.is_dir():
        raise TestSetError(f"{folder}: no such folder; a test set names a folder of images")
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_photograph_file(path):
            continue
        stem = readable(os.fsencode(path.stem))
        if stem in images:
            raise TestSetError(
                f"{folder}: {images[stem].name} and {path.name} have the same name; keep one"
            )
        images[stem] = path
    if not images:
        below = sorted(
            {str(each.parent) for each in folder.rglob("*") if is_photograph_file(each)}
        )[:5]
        hint = f"; there are some in {', '.join(below)}" if below else ""
        raise TestSetError(f"{folder}: no image lies directly in it{hint}")
    return images


def _paired(
    clean: Mapping[str, Path], folder: Path, corrupted: Mapping[str, Path], task: Task
) -> list[_Item]:
    """Clean and corrupted images of the same name, or of names that differ as in benchmarks."""
    if clean.keys() != corrupted.keys():
        clean, corrupted = _by_bare_name(clean, task), _by_bare_name(corrupted, task)
    problems = []
    for missing, there, what in (
        (corrupted.keys() - clean.keys(), corrupted, "no clean image"),
        (clean.keys() - corrupted.keys(), clean, "no corrupted image"),
    ):
        if missing:
            names = sorted(there[name].name for name in missing)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{what} for {', '.join(names[:5])}{more}")
    if problems:
        raise TestSetError(
            f"{folder}: {'; '.join(problems)}. They are paired by name, as 001.png with 001.png, "
            f"norain-001.png with rain-001.png, baby.png with babyx{max(task.scale, 2)}.png"
        )
    return [
        _Item(name=name, clean=_of_file(clean[name]), corrupted=_of_file(corrupted[name]))
        for name in sorted(clean)
    ]


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
