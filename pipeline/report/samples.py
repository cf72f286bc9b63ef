"""A few validation samples of a task, as the models meet them."""

from pathlib import Path

import numpy as np

from pipeline.corruptions.apply import corrupt
from pipeline.corruptions.keyed import generator
from pipeline.data.shard_reader import open_shards
from pipeline.tasks import Task


def validation_samples(
    folder: Path, task: Task, count: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(corrupted, clean) patches, (H, W, 3) uint8, evenly spread over the validation shards.

    Noise is drawn here, and clipped and rounded to be seen.
    """
    shards = open_shards(folder, "validation")
    places = np.concatenate([np.arange(samples) for samples in shards.counts])
    numbers = np.repeat(np.arange(len(shards.counts)), shards.counts)
    chosen = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(int))
    clean = list(shards.images("clean", numbers[chosen], places[chosen]))
    if task.stores_corrupted:
        return list(shards.images("corrupted", numbers[chosen], places[chosen])), clean
    keys = shards.keys(numbers[chosen], places[chosen])
    drawn = (
        corrupt(image, task.corruption, generator("report", task.name, key), rain_layers=None)
        for image, key in zip(clean, keys, strict=True)
    )
    return [np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in drawn], clean
