"""The published tables for the tasks of a run, with the run's own scores where they may stand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import JSON
from pipeline.published_results import (
    PublishedResult,
    PublishedTable,
    benchmark_named,
    differences,
    published_tables,
)
from pipeline.report.verdict import MODELS, VERSIONS, Scores, VerdictRow, headline_channel
from pipeline.tasks import TASKS


def published_section(
    rows: Sequence[VerdictRow], protocols: Mapping[str, Mapping[str, JSON]]
) -> list[dict[str, Any]]:
    """The published tables for the tasks of this run; ours stand in them where all is equal.

    `protocols` is the protocol of the scores by task.
    """
    section = []
    for table in published_tables():
        results = [each for each in table.results if each.task in protocols]
        if not results:
            continue
        tasks = list(dict.fromkeys(each.task for each in results))
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for each in results:
            line = lines.setdefault(
                (each.method, each.source, each.remark),
                {"name": each.method, "about": _about(each, table), "cells": {}, "ours": False},
            )
            line["cells"][(each.task, each.benchmark)] = _published_cell(each)
        has_ssim = any(each.ssim is not None for each in results)
        ours, reasons = _ours(
            table, [row for row in rows if row.task in tasks], protocols, with_ssim=has_ssim
        )
        section.append(
            {
                "table": table,
                # A table per task: all tasks in one are too wide for paper and phones.
                "parts": [_part(task, [*lines.values(), *ours]) for task in tasks],
                "holds_ours": bool(ours),
                "results": results,
                "has_ssim": has_ssim,
                "reasons": reasons,
            }
        )
    return section


def _part(task: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The lines of a table that have a number for `task`."""
    of_task = [line for line in lines if any(each == task for each, _ in line["cells"])]
    return {"task": task, "title": TASKS[task].title, "lines": of_task}


def reasons_against(
    table: PublishedTable, row: VerdictRow, protocol: Mapping[str, JSON]
) -> list[str]:
    """Why a row of ours can't stand in `table`; empty when it can."""
    is_unknown = row.corrupted_is_given and protocol["noise"] is not None
    return differences(
        table,
        test_set=row.test_set,
        images=row.images,
        border=protocol["border"],
        noise="of given files" if is_unknown else protocol["noise"],
    )


def published_beside(
    row: VerdictRow, protocol: Mapping[str, JSON]
) -> tuple[list[PublishedResult], str | None]:
    """What others report for a row's two models under its very protocol, or why nothing is there.

    One number per method, the first of its tables; the published section has them all.
    """
    channel = headline_channel(TASKS[row.task])
    tables = [
        table
        for table in published_tables()
        if table.channel == channel and any(each.task == row.task for each in table.results)
    ]
    if not tables:
        return [], "nothing published for this task"
    benchmark = benchmark_named(row.test_set)
    against = [reasons_against(table, row, protocol) for table in tables]
    there = [
        each
        for table, reasons in zip(tables, against, strict=True)
        for each in table.results
        if not reasons and benchmark and (each.task, each.benchmark) == (row.task, benchmark.name)
    ]
    found: dict[str, PublishedResult] = {}
    for each in there:
        if re.match(r"(DnCNN|IPT)\b", each.method):
            found.setdefault(each.method, each)
    if found:
        return list(found.values()), None
    if there:
        return [], "other methods only"
    if all(against):
        return [], min(against, key=len)[0].partition(" (")[0]
    return [], "no number for these photographs"


def _about(result: PublishedResult, table: PublishedTable) -> str:
    """What is to be known of a row beyond what holds for its table."""
    parts = [
        result.source if result.source != table.source else None,
        result.remark if result.remark != table.remark else None,
    ]
    return "; ".join(part for part in parts if part)


def published_psnr(result: PublishedResult) -> str:
    """With the digits that it was published with, two at least."""
    return f"{result.psnr:.{max(2, len(repr(result.psnr).partition('.')[2]))}f}"


def _published_cell(result: PublishedResult) -> str:
    ssim = "" if result.ssim is None else f" / {result.ssim:.4f}"
    return f"{published_psnr(result)}{ssim}"


def _our_cell(scores: Scores, *, channel: str, with_ssim: bool) -> str:
    psnr, ssim = scores[f"psnr_{channel}"], scores[f"ssim_{channel}"]
    text = "∞" if psnr is None else f"{psnr:.2f}"
    return f"{text} / {ssim:.4f}" if with_ssim else text


def _ours(
    table: PublishedTable,
    rows: Sequence[VerdictRow],
    protocols: Mapping[str, Mapping[str, JSON]],
    *,
    with_ssim: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Our lines for a published table, and for every row of ours without a place in it, why."""
    ours: dict[str, dict[str, Any]] = {}
    refused: dict[tuple[str, str], list[str]] = {}  # tasks by test set and reason
    for row in rows:
        reasons = reasons_against(table, row, protocols[row.task])
        if reasons:
            place = (row.test_set, "; ".join(reasons))
            refused.setdefault(place, []).append(TASKS[row.task].title)
            continue
        benchmark = benchmark_named(row.test_set)
        assert benchmark is not None  # or there was a reason
        for model, scores in row.models.items():
            name = f"{VERSIONS[model]}, this run"
            about = "same photographs and protocol"
            line = ours.setdefault(model, {"name": name, "about": about, "cells": {}, "ours": True})
            line["cells"][(row.task, benchmark.name)] = _our_cell(
                scores, channel="y" if table.channel == "Y" else "rgb", with_ssim=with_ssim
            )
    sentences = [
        f"{', '.join(tasks)} on {test_set}: {reason}"
        for (test_set, reason), tasks in refused.items()
    ]
    return [ours[model] for model in MODELS if model in ours], sentences
