"""The published tables for the tasks of a run, with the run's own scores where they may stand."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.published_comparison import ComparedTable, OurScore
from pipeline.published_results import PublishedResult, PublishedTable
from pipeline.report.verdict import VerdictRow, headline_channel
from pipeline.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A published number for a row of ours: of its photographs, channel, border and noise."""

    result: PublishedResult
    tiling: str | None  # that its model restored by, where no model of the row did


def published_section(tables: Sequence[ComparedTable]) -> list[dict[str, Any]]:
    """The published tables for what was measured; ours stand in them where all is equal."""
    section = []
    for compared in tables:
        table, results = compared.table, compared.published
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for each in results:
            line = lines.setdefault(
                (each.method, each.source, each.remark, each.differs),
                {"name": each.method, "about": _about(each, table), "cells": {}, "ours": False},
            )
            line["cells"][(each.task, each.benchmark)] = _published_cell(each)
        has_ssim = any(each.ssim is not None for each in results)
        all_lines = [*lines.values(), *_our_lines(compared, with_ssim=has_ssim)]
        scores = [*compared.ours, *(score for score, _ in compared.apart)]
        titles = {each.task: each.title for each in scores}
        section.append(
            {
                "table": table,
                # A table per task: all tasks in one are too wide for paper and phones.
                "parts": [
                    _part(task, titles[task], all_lines)
                    for task in dict.fromkeys(each.task for each in results)
                ],
                "holds_ours": bool(compared.ours),
                "has_ssim": has_ssim,
                "reasons": _reasons(compared),
            }
        )
    return section


def _part(task: str, title: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The lines of a table that have a number for `task`."""
    of_task = [line for line in lines if any(each == task for each, _ in line["cells"])]
    return {"task": task, "title": title, "lines": of_task}


def _reasons(compared: ComparedTable) -> list[str]:
    """Why scores of ours have no place in a table, once for all that differ alike."""
    titles: dict[tuple[str, str], dict[str, None]] = {}
    for score, why in compared.apart:
        titles.setdefault((score.test_set, "; ".join(why)), {})[score.title] = None
    return [f"{', '.join(them)} on {name}: {why}" for (name, why), them in titles.items()]


def published_beside(
    row: VerdictRow, tables: Sequence[ComparedTable]
) -> tuple[list[Beside], str | None]:
    """What others report for a row's two models, or why nothing is there.

    Photographs, channel, border and noise are the row's; a tiling that is not is named. One number
    per method, the first of its tables; the published section has them all.
    """
    channel = headline_channel(TASKS[row.task])
    against: list[tuple[str, ...]] = []
    there: list[Beside] = []
    for compared in tables:
        # What a row shows is of luma as it is.
        if compared.table.channel != channel or compared.table.luma == "rounded":
            continue
        apart = [(score, why) for score, why in compared.apart if _is_of(score, row)]
        ours = [score for score in compared.ours if _is_of(score, row)]
        measured = {
            (score.task, score.benchmark) for score in (*ours, *(each for each, _ in apart))
        }
        if not any(each.task == task for each in compared.published for task, _ in measured):
            continue
        against.append(min((why for _, why in apart), key=len, default=()))
        if not apart:  # all models of the row may stand in it
            tilings = {score.tiling for score in ours}
            there += [
                Beside(result=each, tiling=_other_tiling(each, compared.table, tilings))
                for each in compared.published
                if (each.task, each.benchmark) in measured and not each.differs
            ]
    if not against:
        return [], "nothing published for this task"
    found: dict[str, Beside] = {}
    for beside in there:
        if re.match(r"(DnCNN|IPT)\b", beside.result.method):
            found.setdefault(beside.result.method, beside)
    if found:
        return list(found.values()), None
    if there:
        return [], "other methods only"
    if all(against):
        return [], min(against, key=len)[0].partition(" (")[0]
    return [], "no number for these photographs"


def _other_tiling(
    result: PublishedResult, table: PublishedTable, tilings: Collection[str | None]
) -> str | None:
    """How IPT joined its tiles, where none of our `tilings` is that; other models have no tiles."""
    is_tiled = re.match(r"IPT\b", result.method) is not None
    return table.tiling if is_tiled and table.tiling not in tilings else None


def _is_of(score: OurScore, row: VerdictRow) -> bool:
    return (score.trained_for, score.test_set) == (row.task, row.test_set)


def _about(result: PublishedResult, table: PublishedTable) -> str:
    """What is to be known of a row beyond what holds for its table."""
    parts = [
        result.source if result.source != table.source else None,
        result.remark if result.remark != table.remark else None,
        result.differs,
    ]
    return "; ".join(part for part in parts if part)


def published_psnr(result: PublishedResult) -> str:
    """With the digits that it was published with, two at least."""
    return f"{result.psnr:.{max(2, len(repr(result.psnr).partition('.')[2]))}f}"


def _published_cell(result: PublishedResult) -> str:
    ssim = "" if result.ssim is None else f" / {result.ssim:.4f}"
    return f"{published_psnr(result)}{ssim}"


def _our_lines(compared: ComparedTable, *, with_ssim: bool) -> list[dict[str, Any]]:
    """A line for every model of ours; one that was trained for other tasks says for which."""
    ours: dict[str, dict[str, Any]] = {}
    for score in sorted(compared.ours, key=lambda each: each.model):  # DnCNN before IPT
        name = score.model
        if score.task != score.trained_for and score.trained_for in TASKS:
            name += f" for {TASKS[score.trained_for].title}"
        about = "same photographs, channel, border and noise"
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
