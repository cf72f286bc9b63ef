"""The numbers of the page for machines: report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.artifacts import JSON

FORMAT = 2  # raised when a key changes its meaning
AS_THEY_ARE = (
    *("name", "headline", "smoke_test", "trained_on", "scored_on", "are_held_out", "unscored"),
    *("protocols", "sources", "corrupt", "skipped", "rain_layers", "provenance"),
)


def report_record(sections: Mapping[str, Any]) -> dict[str, JSON]:
    """Everything that the sections of the page say, but the pictures, in full digits.

    PSNR is in dB; null is that of equal images, which is infinite.
    """
    return {
        "format": FORMAT,
        **{key: sections[key] for key in AS_THEY_ARE},
        "verdict": [_verdict(line) for line in sections["tasks"]],
        "published": sections["comparison"],
        "pictures": [_picture(each) for each in sections["pictures"]],
        "trainings": [
            {
                "title": each["title"],
                "stages": each["stages"],
                "curves": {chart["title"]: chart["lines"] for chart in each["charts"]},
            }
            for each in sections["trainings"]
        ],
        "samples": _without(sections["samples"], "uri", "width", "height"),
        "stages": sections["graph"]["stages"],
        "seconds": sections["graph"]["seconds"],
    }


def _verdict(line: Mapping[str, Any]) -> dict[str, JSON]:
    return {
        **asdict(line["row"]),
        "input": line["input"],
        "compared_by": line["score"],
        "published": [
            asdict(each["result"]) | {"other_tiling": each["tiling"]} for each in line["published"]
        ],
        "why_nothing_published": line["why_not"],
        "checks": line["checks"],
    }


def _picture(picture: Mapping[str, Any]) -> dict[str, JSON]:
    crops = _without(picture["crops"], "versions", "frame")
    return _without([picture], "overview")[0] | {"crops": crops}


def _without(records: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, JSON]]:
    return [{key: each[key] for key in each if key not in keys} for each in records]
