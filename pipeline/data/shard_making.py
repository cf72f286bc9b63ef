"""Makes one shard from photographs: what a worker of the corrupt stage does. Never imports torch.

A shard's content depends on the source, the task, the settings and its number; not on who makes it
nor on what was made before.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import JSON
from pipeline.corruptions.apply import corrupt_crop, drawn
from pipeline.corruptions.bicubic import modcrop
from pipeline.corruptions.grey import with_channels
from pipeline.corruptions.keyed import generator
from pipeline.data.order import keyed_number, permute
from pipeline.data.pairs import check_sizes
from pipeline.data.rain_bank import open_layers
from pipeline.data.shards import Format, ShardRecord, ShardWriter, shard_name, writing_shard
from pipeline.data.source import UnreadablePhotograph
from pipeline.data.source_index import SourceIndex
from pipeline.tasks import Task


class MakingStopped(Exception):  # noqa: N818 - another shard failed, not this one
    """Told to stop: what was begun is discarded."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Everything that the content of a task's shards depends on, and where things lie."""

    folder: Path  # of the shards
    index_folder: Path
    root: Path  # of the photographs
    rain_layers: Path | None  # the bank's folder
    task: Task
    seed: int
    crops_per_image: int
    patch_size: int  # of the corrupted image
    samples_per_shard: int
    image_format: Format

    @property
    def crop_size(self) -> int:
        """Pixels per side of the clean crops."""
        return self.patch_size * self.task.scale


@dataclass(frozen=True, kw_only=True)
class ShardUnit:
    """One shard to make: photographs `first` to `end` of its split, in the dealt order."""

    split: str
    number: int
    first: int
    end: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)


def plan_shards(photographs: int, validation: int, settings: ShardSettings) -> list[ShardUnit]:
    """All shards: those of training, as even as can be, and one of validation.

    The validation crops are for watching a training, so that one shard is enough however many
    photographs are held out; evaluation reads the photographs themselves.
    """
    each = max(1, settings.samples_per_shard // settings.crops_per_image)
    training = photographs - validation
    count = math.ceil(training / each)
    units = [
        ShardUnit(
            split="train",
            number=number,
            first=number * training // count,
            end=(number + 1) * training // count,
        )
        for number in range(count)
    ]
    last = ShardUnit(split="validation", number=0, first=0, end=min(validation, each))
    return [*units, last]


def make_shard(
    settings: ShardSettings,
    unit: ShardUnit,
    *,
    after_image: Callable[[], None],
) -> ShardRecord:
    """Write the shard and its record. `after_image` may raise MakingStopped."""
    index = SourceIndex(settings.index_folder, settings.root)
    layers = None
    if settings.rain_layers is not None:
        layers = open_layers(settings.rain_layers, held_out=unit.split == "validation")
    skipped = []
    with writing_shard(settings.folder, unit.name, image_format=settings.image_format) as writer:
        for number in _dealt(index, unit, settings):
            try:
                photograph = _read(index, number, smallest_side=settings.crop_size)
                image = with_channels(photograph, settings.task.channels)
                partner = _read_partner(index, number, image, settings)
            except UnreadablePhotograph as reason:
                record = {"path": index.name(number), "kind": reason.kind, "reason": str(reason)}
                skipped.append(record)
            else:
                for crop in range(settings.crops_per_image):
                    _add_crop(writer, index, number, (image, partner), crop, settings, layers)
            after_image()
        return writer.finish(skipped)


def _dealt(index: SourceIndex, unit: ShardUnit, settings: ShardSettings) -> list[int]:
    """The photographs of a shard: the seed deals them, so that every shard is like every other."""
    of_split = np.flatnonzero(index.validation == (unit.split == "validation"))
    places = np.arange(unit.first, unit.end)
    key = keyed_number("deal", settings.seed, settings.task.name, unit.split)
    dealt = permute(places, np.full_like(places, len(of_split)), np.full(len(places), key))
    return of_split[dealt].tolist()


def _read(index: SourceIndex, number: int, *, smallest_side: int) -> np.ndarray:
    """The photograph, if it is still the one that was listed and large enough for a crop."""
    image = index.photograph(number)
    height, width = image.shape[:2]
    if min(height, width) < smallest_side:
        raise UnreadablePhotograph(
            f"smaller than a crop of {smallest_side} pixels ({width}×{height})"
        )
    return image


def _read_partner(
    index: SourceIndex, number: int, clean: np.ndarray, settings: ShardSettings
) -> np.ndarray | None:
    """The corrupted version that a source of real pairs has of the photograph."""
    if index.corrupted is None:
        return None
    partner = int(index.partners[number])
    corrupted = _read(index.corrupted, partner, smallest_side=settings.patch_size)
    names = f"{index.place(number)} and {index.corrupted.place(partner)}"
    check_sizes(clean, corrupted, scale=settings.task.scale, names=names)
    return with_channels(corrupted, settings.task.channels)


def _add_crop(
    writer: ShardWriter,
    index: SourceIndex,
    number: int,
    photographs: tuple[np.ndarray, np.ndarray | None],
    crop: int,
    settings: ShardSettings,
    rain_layers: np.ndarray | None,
) -> None:
    """One crop of a clean photograph, corrupted here; or with the same region of its partner."""
    task, scale, size = settings.task, settings.task.scale, settings.crop_size
    image, partner = photographs
    key = index.key(number)
    rng = generator("crop", settings.seed, key, task.name, crop)
    # Positions are multiples of the scale, so that the small image's pixels are the same as if
    # the whole image were resized.
    top, left = (
        scale * int(rng.integers(side // scale - settings.patch_size + 1))
        for side in image.shape[:2]
    )
    images, corruption = {"clean": image[top : top + size, left : left + size]}, task.corruption
    if partner is not None:
        region = partner[top // scale :, left // scale :]
        images["corrupted"] = region[: settings.patch_size, : settings.patch_size]
        parameters: dict[str, JSON] = {"corruption": "given"}
    else:
        if task.stores_corrupted:
            corruption = drawn(corruption, rng)
            images["clean"], images["corrupted"] = corrupt_crop(
                modcrop(image, scale),
                corruption,
                rng,
                top=top,
                left=left,
                patch_size=settings.patch_size,
                rain_layers=rain_layers,
            )
        parameters = {"corruption": type(corruption).__name__, **asdict(corruption)}
    description: dict[str, JSON] = {
        "source": index.name(number),
        "box": [top, left, size, size],  # top, left, height, width in the photograph
        "task": task.name,
        "seed": settings.seed,
        "parameters": parameters,
    }
    writer.add(f"{key}-{crop}", images, description)
