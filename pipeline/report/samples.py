"""A few validation samples of a task, as the models meet them."""

# H W height and width, C channels

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import JSON
from pipeline.corruptions.apply import corrupt, drawn
from pipeline.corruptions.keyed import generator
from pipeline.data.shard_files import ShardFiles
from pipeline.data.shard_reader import open_shards
from pipeline.tasks import Task, ranges


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Patches (H, W, C) uint8, and what was drawn for this one, by the name of the parameter."""

    corrupted: np.ndarray
    clean: np.ndarray
    parameters: dict[str, JSON]


def validation_samples(
    folder: Path, task: Task, count: int, files: ShardFiles | None = None
) -> list[Sample]:
    """Samples evenly spread over the validation shards in `folder`, or in `files`.

    Noise is drawn here, and clipped and rounded to be seen.
    """
    shards = open_shards(folder, "validation", files)
    places = np.concatenate([np.arange(samples) for samples in shards.counts])
    numbers = np.repeat(np.arange(len(shards.counts)), shards.counts)
    chosen = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(int))
    where = numbers[chosen], places[chosen]
    clean = shards.images("clean", *where)
    if shards.stores_corrupted:
        corrupted = list(shards.images("corrupted", *where))
        parameters = [each["parameters"] for each in shards.descriptions(*where)]
    else:
        corrupted, parameters = [], []
        for image, key in zip(clean, shards.keys(*where), strict=True):
            rng = generator("report", task.name, key)
            corruption = drawn(task.corruption, rng)
            noisy = corrupt(image, corruption, rng, rain_layers=None)
            corrupted.append(np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8))
            parameters.append(asdict(corruption))
    drawn_names = (*ranges(task.corruption), "layer")  # of rain: the bank decides their number
    return [
        Sample(
            corrupted=corrupted[number],
            clean=clean[number],
            parameters={name: each[name] for name in drawn_names if name in each},
        )
        for number, each in enumerate(parameters)
    ]
