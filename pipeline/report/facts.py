"""The plain facts of a run: curves, samples, data, graph, provenance."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from pipeline.artifacts import JSON, Artifact
from pipeline.report.figures import Node, Series, duration, graph_picture, line_chart
from pipeline.report.pictures import contact_sheet, png_uri
from pipeline.tasks import TASKS

NOT_PARTS = frozenset(
    (
        *("step", "samples", "seconds", "loss", "learning_rate", "gradient_norm"),
        *("samples_per_second", "skipped", "memory_gib"),
    )
)


def curves_section(
    title: str, trainings: Mapping[str, tuple[Path, Mapping[str, JSON]]]
) -> dict[str, Any] | None:
    """The curves of trainings of one kind, each a (folder, summary) by the name of its stage.

    None where they logged nothing.
    """
    logged = {name: rows for name, (folder, _) in trainings.items() if (rows := _rows(folder))}
    if not logged:
        return None
    losses: dict[str, list[tuple[float, float]]] = {}
    parts: dict[str, list[tuple[float, float]]] = {}
    rates: dict[str, list[tuple[float, float]]] = {}
    for name, rows in logged.items():
        task = name.partition("-")[2] or name
        l1 = sorted({key for row in rows for key in row if key.startswith("l1/")})
        for key in l1 or ["loss"]:
            losses[key.removeprefix("l1/") if l1 else task] = _points(rows, key)
        others = {key for row in rows for key in row} - NOT_PARTS - set(l1)
        parts |= {key: points for key in sorted(others) if (points := _points(rows, key))}
        rates[task] = _points(rows, "learning_rate")
    if len({tuple(points) for points in rates.values()}) == 1:
        rates = {"": next(iter(rates.values()))}
    charts = [
        _chart(losses, "Loss", log=True),
        *(_chart({"": points}, key.capitalize(), log=False) for key, points in parts.items()),
        _chart(rates, "Learning rate", log=False),
    ]
    return {
        "title": title,
        "stages": [f"{name}: {_account(summary)}" for name, (_, summary) in trainings.items()],
        "charts": [chart for chart in charts if chart],
    }


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["samples"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def _account(summary: Mapping[str, JSON]) -> str:
    counts = ("samples", "steps", "parameters", "skipped_steps")
    parts = [
        f"{summary[key]:,} {key.replace('_', ' ')}"
        for key in counts
        if summary.get(key) or (key in summary and key != "skipped_steps")
    ]
    if summary.get("world_size"):
        parts.append(f"{summary['world_size']} process{'es' if summary['world_size'] > 1 else ''}")
    if summary.get("seconds") is not None:
        parts.append(duration(summary["seconds"]))
    return ", ".join(parts)


def _chart(
    lines: Mapping[str, Sequence[tuple[float, float]]], title: str, *, log: bool
) -> dict[str, Any] | None:
    series = [
        Series(name=name, number=number, points=points)
        for number, (name, points) in enumerate(lines.items())
    ]
    picture = line_chart(series, title=title, x_label="samples", log=log)
    note = "logarithmic" if log else ""
    return {"title": title, "note": note, "svg": Markup(picture)} if picture else None


def skipped_section(corrupt: Mapping[str, Artifact]) -> list[dict[str, str]]:
    """Every photograph that a corrupt stage could not use, once, and for which tasks."""
    found: dict[tuple[str, str], list[str]] = {}
    for artifact in corrupt.values():
        for each in artifact.manifest.summary["skipped"]:
            tasks = found.setdefault((each["path"], each["reason"]), [])
            tasks.append(artifact.manifest.summary["task"])
    return [
        {
            "path": path,
            "reason": reason,
            "tasks": "every task" if len(tasks) == len(corrupt) else ", ".join(tasks),
        }
        for (path, reason), tasks in found.items()
    ]


def samples_section(
    corrupted: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    configs: Mapping[str, Mapping[str, JSON]],
) -> list[dict[str, Any]]:
    """A contact sheet per task; `corrupted` has (corrupted, clean) patches by task, uint8 HWC."""
    section = []
    for name, (inputs, cleans) in corrupted.items():
        sheet = contact_sheet(list(zip(inputs, cleans, strict=True)))
        section.append(
            {
                "task": name,
                "title": TASKS[name].title,
                "parameters": ", ".join(f"{key} {value}" for key, value in configs[name].items()),
                "count": len(inputs),
                "patch": inputs[0].shape[0],
                "target": cleans[0].shape[0],
                "uri": png_uri(sheet),
                "width": sheet.shape[1],
                "height": sheet.shape[0],
            }
        )
    return section


def graph_section(
    artifacts: Mapping[str, Artifact],
    kinds: Mapping[str, str],
    edges: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The picture of the graph, and a line for every stage."""
    seconds = {name: each.manifest.provenance["seconds"] for name, each in artifacts.items()}
    nodes = [
        Node(name=name, kind=kinds[name], seconds=seconds[name], inputs=tuple(edges[name]))
        for name in artifacts
    ]
    stages = [
        {
            "name": name,
            "time": duration(seconds[name]),
            "fingerprint": each.manifest.fingerprint[:12],
            "version": each.manifest.version,
            "host": each.manifest.provenance.get("host"),
            "since": each.manifest.provenance.get("since"),
            "bytes": size(sum(file.bytes for file in each.manifest.files)),
        }
        for name, each in artifacts.items()
    ]
    return {
        "svg": Markup(graph_picture(nodes)),
        "stages": stages,
        "total": duration(sum(seconds.values())),
    }


def provenance_section(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Versions, machines and commands, and the config of every stage as it was resolved."""
    records = [each.manifest.provenance for each in artifacts.values()]
    packages: dict[str, list[str]] = {}
    for record in records:
        versions = {"Python": record.get("python"), **record.get("packages", {})}
        for package, version in versions.items():
            if version not in packages.setdefault(package, []):
                packages[package].append(version)
    return {
        "packages": packages,
        "machines": list(dict.fromkeys(str(record.get("machine")) for record in records)),
        "commands": list(
            dict.fromkeys(shlex.join(map(str, record.get("command", ()))) for record in records)
        ),
        "finished": max((str(record.get("since", "")) for record in records), default=""),
        "configs": {
            name: yaml.safe_dump(each.manifest.config, sort_keys=False, allow_unicode=True)
            for name, each in artifacts.items()
        },
    }


def size(count: float) -> str:
    """Bytes in a unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
