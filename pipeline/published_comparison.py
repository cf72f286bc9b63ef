"""Our scores beside published ones: only where photographs, channel, border and noise are the same,
and else with the difference in words; a tiling that differs is noted. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.artifacts import JSON
from pipeline.checks import differing
from pipeline.published_results import (
    PublishedResult,
    PublishedTable,
    differences,
    published_tables,
)


@dataclass(frozen=True, kw_only=True)
class OurScore:
    """What a model of ours reaches on a test set, as a record of scores.json has it."""

    model: str  # IPT or DnCNN
    trained_for: str  # the task of its record
    task: str  # as published tables call what it was measured at
    title: str
    test_set: str
    benchmark: str | None
    mean: Mapping[str, float | None]
    images: int
    sizes: frozenset[tuple[int, int]]  # (width, height) of the clean images
    faults: int
    differs: tuple[str, ...]  # from the benchmark, by its checks
    border: int
    noise: str | None
    channels: int
    self_ensemble: bool
    tiling: str | None

    def psnr_in(self, table: PublishedTable) -> float | None:
        """In dB on the channel of a table; None where it is infinite."""
        return self.mean[f"psnr_{_channel(table, self.mean)}"]

    def ssim_in(self, table: PublishedTable) -> float | None:
        return self.mean[f"ssim_{_channel(table, self.mean)}"]

    def why_not_in(self, table: PublishedTable) -> list[str]:
        """Why the score can't stand in a table of its task; empty where it can."""
        reasons = differences(
            table,
            test_set=self.benchmark or self.test_set,
            images=self.images,
            border=self.border,
            noise=self.noise,
            channels=self.channels,
            self_ensemble=self.self_ensemble,
            sizes=self.sizes,
        )
        if not reasons and self.benchmark is None:
            reasons = ["a test set of that name, not checked as a benchmark is"]
        elif not reasons and self.faults:
            reasons = [f"{self.faults} of its images could not be used"]
        elif not reasons:
            reasons = list(self.differs)
        if table.luma == "rounded" and "psnr_y_rounded" not in self.mean:
            reasons.append("Y as it is, published: rounded to 8 bits")
        return reasons


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """A published table, reduced to what ours were measured at, and our scores that may stand in
    it; for the others, and for rows of its own that differ, the difference."""

    table: PublishedTable
    published: tuple[PublishedResult, ...]
    ours: tuple[OurScore, ...]
    apart: tuple[tuple[OurScore, tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = field(default=())  # what is not the same, and moves little


def our_scores(records: Sequence[Mapping[str, Any]]) -> list[OurScore]:
    """Every model and test set of the records of `scores.json`."""
    found = []
    for record in records:
        protocol = record["protocol"]
        for name, scored in record["test_sets"].items():
            if not scored["images"]:
                continue
            benchmark = scored["benchmark"]
            found.append(
                OurScore(
                    model=record["model_name"],
                    trained_for=record["task"],
                    task=scored["task"],
                    title=scored["title"],
                    test_set=name,
                    benchmark=benchmark and benchmark["name"],
                    mean=scored["mean"]["restored"],
                    images=len(scored["images"]),
                    sizes=frozenset((each["width"], each["height"]) for each in scored["images"]),
                    faults=len(scored["faults"]),
                    differs=tuple(differing(benchmark["checks"])) if benchmark else (),
                    border=scored["border"],
                    noise=scored["noise"],
                    channels=1 if protocol["channels"] == ["grey"] else 3,
                    self_ensemble=protocol["self_ensemble"],
                    tiling=protocol["tiling"],
                )
            )
    return found


def compared_tables(records: Sequence[Mapping[str, Any]]) -> list[ComparedTable]:
    """The published tables for what the records were measured at, ours beside them."""
    scores = our_scores(records)
    compared = []
    for table in published_tables():
        measured = {each.task for each in scores}
        published = tuple(each for each in table.results if each.task in measured)
        if not published:
            continue
        tasks = {each.task for each in published}
        of_table = [each for each in scores if each.task in tasks]
        reasons = [(each, tuple(each.why_not_in(table))) for each in of_table]
        ours = tuple(each for each, why in reasons if not why)
        compared.append(
            ComparedTable(
                table=table,
                published=published,
                ours=ours,
                apart=tuple((each, why) for each, why in reasons if why),
                notes=_notes(table, ours),
            )
        )
    return compared


def comparison_data(records: Sequence[Mapping[str, Any]]) -> list[dict[str, JSON]]:
    """The same for machines, such as report.json."""
    return [
        {
            "title": each.table.title,
            "protocol": {
                key: getattr(each.table, key)
                for key in ("channel", "border", "noise", "rounding", "luma", "tiling")
            },
            "source": each.table.source,
            "remark": each.table.remark,
            "explanation": each.table.explanation,
            "published": [asdict(result) for result in each.published],
            "ours": [_data(score) | _in_table(score, each.table) for score in each.ours],
            "not_comparable": [_data(score) | {"differs": list(why)} for score, why in each.apart],
            "notes": list(each.notes),
        }
        for each in compared_tables(records)
    ]


def _channel(table: PublishedTable, mean: Mapping[str, float | None]) -> str:
    if table.channel != "Y":  # of grey images both are of their one channel
        return "rgb"
    return "y_rounded" if table.luma == "rounded" and "psnr_y_rounded" in mean else "y"


def _notes(table: PublishedTable, ours: Sequence[OurScore]) -> tuple[str, ...]:
    notes = []
    if table.noise is not None and ours:
        notes.append("the noise is another draw: seeds can't be shared between generators")
    tilings = {each.tiling for each in ours} - {None, table.tiling}
    if table.tiling is not None and tilings:
        notes.append(f"ours by the tiling {', '.join(sorted(map(str, tilings)))}, IPT's: official")
    return tuple(notes)


def _data(score: OurScore) -> dict[str, JSON]:
    record = {key: value for key, value in asdict(score).items() if key != "sizes"}
    return record | {"mean": dict(score.mean)}


def _in_table(score: OurScore, table: PublishedTable) -> dict[str, JSON]:
    return {"psnr": score.psnr_in(table), "ssim": score.ssim_in(table)}
