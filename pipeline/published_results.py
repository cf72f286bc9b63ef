"""Scores that others published, each with the protocol it was measured by."""

import re
from collections.abc import Iterator, Mapping
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
    source: str
    remark: str | None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A published table of one protocol; `source` and `remark` hold where a row says no other."""

    title: str
    benchmarks: tuple[str, ...]
    channel: Literal["RGB", "Y", "grey"]
    border: Literal["scale", "0"]  # pixels cut off on each side before scoring
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


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    return tuple(_table(record) for record in _file()["tables"])


def benchmark_named(name: str) -> Benchmark | None:
    """The benchmark that somebody's test set is named after: `cbsd-68` is CBSD68."""
    plain = _plain(name)
    for benchmark in (Benchmark(name=key, **about) for key, about in _file()["benchmarks"].items()):
        if plain in map(_plain, (benchmark.name, *benchmark.also)):
            return benchmark
    return None


def differences(
    table: PublishedTable, *, test_set: str, images: int, border: int, noise: str | None
) -> list[str]:
    """Why our scores on a test set can't stand in `table`; empty when they can.

    Our scores are always there for RGB and for Y, and those of grey tasks, which only grey tables
    have, for grey; `images`, `border` (pixels) and `noise` are how ours were measured.
    """
    reasons = []
    benchmark = benchmark_named(test_set)
    if benchmark is None or benchmark.name not in table.benchmarks:
        reasons.append(f"other photographs ({test_set}, not {' or '.join(table.benchmarks)})")
    elif images != benchmark.images:
        reasons.append(f"{images} of the {benchmark.images} images of {benchmark.name}")
    if (table.border == "0") != (border == 0):
        reasons.append(f"border of {border} pixels cut, published: {table.border}")
    if table.noise != noise:
        reasons.append(f"noise {noise or 'not drawn'}, published: {table.noise or 'not drawn'}")
    return reasons


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _table(record: Mapping[str, Any]) -> PublishedTable:
    return PublishedTable(
        title=record["title"],
        benchmarks=tuple(record["benchmarks"]),
        channel=record["channel"],
        border=record["border"],
        noise=record["noise"],
        source=record["source"],
        remark=record.get("remark"),
        explanation=record.get("explanation"),
        results=tuple(result for row in record["scores"] for result in _results(row, record)),
    )


def _results(row: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[PublishedResult]:
    about = {key: row.get(key, table.get(key)) for key in ABOUT_A_ROW}
    for task in (key for key in row if key not in ABOUT_A_ROW):
        for benchmark, score in zip(table["benchmarks"], row[task], strict=True):
            if score is not None:
                psnr, ssim = score if isinstance(score, list) else (score, None)
                yield PublishedResult(task=task, benchmark=benchmark, psnr=psnr, ssim=ssim, **about)
