"""The verdict in one table: what went in, what each model made of it, what others report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import JSON
from pipeline.published_comparison import ComparedTable
from pipeline.report.published import published_beside, published_psnr
from pipeline.report.verdict import (
    MODELS,
    VERSIONS,
    VerdictRow,
    best_models,
    corrupted_name,
    headline_channel,
    headline_score,
    model_of,
)
from pipeline.tasks import TASKS, Bicubic


def task_table(
    rows: Sequence[VerdictRow],
    records: Sequence[Mapping[str, Any]],
    tables: Sequence[ComparedTable],
) -> list[dict[str, Any]]:
    """A line for every task and test set, on the scale that the task is compared by.

    `records` are those of scores.json, `tables` the published ones with ours.
    """
    checks = _checks(records)
    table = []
    for row in rows:
        task = TASKS[row.task]
        score = headline_score(task)
        published, why_not = published_beside(row, tables)
        best = best_models(row.models).get(score, set())
        table.append(
            {
                "row": row,
                "title": task.title,
                "channel": headline_channel(task),
                "score": score,
                "input": corrupted_name(task),
                "label": "Bicubic" if isinstance(task.corruption, Bicubic) else "Input",
                "corrupted": row.corrupted[score],
                "models": {
                    name: {
                        "value": row.models[name][score],
                        "gain": _finite(row.lead(row.models[name], row.corrupted)),
                        "best": name in best,
                    }
                    for name in MODELS
                    if name in row.models
                },
                "published": [
                    {
                        "method": each.result.method,
                        "psnr": published_psnr(each.result),
                        "tiling": each.tiling,
                        "result": each.result,
                    }
                    for each in published
                ],
                "why_not": why_not,
                "checks": checks.get((row.task, row.test_set), []),
                "checked": _checked(checks.get((row.task, row.test_set), [])),
            }
        )
    return table


def unscored_section(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By task, what gave no score, with the model and the reason, and the benchmarks not there."""
    section: dict[str, dict[str, Any]] = {}
    for record in records:
        of_task = section.setdefault(record["task"], {"failed": [], "missing": []})
        of_task["failed"] += [
            {"test_set": test_set, "model": VERSIONS[model_of(record)], "reason": reason}
            for test_set, reason in record["failed"].items()
        ]
        of_task["missing"] += [
            name for name in record["missing_benchmarks"] if name not in of_task["missing"]
        ]
    return {task: section[task] for task in TASKS if any(section.get(task, {}).values())}


def _checks(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[dict[str, JSON]]]:
    """What was verified of the photographs of each (task, test set) that is a benchmark."""
    return {
        (record["task"], name): scored["benchmark"]["checks"]
        for record in records
        for name, scored in record["test_sets"].items()
        if scored["benchmark"]
    }


def _checked(checks: Sequence[Mapping[str, JSON]]) -> str | None:
    """The checks in a few words; None of what is no benchmark."""
    by_state: dict[str, list[str]] = {}
    for each in checks:
        by_state.setdefault(each["state"], []).append(each["what"])
    if "differs" in by_state:
        return f"differs: {', '.join(by_state['differs'])}"
    if "not checked" in by_state and "verified" in by_state:
        return f"verified: {', '.join(by_state['verified'])}"
    return "verified" if checks else None


def _finite(gain: float) -> float | None:
    """Beside equal images there is nothing to say in dB."""
    return gain if math.isfinite(gain) else None
