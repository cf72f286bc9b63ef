"""What the scores of a run say, in rows and in sentences."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tasks import (
    TASKS,
    Bicubic,
    GaussianBlur,
    GaussianNoise,
    JpegCompression,
    MotionBlur,
    RainStreaks,
    Task,
)

Scores = Mapping[str, float | None]  # psnr_rgb, psnr_y, ssim_rgb, ssim_y; None: equal images
VERSIONS = {"corrupted": "Input", "dncnn": "DnCNN", "ipt": "IPT", "clean": "Clean"}  # of an image
MODELS = ("dncnn", "ipt")
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
    corrupted_is_given: bool = False  # as files, not made by the evaluation
    incomplete: bool = False  # not all of the benchmark that it is named after

    @property
    def models(self) -> dict[str, Scores]:
        """The means after, of the models that there are."""
        models = {"dncnn": self.dncnn, "ipt": self.ipt}
        return {name: scores for name, scores in models.items() if scores is not None}

    def lead(self, one: Scores, other: Scores) -> float:
        """How many dB `one` is above `other`, on the scale that the task is compared by."""
        name = headline_score(TASKS[self.task])
        first, second = _or_infinity(one[name]), _or_infinity(other[name])
        return 0.0 if first == second else first - second


def verdict_rows(records: Sequence[Mapping[str, Any]]) -> list[VerdictRow]:
    """Every (task, test set) of the `scores.json` records, in the order of TASKS."""
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for record in records:
        for test_set, scored in record["test_sets"].items():
            groups.setdefault((record["task"], test_set), {})[model_of(record)] = scored
    order = list(TASKS)
    return [
        _row(task, test_set, groups[task, test_set])
        for task, test_set in sorted(groups, key=lambda each: (order.index(each[0]), each[1]))
    ]


def _row(task: str, test_set: str, scored: Mapping[str, Mapping[str, Any]]) -> VerdictRow:
    """What the models, by name, scored on a test set; where they met other images, on those that
    all of them met, and where there is none such, the first model alone."""
    met = {name: {image["name"] for image in each["images"]} for name, each in scored.items()}
    first = next(iter(scored))
    common = set.intersection(*met.values())
    compared = scored if common else {first: scored[first]}
    common = common or met[first]
    means = {name: _mean(each, common) for name, each in compared.items()}
    return VerdictRow(
        task=task,
        test_set=test_set,
        images=len(common),
        corrupted=means[first]["corrupted"],
        skipped=len(scored[first]["skipped"]),
        corrupted_is_given=scored[first]["corrupted_is_given"],
        incomplete=any(each["incomplete"] or met[name] != common for name, each in scored.items()),
        **{name: mean["restored"] for name, mean in means.items()},
    )


def _mean(scored: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Scores]:
    """The means of the images of these names, before and after."""
    images = [image for image in scored["images"] if image["name"] in names]
    if len(images) == len(scored["images"]):
        mean: Mapping[str, Scores] = scored["mean"]
        return mean
    from pipeline.scoring import mean_scores  # it needs torch

    versions = ("corrupted", "restored")
    return {version: mean_scores([image[version] for image in images]) for version in versions}


def model_of(record: Mapping[str, Any]) -> str:
    """Which of MODELS a `scores.json` record is of; pretrained and fine-tuned are both IPT."""
    return "dncnn" if record["model"] == "dncnn" else "ipt"


def headline_score(task: Task) -> str:
    """The score that the literature compares this task by."""
    is_on_luma = isinstance(task.corruption, Bicubic | RainStreaks | JpegCompression)
    return "psnr_y" if is_on_luma else "psnr_rgb"


def headline_channel(task: Task) -> str:
    """What that score is of."""
    if task.channels == 1:
        return "grey"
    return "Y" if headline_score(task) == "psnr_y" else "RGB"


def corrupted_name(task: Task) -> str:
    """What the input is called."""
    match task.corruption:
        case Bicubic():
            return "bicubic upscaling"
        case RainStreaks():
            return "rainy input"
        case GaussianNoise():
            return "noisy input"
        case JpegCompression():
            return "compressed input"
        case GaussianBlur() | MotionBlur():
            return "blurred input"
        case _:
            return "corrupted input"


def version_name(key: str, task: Task) -> str:
    """The label of a version of an image: one of VERSIONS, the input by its own name."""
    return corrupted_name(task).capitalize() if key == "corrupted" else VERSIONS[key]


def headline(rows: Sequence[VerdictRow]) -> str:
    """The whole run in one line."""
    if not rows:
        return "Nothing was evaluated"
    leads = [row.lead(row.ipt, row.dncnn) for row in rows if row.ipt and row.dncnn]
    ahead, behind = sum(lead >= TIE for lead in leads), sum(lead <= -TIE for lead in leads)
    if ahead and behind:
        return f"IPT is ahead of DnCNN in {ahead}, behind in {_of(behind, len(leads))}"
    if ahead:
        return f"IPT is ahead of DnCNN in {_of(ahead, len(leads))}"
    if behind:
        return f"DnCNN is ahead of IPT in {_of(behind, len(leads))}"
    if leads:
        return f"IPT and DnCNN are level over {_count(len(leads), 'comparison')}"
    gains = [max(row.lead(each, row.corrupted) for each in row.models.values()) for row in rows]
    names = " or ".join(
        VERSIONS[name] for name in MODELS if any(name in row.models for row in rows)
    )
    return f"{names} improves on its input in {_of(sum(gain >= TIE for gain in gains), len(rows))}"


def sentence(row: VerdictRow) -> str:
    """One row in words: who beats what, by how much."""
    parts = []
    if row.ipt and row.dncnn:
        lead = row.lead(row.ipt, row.dncnn)
        first, second = ("IPT", "DnCNN") if lead > 0 else ("DnCNN", "IPT")
        if abs(lead) < TIE:
            parts.append("IPT and DnCNN are level")
        else:
            parts.append(f"{first} beats {second} by {_decibels(abs(lead))}")
    for name in reversed(MODELS):
        if name in row.models:
            gain = row.lead(row.models[name], row.corrupted)
            verb = "gains" if gain >= 0 else "loses"
            parts.append(f"{VERSIONS[name]} {verb} {_decibels(abs(gain))}")
    return f"{'; '.join(parts)} against the {corrupted_name(TASKS[row.task])}."


def smoke_test(trained_on: int, scored_on: int) -> str | None:
    """A plain warning where a run is too small to say anything about the method."""
    if trained_on >= SMALLEST_MEASUREMENT:
        return None
    return (
        f"{_count(trained_on, 'photograph')} trained on, {_count(scored_on, 'photograph')} scored "
        "on: a smoke test of the pipeline, not a measurement of the method."
    )


def verdict_axis(rows: Sequence[VerdictRow]) -> tuple[float, float, list[int]]:
    """(lowest, highest, ticks) of the dB axis that all rows share."""
    values = [
        value
        for row in rows
        for scores in (row.corrupted, *row.models.values())
        if (value := scores[headline_score(TASKS[row.task])]) is not None
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
        lines = {"corrupted": row.corrupted, **row.models}
        dots = [
            {
                "key": key,
                "left": 100 * (value - low) / (high - low),
            }
            for key, scores in lines.items()
            if (value := scores[name]) is not None
        ]
        section.append(
            {
                "task": row.task,
                "title": task.title,
                "test_set": row.test_set,
                "images": row.images,
                "skipped": row.skipped,
                "incomplete": row.incomplete,
                "sentence": sentence(row),
                "channel": headline_channel(task),
                "dots": dots,
                "lines": [
                    {
                        "key": key,
                        "name": version_name(key, task),
                        "scores": scores,
                        "gains": _gains(scores, row.corrupted) if key != "corrupted" else None,
                    }
                    for key, scores in lines.items()
                ],
                "best": best_models(row.models),
            }
        )
    return section


def _gains(scores: Scores, before: Scores) -> dict[str, float | None]:
    return {
        name: None if value is None or (was := before[name]) is None else value - was
        for name, value in scores.items()
    }


def best_models(models: Mapping[str, Scores]) -> dict[str, set[str]]:
    """Which models are best at each score, at the digits printed; none where there is only one."""
    if len(models) < 2:
        return {}
    best: dict[str, set[str]] = {}
    for name, digits in (("psnr_rgb", 2), ("psnr_y", 2), ("ssim_rgb", 4), ("ssim_y", 4)):
        rounded = {key: round(_or_infinity(scores[name]), digits) for key, scores in models.items()}
        best[name] = {key for key, value in rounded.items() if value == max(rounded.values())}
    return best


def _or_infinity(psnr: float | None) -> float:
    return math.inf if psnr is None else psnr


def _decibels(value: float) -> str:
    return "∞ dB" if value == math.inf else f"{value:.2f} dB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _of(some: int, total: int) -> str:
    return f"{some} of {_count(total, 'comparison')}"
