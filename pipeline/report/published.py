"""The published tables for the tasks of a run, with the run's own scores where they may stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.published_comparison import ComparedTable, OurScore, compared_tables
from pipeline.published_results import PublishedResult, PublishedTable
from pipeline.tasks import TASKS


def published_section(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The published tables for what the `scores.json` records were measured at; ours stand in them
    where all is equal."""
    section = []
    for compared in compared_tables(records):
        table, results = compared.table, compared.published
        tasks = list(dict.fromkeys(each.task for each in results))
        titles = {each.task: each.title for each in (*compared.ours, *_apart(compared))}
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for each in results:
            line = lines.setdefault(
                (each.method, each.source, each.remark),
                {"name": each.method, "about": _about(each, table), "cells": {}, "ours": False},
            )
            line["cells"][(each.task, each.benchmark)] = _published_cell(each)
        has_ssim = any(each.ssim is not None for each in results)
        section.append(
            {
                "table": table,
                "tasks": [titles[task] for task in tasks],
                "columns": [(task, name) for task in tasks for name in table.benchmarks],
                "lines": [*lines.values(), *_our_lines(compared, with_ssim=has_ssim)],
                "has_ssim": has_ssim,
                "reasons": [
                    f"{score.title} on {score.test_set}: {'; '.join(why)}"
                    for score, why in dict((_place(each), each) for each in compared.apart).values()
                ],
            }
        )
    return section


def _apart(compared: ComparedTable) -> list[OurScore]:
    return [score for score, _ in compared.apart]


def _place(apart: tuple[OurScore, tuple[str, ...]]) -> tuple[str, ...]:
    """Models of the same task differ for the same reason, which is said once."""
    score, why = apart
    return (score.title, score.test_set, *why)


def _about(result: PublishedResult, table: PublishedTable) -> str:
    """What is to be known of a row beyond what holds for its table."""
    parts = [
        result.source if result.source != table.source else None,
        result.remark if result.remark != table.remark else None,
        result.differs,
    ]
    return "; ".join(part for part in parts if part)


def _published_cell(result: PublishedResult) -> str:
    """PSNR with the digits that it was published with, two at least, and SSIM if there is one."""
    digits = max(2, len(repr(result.psnr).partition(".")[2]))
    ssim = "" if result.ssim is None else f" / {result.ssim:.4f}"
    return f"{result.psnr:.{digits}f}{ssim}"


def _our_lines(compared: ComparedTable, *, with_ssim: bool) -> list[dict[str, Any]]:
    """A line for every model of ours; one that was trained for other tasks says for which."""
    ours: dict[str, dict[str, Any]] = {}
    for score in sorted(compared.ours, key=lambda each: each.model):  # DnCNN before IPT
        name = score.model
        if score.task != score.trained_for and score.trained_for in TASKS:
            name += f" for {TASKS[score.trained_for].title}"
        about = "same photographs and protocol"
        if compared.notes:
            about += f"; {'; '.join(compared.notes)}"
        line = ours.setdefault(
            name, {"name": f"{name}, this run", "about": about, "cells": {}, "ours": True}
        )
        psnr, ssim = score.psnr_in(compared.table), score.ssim_in(compared.table)
        text = "∞" if psnr is None else f"{psnr:.2f}"
        cell = f"{text} / {ssim:.4f}" if with_ssim and ssim is not None else text
        line["cells"][(score.task, score.benchmark)] = cell
    return list(ours.values())
