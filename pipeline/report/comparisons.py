"""Crops of test images in all their versions, to be looked at side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corruptions.keyed import generator
from pipeline.report.pictures import most_different, read_picture, thumbnail_uri, webp_uri
from pipeline.report.verdict import (
    MODELS,
    VERSIONS,
    headline_channel,
    headline_score,
    model_of,
    version_name,
)
from pipeline.tasks import TASKS, Task

# (pictures per task and test set, width, height of a crop): the first that fits the budget.
LAYOUTS = (
    (3, 320, 240),
    (2, 320, 240),
    (2, 256, 192),
    (1, 320, 240),
    (1, 256, 192),
    (1, 192, 144),
    (1, 160, 120),
    (1, 128, 96),
    (1, 96, 72),
)
SMALLEST = 96  # pixels; a crop is no more than half an image a side, but where that is less
PICTURE_BUDGET = 11_000_000  # bytes of all crops in the page, which may have 15 MB


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


def pictures_sections(all_comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The pictures, the same by title of their task, and how many test sets found no room."""
    pictures = pictures_section(all_comparisons)
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in pictures:
        groups.setdefault(each["title"], []).append(each)
    left_out = {(each.task.name, each.test_set) for each in all_comparisons}
    left_out -= {(each["task"], each["test_set"]) for each in pictures}
    return {"pictures": pictures, "picture_groups": groups, "left_out": len(left_out)}


def pictures_section(
    all_comparisons: Sequence[Comparison], *, budget: int = PICTURE_BUDGET
) -> list[dict[str, Any]]:
    """Crops to compare, in their order, as many and as large as the page can bear.

    Where even the smallest are too many, those of the last test sets are left out.
    """
    bearable = float("inf")  # pixels of all crops, as far as is known
    for layout in LAYOUTS:
        count, width, height = layout
        chosen = _first_of_each(all_comparisons, count)
        is_last = layout == LAYOUTS[-1]
        if len(chosen) * width * height > bearable and not is_last:
            continue
        section: list[dict[str, Any]] = []
        weight = 0
        for each in _pictures(chosen, width=width, height=height):
            weight += _weight(each)
            if weight > budget:
                break
            section.append(each)
        if len(section) == len(chosen) or is_last:
            return section
        # What this many of these pictures took says which layout is worth the time of a try.
        bearable = 1.1 * (len(section) + 1) * width * height * budget / weight
    return []


def _first_of_each(all_comparisons: Sequence[Comparison], count: int) -> list[Comparison]:
    places = groupby(all_comparisons, lambda each: (each.task.name, each.test_set))
    return [each for _, of_place in places for each in islice(of_place, count)]


def _pictures(chosen: Sequence[Comparison], *, width: int, height: int) -> Iterator[dict[str, Any]]:
    for each in chosen:
        yield _picture(each, width=width, height=height)


def _weight(picture: Mapping[str, Any]) -> int:
    crops = (version["uri"] for crop in picture["crops"] for version in crop["versions"])
    return sum(map(len, crops)) + len(picture["overview"])


def _picture(comparison: Comparison, *, width: int, height: int) -> dict[str, Any]:
    pictures = {
        key: read_picture(comparison.paths[key]) for key in VERSIONS if key in comparison.paths
    }
    clean = pictures["clean"]
    full_height, full_width = clean.shape[:2]
    height, width = (
        min(side, max(full // 2, SMALLEST), full)
        for side, full in ((height, full_height), (width, full_width))
    )
    crops = []
    for chosen, (top, left) in _places(comparison, pictures, size=(height, width)).items():
        window = slice(top, top + height), slice(left, left + width)
        crops.append(
            {
                "chosen": chosen,
                "top": top,
                "left": left,
                "frame": [
                    100 * left / full_width,
                    100 * top / full_height,
                    100 * width / full_width,
                    100 * height / full_height,
                ],
                "versions": [
                    {
                        "key": key,
                        "name": version_name(key, comparison.task),
                        "uri": webp_uri(each[window]),
                    }
                    for key, each in pictures.items()
                ],
            }
        )
    return {
        "task": comparison.task.name,
        "title": comparison.task.title,
        "test_set": comparison.test_set,
        "image": comparison.image,
        "width": width,
        "height": height,
        "channel": headline_channel(comparison.task),
        "psnr": {key: comparison.psnr[key] for key in pictures if key in comparison.psnr},
        "overview": thumbnail_uri(clean, min(200, full_width)),
        "crops": crops,
    }


def _places(
    comparison: Comparison, pictures: Mapping[str, np.ndarray], *, size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """(top, left) of the crops, by how they were chosen.

    The largest difference shows the models at their most unlike; a place that nobody chose shows
    what is usual.
    """
    full_height, full_width = pictures["clean"].shape[:2]
    height, width = size
    if size == (full_height, full_width):
        return {"the whole image": (0, 0)}
    models = [key for key in MODELS if key in pictures]
    one, other = models[0], models[1] if len(models) == 2 else "clean"
    rng = generator("report", comparison.task.name, comparison.test_set, comparison.image)
    at_random = (
        int(rng.integers(full_height - height + 1)),
        int(rng.integers(full_width - width + 1)),
    )
    return {
        f"where {VERSIONS[one]} and {VERSIONS[other]} differ most": most_different(
            pictures[one], pictures[other], size=size
        ),
        "at random, with a fixed seed": at_random,
    }
