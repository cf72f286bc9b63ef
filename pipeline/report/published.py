"""The published tables for the tasks of a run, with the run's own scores where they may stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import JSON
from pipeline.published_results import PublishedResult, differences, published_tables
from pipeline.report.verdict import VERSIONS, VerdictRow
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
        columns = [(task, name) for task in tasks for name in table.benchmarks]
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for each in results:
            about = (each.method, each.channel, each.noise, each.source, each.remark)
            line = lines.setdefault(about, {"result": each, "cells": {}, "ours": False})
            line["cells"][(each.task, each.benchmark)] = each
        ours, reasons = _ours(results, rows, protocols)
        section.append(
            {
                "title": table.title,
                "explanation": table.explanation,
                "tasks": [(TASKS[task].title, len(table.benchmarks)) for task in tasks],
                "columns": columns,
                "lines": [*lines.values(), *ours],
                "channel": results[0].channel,
                "border": results[0].border,
                "reasons": reasons,
            }
        )
    return section


def _ours(
    results: Sequence[PublishedResult],
    rows: Sequence[VerdictRow],
    protocols: Mapping[str, Mapping[str, JSON]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Our lines for a published table, and for every row of ours that has no place in it, why."""
    ours: dict[str, dict[str, Any]] = {}
    reasons = []
    for row in rows:
        candidates = [each for each in results if each.task == row.task]
        if not candidates:
            continue
        protocol = protocols[row.task]
        found = [
            (
                differences(
                    each,
                    test_set=row.test_set,
                    images=row.images,
                    border=protocol["border"],
                    noise=protocol["noise"],
                ),
                each,
            )
            for each in candidates
        ]
        fewest, closest = min(found, key=lambda pair: len(pair[0]))
        if fewest:
            reasons.append(f"{TASKS[row.task].title} on {row.test_set}: {'; '.join(fewest)}")
            continue
        for model in ("dncnn", "ipt"):
            scores = getattr(row, model)
            if scores is None:
                continue
            channel = closest.channel.lower()
            line = ours.setdefault(model, {"name": VERSIONS[model], "cells": {}, "ours": True})
            line["cells"][(row.task, closest.benchmark)] = {
                "psnr": scores[f"psnr_{channel}"],
                "ssim": scores[f"ssim_{channel}"],
            }
    return list(ours.values()), reasons
