"""Scores that others published, each with the protocol it was measured by."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.benchmarks import benchmark_named

PATH = Path(__file__).parent / "assets" / "published_results.yaml"
ABOUT_A_ROW = frozenset({"method", "source", "remark", "differs"})


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One published number: a method on one benchmark at one task."""

    method: str
    task: str  # as published_name has it, such as denoise25
    benchmark: str
    psnr: float
    ssim: float | None
    source: str
    remark: str | None
    differs: str | None  # from the protocol of its table, in words


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A published table of one protocol; `source` and `remark` hold where a row says no other."""

    title: str
    benchmarks: tuple[str, ...]
    channel: Literal["RGB", "Y", "grey"]
    border: Literal["scale", "0"]  # pixels cut off on each side before scoring
    noise: Literal["clipped", "unclipped"] | None
    rounding: Literal["uint8", "none"]  # of the restored image
    luma: Literal["as it is", "rounded"] | None  # of a table on Y
    sizes: Mapping[str, tuple[int, int]]  # (width, height) of the copy, where several are about
    tiling: Literal["official"] | None  # of its models that restore by tiles
    source: str
    remark: str | None
    explanation: str | None
    results: tuple[PublishedResult, ...]


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    return tuple(_table(record) for record in _file()["tables"])


def differences(
    table: PublishedTable,
    *,
    test_set: str,
    images: int,
    border: int,
    noise: str | None,
    channels: int = 3,
    self_ensemble: bool = False,
    sizes: Collection[tuple[int, int]] = (),
) -> list[str]:
    """Why our scores on a test set can't stand in `table`; empty when they can.

    Our scores are always there for RGB and for Y, of images rounded to 8 bits, and those of grey
    tasks for grey; `images`, `border` (pixels), `noise`, `channels` of the images and their `sizes`
    (width, height) are how ours were measured.
    """
    reasons = []
    benchmark = benchmark_named(test_set)
    if benchmark is None or benchmark.name not in table.benchmarks:
        reasons.append(f"other photographs ({test_set}, not {' or '.join(table.benchmarks)})")
    elif images != benchmark.images:
        reasons.append(f"{images} of the {benchmark.images} images of {benchmark.name}")
    elif benchmark.name in table.sizes and set(sizes) != {table.sizes[benchmark.name]}:
        width, height = table.sizes[benchmark.name]
        found = ", ".join(f"{one}×{other}" for one, other in sorted(set(sizes))) or "unknown"
        reasons.append(f"{benchmark.name} of {found} pixels, published: {width}×{height}")
    if (table.channel == "grey") != (channels == 1):
        ours = "grey" if channels == 1 else "colour"
        reasons.append(f"{ours} images, published: on {table.channel}")
    if (table.border == "0") != (border == 0):
        reasons.append(f"border of {border} pixels cut, published: {table.border}")
    if table.noise != noise:
        reasons.append(f"noise {noise or 'not drawn'}, published: {table.noise or 'not drawn'}")
    if table.rounding != "uint8":
        reasons.append("restored image rounded to 8 bits, published: not rounded")
    if self_ensemble:
        reasons.append("with self-ensemble, published: without")
    return reasons


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def _table(record: Mapping[str, Any]) -> PublishedTable:
    return PublishedTable(
        title=record["title"],
        benchmarks=tuple(record["benchmarks"]),
        channel=record["channel"],
        border=record["border"],
        noise=record["noise"],
        rounding=record["rounding"],
        luma=record.get("luma"),
        sizes={name: tuple(size) for name, size in record.get("sizes", {}).items()},
        tiling=record.get("tiling"),
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
