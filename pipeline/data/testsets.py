"""Photographs to evaluate on: corrupted and clean, paired, the same pixels in every run."""

# H W height and width of the clean image; its corrupted version is `scale` times smaller per side.

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.benchmark_folders import Found
from pipeline.config import TestSetConfig
from pipeline.corruptions.apply import corrupt
from pipeline.corruptions.bicubic import modcrop
from pipeline.corruptions.grey import with_channels
from pipeline.corruptions.keyed import generator
from pipeline.data.source import UnreadablePhotograph, read_photograph
from pipeline.data.source_index import SourceIndex
from pipeline.data.testset_pairs import (
    Fault,
    TestSetError,
    by_stem,
    folder_of_task,
    images_of,
    paired,
)
from pipeline.tasks import Task

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 11  # of the clean image after the border is cut: the window of SSIM

NO_MEMORY = "not enough memory for it"


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


class _Misfit(ValueError):  # noqa: N818 - the name says what is wrong
    """An image that can't be used; the message is the reason."""

    def __init__(self, place: object, reason: object) -> None:
        super().__init__(str(reason))
        self.fault: Fault = {"path": str(place), "reason": str(reason)}


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The images of one test set for one task, in the order of their names.

    Iterating reads one image at a time. What can't be used is left out and listed: in `skipped`
    where it is of a source's validation images, as in training; in `faults` where somebody names
    a folder as a benchmark, because a mean over fewer images is another benchmark.
    """

    items: Sequence[_Item]
    task: Task
    seed: int
    rain_layers: np.ndarray | None
    is_benchmark: bool
    unpaired: Sequence[Fault] = ()
    skipped: list[Fault] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_given(self) -> bool:
        """Whether the corrupted images are files; where not, they are made here, by the task."""
        return any(item.corrupted is not None for item in self.items)

    def __iter__(self) -> Iterator[Pair]:
        self.skipped.clear()
        self.faults[:] = self.unpaired
        for item in self.items:
            try:
                yield self._pair(item)
            except (_Misfit, MemoryError) as error:
                misfit = error if isinstance(error, _Misfit) else _Misfit(item.clean, NO_MEMORY)
                logger.warning("%(path)s: left out of the test set: %(reason)s", misfit.fault)
                (self.faults if self.is_benchmark else self.skipped).append(misfit.fault)

    def _pair(self, item: _Item) -> Pair:
        scale = self.task.scale
        clean = self._read(item.clean)
        if item.corrupted is not None:
            given = self._read(item.corrupted)
            return Pair(name=item.name, corrupted=given, clean=self._fit(clean, given, item))
        clean = modcrop(clean, scale)
        if min(clean.shape[:2]) < SMALLEST_SIDE + 2 * (scale if scale > 1 else 0):
            raise _Misfit(
                item.clean,
                f"{clean.shape[1]}×{clean.shape[0]} pixels are too few for {self.task.name}",
            )
        rng = generator("test", self.seed, self.task.name, item.name)
        corrupted = corrupt(clean, self.task.corruption, rng, rain_layers=self.rain_layers)
        return Pair(name=item.name, corrupted=corrupted, clean=clean)

    def _read(self, picture: _Picture) -> np.ndarray:
        try:
            return with_channels(picture.read(), self.task.channels)
        except UnreadablePhotograph as error:
            raise _Misfit(picture, error) from error

    def _fit(self, clean: np.ndarray, corrupted: np.ndarray, item: _Item) -> np.ndarray:
        """The clean image, cut at the bottom and right to `scale` times the corrupted one."""
        scale = self.task.scale
        height, width = (side * scale for side in corrupted.shape[:2])
        surplus = (clean.shape[0] - height, clean.shape[1] - width)
        if not all(0 <= pixels < scale for pixels in surplus):
            raise _Misfit(
                item.corrupted,
                f"{corrupted.shape[1]}×{corrupted.shape[0]} pixels, and {item.clean} "
                f"{clean.shape[1]}×{clean.shape[0]}: for {self.task.name} the clean image must be "
                f"{scale} times as large per side; check that they belong together",
            )
        if min(height, width) < SMALLEST_SIDE + 2 * (scale if scale > 1 else 0):
            raise _Misfit(item.clean, f"{width}×{height} pixels are too few for {self.task.name}")
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
    unpaired: list[Fault] = []
    if config.source is not None:
        where = f"source {config.source}"
        items = _validation_items(sources[config.source])
    else:
        assert config.path is not None  # TestSetConfig names one of the two
        where = config.path
        clean, corrupted = images_of(Path(config.path).expanduser()), None
        if config.corrupted is not None:
            corrupted = images_of(folder_of_task(Path(config.corrupted).expanduser(), task))
        items, unpaired = _folder_items(clean, corrupted, task)
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
        unpaired=unpaired,
    )


def open_benchmark(found: Found, task: Task, *, seed: int) -> TestSet:
    """A benchmark as it lies somewhere, for one task: its corrupted images, or drawn noise."""
    corrupted = None if found.corrupted is None else by_stem(found.corrupted)
    items, unpaired = _folder_items(by_stem(found.clean), corrupted, task)
    return TestSet(
        items=items, task=task, seed=seed, rain_layers=None, is_benchmark=True, unpaired=unpaired
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


def _folder_items(
    clean: Mapping[str, Path], corrupted: Mapping[str, Path] | None, task: Task
) -> tuple[list[_Item], list[Fault]]:
    """The items, and what has no partner."""
    if corrupted is None:
        return [
            _Item(name=stem, clean=_of_file(image), corrupted=None) for stem, image in clean.items()
        ], []
    pairs, faults = paired(clean, corrupted, task)
    return [
        _Item(name=name, clean=_of_file(ours), corrupted=_of_file(theirs))
        for name, (ours, theirs) in pairs.items()
    ], faults
