"""The verdict in one table: what went in, what each model made of it, what others report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import JSON
from pipeline.report.published import published_beside, published_psnr
from pipeline.report.verdict import (
    MODELS,
    VerdictRow,
    best_models,
    corrupted_name,
    headline_channel,
    headline_score,
)
from pipeline.tasks import TASKS, Bicubic


def task_table(
    rows: Sequence[VerdictRow], protocols: Mapping[str, Mapping[str, JSON]]
) -> list[dict[str, Any]]:
    """A line for every task and test set, on the scale that the task is compared by."""
    table = []
    for row in rows:
        task = TASKS[row.task]
        score = headline_score(task)
        published, why_not = published_beside(row, protocols[row.task])
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
                    {"method": each.method, "psnr": published_psnr(each), "result": each}
                    for each in published
                ],
                "why_not": why_not,
            }
        )
    return table


def _finite(gain: float) -> float | None:
    """Beside equal images there is nothing to say in dB."""
    return gain if math.isfinite(gain) else None
