"""Scores that others published, each with the protocol it was measured by."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

PATH = Path(__file__).parent / "assets" / "published_results.yaml"
ABOUT_A_ROW = frozenset({"method", "source", "remark"})


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One published number: a method on one benchmark at one task."""

    method: str
    task: str  # a name of TASKS, or what such a task would be called, as denoise25
    benchmark: str
    psnr: float
    ssim: float | None
    channel: Literal["RGB", "Y", "grey"]
    border: Literal["scale", "0"]  # pixels cut off on each side before scoring
    noise: Literal["clipped", "unclipped"] | None
    source: str
    remark: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A published table of one protocol; `source` and `remark` hold where a row says no other."""

    title: str
    benchmarks: tuple[str, ...]
    channel: Literal["RGB", "Y", "grey"]
    border: Literal["scale", "0"]
    noise: Literal["clipped", "unclipped"] | None
    source: str
    remark: str | None
    explanation: str | None
    results: tuple[PublishedResult, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    name: str
    images: int
    also: tuple[str, ...] = ()  # other names that people use
    grey: bool = False


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    return tuple(_table(record) for record in _file()["tables"])


def published_for(task: str) -> list[PublishedResult]:
    """Every published number for one task, table by table."""
    results = (result for table in published_tables() for result in table.results)
    return [result for result in results if result.task == task]


def benchmark_named(name: str) -> Benchmark | None:
    """The benchmark that somebody's test set is named after: `cbsd-68` is CBSD68."""
    plain = _plain(name)
    for benchmark in _benchmarks():
        if plain in map(_plain, (benchmark.name, *benchmark.also)):
            return benchmark
    return None


def differences(
    result: PublishedResult, *, test_set: str, images: int, border: int, noise: str | None
) -> list[str]:
    """Why our scores on a test set can't stand beside `result`; empty when they can.

    Our scores are always there for RGB and for Y; `images`, `border` (pixels) and `noise` are how
    ours were measured.
    """
    reasons = []
    benchmark = benchmark_named(result.benchmark)
    ours = benchmark_named(test_set)
    if benchmark is None or ours is None or ours.name != benchmark.name:
        reasons.append(f"other photographs ({test_set}, not {result.benchmark})")
    elif images != benchmark.images:
        reasons.append(f"{images} of the {benchmark.images} images of {benchmark.name}")
    if result.channel == "grey":
        reasons.append("grey images")
    if (result.border == "0") != (border == 0):
        reasons.append(f"border of {border} pixels cut, published: {result.border}")
    if result.noise != noise:
        reasons.append(f"noise {noise or 'not drawn'}, published: {result.noise or 'not drawn'}")
    return reasons


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


@cache
def _benchmarks() -> tuple[Benchmark, ...]:
    return tuple(
        Benchmark(
            name=name,
            images=about["images"],
            also=tuple(about.get("also", ())),
            grey=about.get("grey", False),
        )
        for name, about in _file()["benchmarks"].items()
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _table(record: Mapping[str, Any]) -> PublishedTable:
    results = [
        result for row in record["scores"] for result in _results(row, record, record["benchmarks"])
    ]
    return PublishedTable(
        title=record["title"],
        benchmarks=tuple(record["benchmarks"]),
        channel=record["channel"],
        border=record["border"],
        noise=record["noise"],
        source=record["source"],
        remark=record.get("remark"),
        explanation=record.get("explanation"),
        results=tuple(results),
    )


def _results(
    row: Mapping[str, Any], table: Mapping[str, Any], benchmarks: Sequence[str]
) -> list[PublishedResult]:
    about = {key: row.get(key, table.get(key)) for key in ABOUT_A_ROW}
    about |= {key: table[key] for key in ("channel", "border", "noise")}
    results = []
    for task, scores in row.items():
        if task in ABOUT_A_ROW:
            continue
        for benchmark, score in zip(benchmarks, scores, strict=True):
            if score is None:
                continue
            psnr, ssim = score if isinstance(score, list) else (score, None)
            results.append(
                PublishedResult(task=task, benchmark=benchmark, psnr=psnr, ssim=ssim, **about)
            )
    return results
