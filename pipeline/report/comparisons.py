"""Crops of test images in all their versions, to be looked at side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from pipeline.report.pictures import most_different, png_uri, read_picture, thumbnail_uri
from pipeline.report.verdict import (
    MODELS,
    VERSIONS,
    headline_channel,
    headline_score,
    model_of,
    version_name,
)
from pipeline.tasks import TASKS, Task

# (pictures per task and test set, width, height of the crop): the first that fits the budget.
LAYOUTS = (
    (2, 320, 240),
    (2, 256, 192),
    (1, 320, 240),
    (1, 256, 192),
    (1, 192, 144),
    (1, 128, 96),
    (1, 64, 48),
)
PICTURE_BUDGET = 3_600_000  # bytes of all crops in the page


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One test image in all its versions, as files."""

    task: Task
    test_set: str
    image: str
    paths: dict[str, Path] = field(default_factory=dict)  # by a key of VERSIONS
    psnr: dict[str, float | None] = field(default_factory=dict)


def comparisons(scores: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Comparison]:
    """The images that evaluations kept pictures of; `scores` has (folder, scores.json)."""
    found: dict[tuple[str, str, str], Comparison] = {}
    for folder, record in scores:
        task = TASKS[record["task"]]
        for test_set, scored in record["test_sets"].items():
            for image in scored["images"]:
                key = (task.name, test_set, image["name"])
                one = Comparison(task=task, test_set=test_set, image=image["name"])
                for version, path in image.get("pictures", {}).items():
                    one = found.setdefault(key, one)
                    name = model_of(record) if version == "restored" else version
                    one.paths[name] = folder / path
                    if version != "clean":
                        one.psnr[name] = image[version][headline_score(task)]
    order = list(TASKS)
    return sorted(found.values(), key=lambda each: (order.index(each.task.name), each.test_set))


def pictures_section(all_comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Crops to compare, in their order, as many and as large as the page can bear."""
    for count, width, height in LAYOUTS:
        places = groupby(all_comparisons, lambda each: (each.task.name, each.test_set))
        section = [
            _picture(each, width=width, height=height)
            for _, of_place in places
            for each in islice(of_place, count)
        ]
        weight = sum(len(version["uri"]) for each in section for version in each["versions"])
        if weight <= PICTURE_BUDGET:
            return section
    return []


def _picture(comparison: Comparison, *, width: int, height: int) -> dict[str, Any]:
    pictures = {
        key: read_picture(comparison.paths[key]) for key in VERSIONS if key in comparison.paths
    }
    models = [key for key in MODELS if key in pictures]
    pair = (models[0], models[1] if len(models) == 2 else "clean")
    top, left = most_different(pictures[pair[0]], pictures[pair[1]], size=(height, width))
    clean = pictures["clean"]
    full_height, full_width = clean.shape[:2]
    crop_height, crop_width = min(height, full_height), min(width, full_width)
    return {
        "title": comparison.task.title,
        "test_set": comparison.test_set,
        "image": comparison.image,
        "width": crop_width,
        "height": crop_height,
        "chosen": f"where {VERSIONS[pair[0]]} and {VERSIONS[pair[1]]} differ most",
        "channel": headline_channel(comparison.task),
        "overview": thumbnail_uri(clean, min(240, full_width)),
        "frame": [
            100 * left / full_width,
            100 * top / full_height,
            100 * crop_width / full_width,
            100 * crop_height / full_height,
        ],
        "versions": [
            {
                "key": key,
                "name": version_name(key, comparison.task),
                "psnr": comparison.psnr.get(key),
                "uri": png_uri(each[top : top + crop_height, left : left + crop_width]),
            }
            for key, each in pictures.items()
        ],
    }
