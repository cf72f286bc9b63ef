"""Whether two sets of learning curves differ by more than chance explains, and the page of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import t

from benchmarks.measuring import table
from benchmarks.plain_dncnn import PARTS, Recipe
from benchmarks.published_dncnn import rows
from pipeline.config import DnCNNTrainingConfig

MOST_ERRORS = 4.0  # standard errors: by Student's t of 12 degrees of freedom, one point of 600
SURE = 0.99  # of the mean over all points, by Student's t of one degree less than seeds
SAME = 0.05  # dB: what the rounding of other sums grows to in a short training
CRITERION = f"""
Criteria, fixed beforehand. On the pipeline's own batches, which the plain loop is given once, from
the same weights: every point within {SAME:g} dB. On batches of its own, drawn independently, though
each pair of trainings begins with the same weights (`torch.manual_seed`, the same order of layers):
at every point the mean over seeds of pipeline − plain is within {MOST_ERRORS:g} standard errors of
0, of the spread of the pairs' differences there or, if that is greater, of the spread pooled over
the losses, or over the PSNRs: of few seeds one spread can be small by luck. The mean over all
points is within the {SURE:.0%} interval of Student's t. Losses are told in dB, as the PSNR of
patches with such an error.

"""
HEADER = ("point", "pipeline, dB", "plain loop, dB", "difference", "allowed", "agrees")


PAPERS = DnCNNTrainingConfig()
OPEN = """
## What remains open

Trained in full they need a GPU, and were not: DnCNN-S at σ 15, 25 and 50 (configs/dncnn.yaml: 11.9
million samples × 5.3 GFLOP a level), DnCNN-B and the colour DnCNN (configs/dncnn-blind.yaml: 19.2
million × 10 GFLOP each). They are to be compared with

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
    is_loss: bool
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
    """Every point, losses pooled with losses and PSNRs with PSNRs, then the mean of all."""
    found = []
    for kind in sorted({each.is_loss for each in points}, reverse=True):
        group = [each for each in points if each.is_loss is kind]
        spreads = [stdev(each.differences) for each in group]
        pooled = fmean(spread**2 for spread in spreads) ** 0.5
        for point, spread in zip(group, spreads, strict=True):
            error = max(spread, pooled) / len(point.differences) ** 0.5
            found.append(Judged(point=point, allowed=MOST_ERRORS * error))
    whole = Point(
        where="all points",
        is_loss=False,
        pipeline=[fmean(each) for each in zip(*(p.pipeline for p in points), strict=True)],
        plain=[fmean(each) for each in zip(*(p.plain for p in points), strict=True)],
    )
    seeds = len(whole.differences)
    error = stdev(whole.differences) / seeds**0.5
    return [*found, Judged(point=whole, allowed=float(t.ppf((1 + SURE) / 2, seeds - 1)) * error)]


def furthest(one: Training, other: Training) -> float:
    """The most, in dB, by which two trainings differ at a point."""
    points = zip(one.fits + one.psnrs, other.fits + other.psnrs, strict=True)
    return max(abs(a - b) for a, b in points)


def page(
    circumstances: str,
    recipe: Recipe,
    points: Sequence[Judged],
    on_same_batches: float,
    *,
    ours: Sequence[Training],
    plain: Sequence[Training],
) -> str:
    apart = [each.point.where for each in points if not each.agrees]
    verdict = f"**They differ: {'; '.join(apart)}.**" if apart else "They agree at every point."
    same = "within" if on_same_batches <= SAME else "**not within**"
    return (
        "# DnCNN by the pipeline and by a plain loop\n\n"
        + circumstances
        + shortening(recipe)
        + CRITERION
        + f"On the same batches the curves differ by {on_same_batches:.4f} dB at most: {same} the "
        + f"{SAME:g} dB.\n\nOn their own, mean and standard deviation of {len(ours)} seeds:\n\n"
        + table(HEADER, [each.cells for each in points])
        + f"\n{verdict}\n\n"
        + cost(recipe, ours=ours, plain=plain)
        + OPEN
        + targets()
    )


def shortening(recipe: Recipe) -> str:
    samples = recipe.steps * recipe.batch
    return f"""
DnCNN at σ 25, grey: depth {recipe.depth}, {recipe.features} features. DnCNN-S has 17 and 64, with
which both sides still predict nothing (20.17 dB) after 120 such steps: curves that would say
little. On one side configs/dncnn.yaml through the stages source, corrupt and dncnn; on the other a
loop written down by itself, with its own network, crops, orientations, noise, loss and PyTorch's
Adam. Shortened, on both sides: {samples:,} samples instead of {PAPERS.samples:,}, batches of
{recipe.batch} instead of {PAPERS.batch} (also behind batch-norm statistics), so {recipe.steps}
steps; the rate falls at 60% of them, as ever. The pipeline's crops are cut once and each is used at
most once; the plain loop's are drawn anew.

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
