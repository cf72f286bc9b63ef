"""What `ipt evaluate` prints of its scores: tables, what was verified, what stands apart."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.terminal import print_table
from pipeline.artifacts import JSON
from pipeline.protocol import in_words
from pipeline.published_comparison import compared_tables

HEADER = ("task", "test set", "images", "noise", "image")
SCORES = (("psnr_rgb", 2), ("psnr_y", 2), ("ssim_rgb", 4), ("ssim_y", 4))


def print_evaluation(evaluation: Mapping[str, Any], out: Path) -> None:
    records = evaluation["records"]
    print(f"\n{evaluation['architecture']} of {evaluation['weights']}\n")
    print("PSNR in dB, and SSIM" + ("; INCOMPLETE, see below" if evaluation["incomplete"] else ""))
    names = ("PSNR RGB", "PSNR Y", "SSIM RGB", "SSIM Y")
    print_table((*HEADER, *names), [row for record in records for row in _rows(record)])
    for record in records:
        print(f"\nprotocol of {record['task']}: {in_words(record['protocol'])}")
    print("\nbenchmarks")
    for record in records:
        for line in _checked(record):
            print(f"  {record['task']}: {line}")
    if evaluation["without_benchmark"]:
        print(f"  no benchmark there for {', '.join(evaluation['without_benchmark'])}")
    _print_published(records)
    print("\ncost")
    print_table(
        (*("task", "parameters", "GFLOP a patch", "TFLOP/MP"), *("s/MP", "peak GiB", "on")),
        [_cost(record) for record in records],
    )
    faults = [f"  {record['task']}: {fault}" for record in records for fault in record["faults"]]
    if faults:
        print("\n".join(["\nINCOMPLETE: what could not be scored as it should", *faults]))
    print(f"\nper-image scores: {out / 'scores.json'}")


def _rows(record: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, scored in record["test_sets"].items():
        whole = scored["benchmark"]["images"]
        count = f"{len(scored['images'])} of {whole}"
        if scored["incomplete"]:
            count += " INCOMPLETE"
        for version, label in (("corrupted", "input"), ("restored", record["model_name"])):
            scores = [_number(scored["mean"][version][key], digits) for key, digits in SCORES]
            yield [record["task"], name, count, scored["noise"] or "", label, *scores]
    for name in record["failed"]:
        yield [record["task"], name, "0 INCOMPLETE", "", "", *[""] * len(SCORES)]


def _checked(record: Mapping[str, Any]) -> Iterator[str]:
    """What was found out about every benchmark, and which are not there."""
    for name, scored in record["test_sets"].items():
        parts = []
        for check in scored["benchmark"]["checks"]:
            text = f"{check['what']} {check['state']}"
            if check["state"] == "differs":
                text = f"{check['what']} differs: expected {check['expected']}"
                text += f", found {check['found']}"
            elif check["state"] == "not checked":
                text += f" ({check['expected']})"
            elif check["what"] != "sizes":
                text += f" ({check['found']})"
            parts.append(text)
        yield f"{name} ({scored['benchmark']['layout']}): {'; '.join(parts)}"
    if record["missing_benchmarks"]:
        yield f"not there: {', '.join(record['missing_benchmarks'])}"


def _print_published(records: list[Mapping[str, Any]]) -> None:
    rows: list[list[str]] = []
    apart: dict[str, None] = {}  # each once, in their order
    for compared in compared_tables(records):
        table = compared.table
        for score in compared.ours:
            value = score.psnr_in(table)
            for each in compared.published:
                if (each.task, each.benchmark) != (score.task, score.benchmark):
                    continue
                gap = "" if value is None or each.differs else f"{value - each.psnr:+.2f}"
                place = (score.task, each.benchmark, table.channel, each.method)
                values = (f"{each.psnr:.2f}", _number(value, 2), gap)
                rows.append([*place, *values, each.differs or each.source])
        for score, why in compared.apart:
            apart[f"  {score.task} on {score.test_set}, {table.title}: {'; '.join(why)}"] = None
        for note in compared.notes:
            apart[f"  {table.title}: {note}"] = None
    if rows:
        print("\npublished, for the same photographs, channel, border and noise")
        header = ("task", "benchmark", "PSNR on", "method", "published", "here", "gap", "source")
        print_table(header, rows)
    if apart:
        print("\nnot comparable, or not quite")
        print("\n".join(apart))


def _cost(record: Mapping[str, Any]) -> list[str]:
    cost: Mapping[str, JSON] = record["cost"]
    return [
        record["task"],
        f"{cost['parameters']:,}",
        f"{cost['patch_flops'] / 1e9:.4g}",
        _number(cost["flops_per_megapixel"] and cost["flops_per_megapixel"] / 1e12, 3),
        _number(cost["seconds_per_megapixel"], 2),
        f"{cost['peak_memory']['bytes'] / 2**30:.2f}",
        f"{cost['device']} ({cost['peak_memory']['of']})",
    ]


def _number(value: float | None, digits: int) -> str:
    return "∞" if value is None else f"{value:.{digits}f}"  # None: no error at all
