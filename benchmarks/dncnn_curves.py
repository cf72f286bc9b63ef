"""Whether two sets of learning curves differ by more than chance explains, and the page of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks.measuring import table
from benchmarks.plain_dncnn import PARTS, Recipe
from benchmarks.published_dncnn import rows

# Standard errors. By Student's t of 12 degrees of freedom, about what the pooled spread of four
# seeds is worth, equal trainings are called different at one point of 600: in a page of eight
# points, once in 70 pages.
MOST_ERRORS = 4.0
CRITERION = f"""
Criterion, fixed beforehand: at every point the mean over seeds of pipeline − plain is within
{MOST_ERRORS:g} standard errors of 0. A pair of trainings of one seed begins with the same weights
(`torch.manual_seed`, the same order of layers); all else is drawn independently. The standard error
is of the spread of the pairs' differences at the point or, if that is greater, of the spread
pooled over all points: of few seeds one spread can be small by luck. Losses are told in dB, as the
PSNR of patches with such an error, so that all points have one unit.

"""
HEADER = ("point", "pipeline, dB", "plain loop, dB", "difference", "allowed", "agrees")


PAPERS_SAMPLES, PAPERS_BATCH = 11_904_000, 128  # as configs/dncnn.yaml
OPEN = f"""
## What remains open

DnCNN-S at σ 15, 25 and 50, DnCNN-B and the colour DnCNN trained in full need a GPU: {
    PAPERS_SAMPLES / 1e6:.1f} million
samples × 5.3 GFLOP a level (configs/dncnn.yaml) are not measured here. They are to be compared with

"""
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training showed, in dB after or over each part of it."""

    fits: list[float]  # the mean loss
    psnrs: list[float]  # of the model
    seconds: float  # of training alone


@dataclass(frozen=True, kw_only=True)
class Point:
    """What the trainings show at one place of their course, in dB, one number for each seed."""

    where: str
    pipeline: Sequence[float]
    plain: Sequence[float]

    @property
    def differences(self) -> list[float]:
        return [ours - theirs for ours, theirs in zip(self.pipeline, self.plain, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Judged:
    point: Point
    allowed: float  # dB

    @property
    def difference(self) -> float:
        return fmean(self.point.differences)

    @property
    def agrees(self) -> bool:
        # Written so that a NaN, of a training that diverged, does not agree.
        return abs(self.difference) <= self.allowed

    @property
    def cells(self) -> list[str]:
        both = (self.point.pipeline, self.point.plain)
        return [
            self.point.where,
            *(f"{fmean(each):.2f} ± {stdev(each):.2f}" for each in both),
            f"{self.difference:+.2f}",
            f"{self.allowed:.2f}",
            "yes" if self.agrees else "**no**",
        ]


def stdev(values: Sequence[float]) -> float:
    """NaN where one of them is."""
    return float(np.std(values, ddof=1))


def judged(points: Sequence[Point]) -> list[Judged]:
    """Every point with the most that its mean difference may be."""
    spreads = [stdev(each.differences) for each in points]
    pooled = fmean(spread**2 for spread in spreads) ** 0.5
    return [
        Judged(
            point=point,
            allowed=MOST_ERRORS * max(spread, pooled) / len(point.differences) ** 0.5,
        )
        for point, spread in zip(points, spreads, strict=True)
    ]


def page(
    circumstances: str,
    recipe: Recipe,
    points: Sequence[Judged],
    *,
    ours: Sequence[Training],
    plain: Sequence[Training],
) -> str:
    apart = [each.point.where for each in points if not each.agrees]
    verdict = f"**They differ: {'; '.join(apart)}.**" if apart else "They agree at every point."
    return (
        "# DnCNN by the pipeline and by a plain loop\n\n"
        + circumstances
        + shortening(recipe)
        + CRITERION
        + f"Mean and standard deviation of {len(ours)} seeds:\n\n"
        + table(HEADER, [each.cells for each in points])
        + f"\n{verdict}\n\n"
        + cost(recipe, ours=ours, plain=plain)
        + OPEN
        + targets()
    )


def shortening(recipe: Recipe) -> str:
    samples = recipe.steps * recipe.batch
    return f"""
DnCNN-S at σ 25, grey: depth {recipe.depth}, {recipe.features} features. On one side
configs/dncnn.yaml through the stages source, corrupt and dncnn; on the other a loop written down
by itself, with its own network, crops, orientations, noise, loss and PyTorch's Adam. Shortened, on
both sides: {samples:,} samples instead of {PAPERS_SAMPLES:,}, batches of {recipe.batch} instead
of {PAPERS_BATCH} (also behind batch-norm statistics), so {recipe.steps} steps; the rate falls at
60% of them, as ever. The pipeline's crops are cut once and each is used at most once; the plain
loop's are drawn anew.

Models are measured in evaluation mode, with their running statistics, as the published figures
were: noise of σ 25, not clipped, numpy's seed 0 for each image, results rounded to 8 bits. The
final ones on Set12, those after each earlier part of {PARTS} on its images' centres of 128×128.
"""


def cost(recipe: Recipe, *, ours: Sequence[Training], plain: Sequence[Training]) -> str:
    lines = [
        [name, f"{seconds:.1f}", f"{recipe.steps * recipe.batch / seconds:.1f}"]
        for name, side in (("pipeline", ours), ("plain loop", plain))
        for seconds in [fmean(each.seconds for each in side)]
    ]
    return table(("training", "seconds, mean", "samples/s"), lines)


def targets() -> str:
    """The author's published figures, beside which nothing stands yet."""
    lines = [
        [row.model, row.test_set, str(row.sigma_255), f"{row.published:g}", NOT_MEASURED]
        for row in rows()
        if row.repository == "author" and row.model != "DnCNN-3"
    ]
    return table(("model", "test set", "σ", "published, dB", "trained here"), lines)
