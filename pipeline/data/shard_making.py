"""Makes one shard from photographs: what a worker of the corrupt stage does. Never imports torch.

A shard's content depends on the source, the task, the settings and its number; not on who makes it
nor on what was made before.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import JSON
from pipeline.corruptions.apply import corrupt_crop, drawn
from pipeline.corruptions.bicubic import modcrop
from pipeline.corruptions.grey import with_channels
from pipeline.corruptions.keyed import generator
from pipeline.data.order import keyed_number, permute
from pipeline.data.pairs import check_sizes, read_as_corrupted
from pipeline.data.rain_bank import open_layers
from pipeline.data.shards import Format, ShardRecord, ShardWriter, shard_name, writing_shard
from pipeline.data.source import UnreadablePhotograph
from pipeline.data.source_index import SourceIndex
from pipeline.tasks import Corruption, Task

# How many crops are made together, and of how many bytes of photographs: a large one waits alone.
CROPS_TOGETHER = 64
BYTES_TOGETHER = 2**23


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


@dataclass(frozen=True, kw_only=True)
class Photograph:
    key: str
    name: str
    clean: np.ndarray  # (H, W, C)
    corrupted: np.ndarray | None  # in a source of real pairs; smaller by the task's scale


@dataclass(frozen=True, kw_only=True)
class Crop:
    name: str
    photograph: Photograph
    top: int  # in the clean photograph
    left: int
    corruption: Corruption
    layer: int | None  # of the rain's bank
    rng: np.random.Generator  # of all crops of the photograph; the corruption draws from it in turn


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
    read: list[Photograph] = []
    with writing_shard(settings.folder, unit.name, image_format=settings.image_format) as writer:
        for number in _dealt(index, unit, settings):
            try:
                read.append(_read_pair(index, number, settings))
            except UnreadablePhotograph as reason:
                name = reason.name or index.name(number)
                skipped.append({"path": name, "kind": reason.kind, "reason": str(reason)})
            if _is_enough(read, settings):
                _add_crops(writer, read, settings, layers)
                read = []
            after_image()
        _add_crops(writer, read, settings, layers)
        return writer.finish(skipped)


def _dealt(index: SourceIndex, unit: ShardUnit, settings: ShardSettings) -> list[int]:
    """The photographs of a shard: the seed deals them, so that every shard is like every other."""
    of_split = np.flatnonzero(index.validation == (unit.split == "validation"))
    places = np.arange(unit.first, unit.end)
    key = keyed_number("deal", settings.seed, settings.task.name, unit.split)
    dealt = permute(places, np.full_like(places, len(of_split)), np.full(len(places), key))
    return of_split[dealt].tolist()


def _read_pair(index: SourceIndex, number: int, settings: ShardSettings) -> Photograph:
    """A photograph with, in a source of real pairs, its corrupted version."""
    channels = settings.task.channels
    clean = with_channels(_read(index, number, smallest_side=settings.crop_size), channels)
    corrupted = None
    if index.corrupted is not None:
        partner = int(index.partners[number])
        with read_as_corrupted(index.corrupted.name(partner)):
            corrupted = _read(
                index.corrupted, partner, smallest_side=settings.patch_size, held=clean.nbytes
            )
        names = f"{index.place(number)} and {index.corrupted.place(partner)}"
        check_sizes(clean, corrupted, scale=settings.task.scale, names=names)
        corrupted = with_channels(corrupted, channels)
    return Photograph(
        key=index.key(number), name=index.name(number), clean=clean, corrupted=corrupted
    )


def _read(index: SourceIndex, number: int, *, smallest_side: int, held: int = 0) -> np.ndarray:
    """The photograph, if it is still the one that was listed and large enough for a crop."""
    image = index.photograph(number, held=held)
    height, width = image.shape[:2]
    if min(height, width) < smallest_side:
        raise UnreadablePhotograph(
            f"smaller than a crop of {smallest_side} pixels ({width}×{height})"
        )
    return image


def _is_enough(photographs: list[Photograph], settings: ShardSettings) -> bool:
    crops = len(photographs) * settings.crops_per_image
    return crops >= CROPS_TOGETHER or sum(each.clean.size for each in photographs) >= BYTES_TOGETHER


def _add_crops(
    writer: ShardWriter,
    photographs: list[Photograph],
    settings: ShardSettings,
    rain_layers: np.ndarray | None,
) -> None:
    """The crops of some photographs, step by step for all of them: a processor repeats a step in
    half to two thirds of the time that it takes after other steps."""
    layers = 0 if rain_layers is None else len(rain_layers)
    crops = [
        crop
        for photograph in photographs
        for crop in _draw_crops(photograph, settings, rain_layers=layers)
    ]
    images = [_cut_crop(crop, settings, rain_layers) for crop in crops]
    for crop, pictures in zip(crops, images, strict=True):
        writer.add(crop.name, pictures, _describe(crop, settings))


def _draw_crops(
    photograph: Photograph, settings: ShardSettings, *, rain_layers: int
) -> Iterator[Crop]:
    """The crops of a photograph, all from one generator: it takes longer to make than to ask."""
    task, scale, count = settings.task, settings.task.scale, settings.crops_per_image
    rng = generator("crops", settings.seed, photograph.key, task.name)
    # Positions are multiples of the scale, so that the small image's pixels are the same as if
    # the whole image were resized.
    places = [side // scale - settings.patch_size + 1 for side in photograph.clean.shape[:2]]
    positions = (scale * rng.integers(places, size=(count, 2))).tolist()
    layers = rng.integers(rain_layers, size=count).tolist() if rain_layers else [None] * count
    is_drawn = photograph.corrupted is None and task.stores_corrupted
    for number, ((top, left), layer) in enumerate(zip(positions, layers, strict=True)):
        yield Crop(
            name=f"{photograph.key}-{number}",
            photograph=photograph,
            top=top,
            left=left,
            corruption=drawn(task.corruption, rng) if is_drawn else task.corruption,
            layer=layer,
            rng=rng,
        )


def _cut_crop(
    crop: Crop, settings: ShardSettings, rain_layers: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The clean crop, and what is stored beside it: corrupted here, or the same region of the
    photograph's corrupted version."""
    top, left, scale, size = crop.top, crop.left, settings.task.scale, settings.crop_size
    if rain_layers is not None and crop.layer is not None:
        rain_layers = rain_layers[crop.layer : crop.layer + 1]
    clean, corrupted = crop.photograph.clean, crop.photograph.corrupted
    images = {"clean": clean[top : top + size, left : left + size]}
    if corrupted is not None:
        region = corrupted[top // scale :, left // scale :]
        images["corrupted"] = region[: settings.patch_size, : settings.patch_size]
    elif settings.task.stores_corrupted:
        images["clean"], images["corrupted"] = corrupt_crop(
            modcrop(clean, scale),
            crop.corruption,
            crop.rng,
            top=top,
            left=left,
            patch_size=settings.patch_size,
            rain_layers=rain_layers,
        )
    return images


def _describe(crop: Crop, settings: ShardSettings) -> dict[str, JSON]:
    """What the sample's json says."""
    parameters: dict[str, JSON] = {"corruption": "given"}
    if crop.photograph.corrupted is None:
        parameters = {"corruption": type(crop.corruption).__name__, **vars(crop.corruption)}
        if crop.layer is not None:
            parameters["layer"] = crop.layer
    return {
        "source": crop.photograph.name,
        # top, left, height, width in the photograph
        "box": [crop.top, crop.left, settings.crop_size, settings.crop_size],
        "task": settings.task.name,
        "seed": settings.seed,
        "parameters": parameters,
    }
