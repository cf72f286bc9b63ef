"""Crops of test images in all their versions, to be looked at side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.pictures import most_different, png_uri, read_picture, thumbnail_uri
from pipeline.report.verdict import VERSIONS, VerdictRow, headline_score, version_name
from pipeline.tasks import TASKS

# (pictures per task and test set, width, height of the crop): the first that fits the budget.
LAYOUTS = ((2, 320, 240), (1, 320, 240), (1, 256, 192), (1, 192, 144), (1, 128, 96), (1, 64, 48))
PICTURE_BUDGET = 3_600_000  # bytes of all crops in the page


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One test image in all its versions, as files."""

    row: VerdictRow
    image: str
    paths: Mapping[str, Path]  # corrupted, dncnn, ipt, clean
    psnr: Mapping[str, float | None]


def comparisons(
    rows: Sequence[VerdictRow], scores: Sequence[tuple[Path, Mapping[str, Any]]]
) -> list[Comparison]:
    """The images that evaluations kept pictures of; `scores` has (folder, scores.json)."""
    found = []
    for row in rows:
        by_image: dict[str, dict[str, Any]] = {}
        name = headline_score(TASKS[row.task])
        for folder, record in scores:
            if record["task"] != row.task:
                continue
            model = "dncnn" if record["model"] == "dncnn" else "ipt"
            for image in record["test_sets"].get(row.test_set, {}).get("images", ()):
                if "pictures" not in image:
                    continue
                entry = by_image.setdefault(image["name"], {"paths": {}, "psnr": {}})
                for version, path in image["pictures"].items():
                    key = model if version == "restored" else version
                    entry["paths"][key] = folder / path
                    if version != "clean":
                        entry["psnr"][key] = image[version][name]
        found += [
            Comparison(row=row, image=image, paths=entry["paths"], psnr=entry["psnr"])
            for image, entry in by_image.items()
        ]
    return found


def pictures_section(all_comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Crops to compare, as many and as large as the page can bear."""
    for count, width, height in LAYOUTS:
        seen: dict[tuple[str, str], int] = {}
        chosen = []
        for each in all_comparisons:
            place = (each.row.task, each.row.test_set)
            seen[place] = seen.get(place, 0) + 1
            if seen[place] <= count:
                chosen.append(each)
        section = [_picture(each, width=width, height=height) for each in chosen]
        weight = sum(len(version["uri"]) for each in section for version in each["versions"])
        if weight <= PICTURE_BUDGET:
            return section
    return []


def _picture(comparison: Comparison, *, width: int, height: int) -> dict[str, Any]:
    pictures = {
        key: read_picture(comparison.paths[key]) for key in VERSIONS if key in comparison.paths
    }
    models = [key for key in ("dncnn", "ipt") if key in pictures]
    pair = (models[0], models[1] if len(models) == 2 else "clean")
    top, left = most_different(pictures[pair[0]], pictures[pair[1]], size=(height, width))
    clean = pictures["clean"]
    full_height, full_width = clean.shape[:2]
    crop_height, crop_width = min(height, full_height), min(width, full_width)
    return {
        "title": TASKS[comparison.row.task].title,
        "task": comparison.row.task,
        "test_set": comparison.row.test_set,
        "image": comparison.image,
        "width": crop_width,
        "height": crop_height,
        "chosen": f"where {VERSIONS[pair[0]]} and {VERSIONS[pair[1]]} differ most",
        "channel": "Y" if headline_score(TASKS[comparison.row.task]) == "psnr_y" else "RGB",
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
                "name": version_name(key, TASKS[comparison.row.task]),
                "psnr": comparison.psnr.get(key),
                "uri": png_uri(each[top : top + crop_height, left : left + crop_width]),
            }
            for key, each in pictures.items()
        ],
    }
