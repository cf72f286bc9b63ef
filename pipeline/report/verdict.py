"""What the scores of a run say, in rows and in sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tasks import TASKS, Bicubic, RainStreaks, Task

Scores = Mapping[str, float | None]  # psnr_rgb, psnr_y, ssim_rgb, ssim_y; None: equal images
VERSIONS = {"corrupted": "Input", "dncnn": "DnCNN", "ipt": "IPT", "clean": "Clean"}  # of an image
SMALLEST_MEASUREMENT = 1000  # photographs trained on, below which a run only tries the pipeline
TIE = 0.005  # dB: equal at the two digits that are printed


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One task on one test set: the means before and after."""

    task: str
    test_set: str
    images: int
    corrupted: Scores
    dncnn: Scores | None = None
    ipt: Scores | None = None
    skipped: int = 0  # photographs left out of the test set


def verdict_rows(records: Sequence[Mapping[str, Any]]) -> list[VerdictRow]:
    """Every (task, test set) of the `scores.json` records, in the order of TASKS."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        for test_set, scores in record["test_sets"].items():
            row = rows.setdefault((record["task"], test_set), {"corrupted": None})
            row["corrupted"] = scores["mean"]["corrupted"]
            row["images"] = len(scores["images"])
            row["skipped"] = len(scores.get("skipped", ()))
            row["dncnn" if record["model"] == "dncnn" else "ipt"] = scores["mean"]["restored"]
    order = list(TASKS)
    return [
        VerdictRow(task=task, test_set=test_set, **row)
        for (task, test_set), row in sorted(
            rows.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        )
    ]


def headline_score(task: Task) -> str:
    """The score that the literature compares this task by."""
    return "psnr_y" if isinstance(task.corruption, Bicubic | RainStreaks) else "psnr_rgb"


def corrupted_name(task: Task) -> str:
    """What the input is called."""
    match task.corruption:
        case Bicubic():
            return "bicubic upscaling"
        case RainStreaks():
            return "rainy input"
        case _:
            return "noisy input"


def version_name(key: str, task: Task) -> str:
    """The label of a version of an image: one of VERSIONS, the input by its own name."""
    return corrupted_name(task).capitalize() if key == "corrupted" else VERSIONS[key]


def headline(rows: Sequence[VerdictRow]) -> str:
    """The whole run in one line."""
    both = [row for row in rows if row.ipt is not None and row.dncnn is not None]
    if both:
        leads = [_difference(row, row.ipt, row.dncnn) for row in both]
        ahead = sum(lead >= TIE for lead in leads)
        behind = sum(lead <= -TIE for lead in leads)
        if ahead > behind:
            return f"IPT is ahead of DnCNN in {_of(ahead, len(both))}"
        if behind > ahead:
            return f"DnCNN is ahead of IPT in {_of(behind, len(both))}"
        return f"IPT and DnCNN are level over {_count(len(both), 'comparison')}"
    better = [row for row in rows if _difference(row, row.ipt or row.dncnn, row.corrupted) >= TIE]
    if not rows:
        return "Nothing was evaluated"
    name = "IPT" if any(row.ipt for row in rows) else "DnCNN"
    return f"{name} improves on its input in {_of(len(better), len(rows))}"


def sentence(row: VerdictRow) -> str:
    """One row in words: who beats what, by how much."""
    task = TASKS[row.task]
    models = {"IPT": row.ipt, "DnCNN": row.dncnn}
    present = {name: scores for name, scores in models.items() if scores is not None}
    parts = []
    if len(present) == 2:
        lead = _difference(row, row.ipt, row.dncnn)
        if abs(lead) < TIE:
            parts.append("IPT and DnCNN are level")
        else:
            first, second = ("IPT", "DnCNN") if lead > 0 else ("DnCNN", "IPT")
            parts.append(f"{first} beats {second} by {_decibels(abs(lead))}")
    gains = {name: _difference(row, scores, row.corrupted) for name, scores in present.items()}
    for name, gain in gains.items():
        verb = "gains" if gain >= 0 else "loses"
        parts.append(f"{name} {verb} {_decibels(abs(gain))}")
    return f"{'; '.join(parts)} against the {corrupted_name(task)}."


def smoke_test(trained_on: int, held_out: int) -> str | None:
    """A plain warning where a run is too small to say anything about the method."""
    if trained_on >= SMALLEST_MEASUREMENT:
        return None
    return (
        f"{_count(trained_on, 'photograph')} trained on, {_count(held_out, 'photograph')} held "
        "out: a smoke test of the pipeline, not a measurement of the method."
    )


def verdict_axis(rows: Sequence[VerdictRow]) -> tuple[float, float, list[int]]:
    """(lowest, highest, ticks) of the dB axis that all rows share."""
    values = [
        value
        for row in rows
        for scores in (row.corrupted, row.dncnn, row.ipt)
        if scores and (value := scores[headline_score(TASKS[row.task])]) is not None
    ]
    if not values:
        return 0.0, 1.0, []
    low, high = min(values) - 1.0, max(values) + 1.0
    step = 5 if high - low > 8 else 1
    return low, high, list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def verdict_section(rows: Sequence[VerdictRow]) -> list[dict[str, Any]]:
    """Each row with its title, its sentence, and where its dots stand on the common axis."""
    low, high, _ = verdict_axis(rows)
    section = []
    for row in rows:
        task = TASKS[row.task]
        name = headline_score(task)
        models = [(key, getattr(row, key)) for key in ("corrupted", "dncnn", "ipt")]
        present = [(key, scores) for key, scores in models if scores is not None]
        dots = [
            {
                "key": key,
                "name": VERSIONS[key],
                "value": scores[name],
                "left": 100 * (scores[name] - low) / (high - low),
            }
            for key, scores in present
            if scores[name] is not None
        ]
        # Labels of neighbours stand above and below the line in turn.
        for number, dot in enumerate(sorted(dots, key=lambda dot: dot["left"])):
            dot["low"] = number % 2 == 1
        section.append(
            {
                "task": row.task,
                "title": task.title,
                "test_set": row.test_set,
                "images": row.images,
                "skipped": row.skipped,
                "sentence": sentence(row),
                "channel": "Y" if name == "psnr_y" else "RGB",
                "dots": dots,
                "lines": [
                    {
                        "key": key,
                        "name": version_name(key, task),
                        "scores": scores,
                        "gains": _gains(scores, row.corrupted) if key != "corrupted" else None,
                    }
                    for key, scores in present
                ],
                "best": _best(present[1:]),
            }
        )
    return section


def _gains(scores: Scores, before: Scores) -> dict[str, float | None]:
    gains: dict[str, float | None] = {}
    for name, value in scores.items():
        was = before[name]
        gains[name] = None if value is None or was is None else value - was
    return gains


def _best(models: Sequence[tuple[str, Scores]]) -> dict[str, set[str]]:
    """Which models are best at each score, at the digits printed."""
    if len(models) < 2:
        return {}
    best: dict[str, set[str]] = {}
    for name in models[0][1]:
        digits = 2 if name.startswith("psnr") else 4
        rounded = {key: round(_or_infinity(scores[name]), digits) for key, scores in models}
        best[name] = {key for key, value in rounded.items() if value == max(rounded.values())}
    return best


def _or_infinity(value: float | None) -> float:
    return float("inf") if value is None else value


def _difference(row: VerdictRow, one: Scores | None, other: Scores | None) -> float:
    name = headline_score(TASKS[row.task])
    assert one is not None
    assert other is not None
    first, second = _or_infinity(one[name]), _or_infinity(other[name])
    return 0.0 if first == second else first - second


def _decibels(value: float) -> str:
    return "∞ dB" if value == float("inf") else f"{value:.2f} dB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _of(some: int, total: int) -> str:
    return f"{some} of {_count(total, 'comparison')}"
