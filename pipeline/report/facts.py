"""The plain facts of a run: curves, samples, data, graph, provenance."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from pipeline.artifacts import JSON, Artifact, Manifest
from pipeline.config import Runtime
from pipeline.data.shard_files import shard_files
from pipeline.durations import duration
from pipeline.report.figures import Node, Points, graph_picture, line_chart
from pipeline.report.pictures import contact_sheet, png_uri
from pipeline.report.samples import validation_samples
from pipeline.tasks import TASKS, task_named

SAMPLES = 6  # of every corruption, on its contact sheet
POINTS = 300  # of a line, at most: no more can be seen


def curves_section(title: str, trainings: Mapping[str, Artifact]) -> dict[str, Any]:
    """The curves of trainings of one kind, by the name of the stage."""
    losses: dict[str, dict[str, Points]] = {}  # by kind and task
    contrastive: dict[str, Points] = {}
    rates: dict[str, Points] = {}
    for stage, artifact in trainings.items():
        task = stage.partition("-")[2]
        rows = _rows(artifact.folder / "metrics.jsonl")
        for key in sorted({key for row in rows for key in row if "/" in key}):  # as l1/sr2
            kind, _, of_task = key.partition("/")
            losses.setdefault(kind, {})[of_task] = _points(rows, key)
        contrastive[task] = _points(rows, "contrastive")
        rates[task] = _points(rows, "learning_rate")
    if len(set(map(tuple, rates.values()))) == 1:
        rates = {"": next(iter(rates.values()))}
    charts = [
        *(_chart(lines, f"{kind.upper()} loss", log=True) for kind, lines in losses.items()),
        _chart(contrastive, "Contrastive loss"),
        _chart(rates, "Learning rate"),
    ]
    return {
        "title": title,
        "stages": [
            f"{name}: {_account(each.manifest.summary)}{_beginning(each.manifest)}"
            for name, each in trainings.items()
        ],
        "charts": [chart for chart in charts if chart["svg"]],
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    values = ((row["samples"], row.get(key)) for row in rows)
    return thinned([(x, y) for x, y in values if y is not None and math.isfinite(y)])


def thinned(points: Points) -> Points:
    """At most POINTS points: the means of neighbours where there are more, the last as it is."""
    if len(points) <= POINTS:
        return points
    *before, last = points
    group = math.ceil(len(before) / (POINTS - 1))
    groups = [before[start : start + group] for start in range(0, len(before), group)]
    return [
        *(
            (sum(x for x, _ in each) / len(each), sum(y for _, y in each) / len(each))
            for each in groups
        ),
        last,
    ]


def _account(summary: Mapping[str, JSON]) -> str:
    processes = summary["world_size"]
    skipped = summary["skipped_steps"]
    return (
        f"{summary['samples']:,} samples in {summary['steps']:,} steps"
        f"{f' ({skipped:,} skipped)' if skipped else ''}, "
        f"{summary['parameters']:,} parameters, {processes} process{'es' * (processes > 1)}, "
        f"{duration(summary['seconds'])}"
    )


def _beginning(manifest: Manifest) -> str:
    """Fine-tuning is told to have begun without a pretrained model where it has."""
    is_finetuning = manifest.stage.startswith("finetune-")
    return ", from random weights" if is_finetuning and "pretrained" not in manifest.inputs else ""


def _chart(lines: Mapping[str, Points], title: str, *, log: bool = False) -> dict[str, Any]:
    picture = line_chart(lines, title=title, x_label="samples", log=log)
    note = "logarithmic" if log else ""
    return {"title": title, "note": note, "svg": Markup(picture), "lines": dict(lines)}


def trained_on(corrupt: Sequence[Artifact], summary: Mapping[str, JSON]) -> int:
    """How many photographs of a source are in training shards: those that some task could use.

    `corrupt` are the shards made of it, `summary` is the source's own.
    """
    skipped = [
        sum(
            len(json.loads(record.read_text(encoding="utf-8"))["skipped"])
            for record in (artifact.folder / "shards").glob("train-*.json")
        )
        for artifact in corrupt
    ]
    # A source without shards is there for evaluation only.
    return summary["images"] - summary["validation"] - min(skipped) if skipped else 0


def scored_on(records: Sequence[Mapping[str, Any]]) -> int:
    """How many photographs `scores.json` records have scores of.

    A benchmark counts once, at however many noise levels or JPEG qualities it was scored.
    """
    photographs = {
        (each["benchmark"]["name"] if each["benchmark"] else test_set, image["name"])
        for record in records
        for test_set, each in record["test_sets"].items()
        for image in each["images"]
    }
    return len(photographs)


def skipped_section(
    sources: Mapping[str, Artifact],
    corrupt: Mapping[str, Artifact],
    scores: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, str]]:
    """Every photograph that a stage lists as not usable, once, with the reason and the stages.

    `scores` has the `scores.json` of every evaluation; a test set lists what it leaves out.
    """
    lists = [(name, each.manifest.summary["unreadable"]) for name, each in sources.items()]
    lists += [(name, each.manifest.summary["skipped"]) for name, each in corrupt.items()]
    lists += [
        (f"{name}, {test_set}", each["skipped"])
        for name, record in scores.items()
        for test_set, each in record["test_sets"].items()
    ]
    found: dict[tuple[str, str], list[str]] = {}
    for where, photographs in lists:
        for each in photographs:
            found.setdefault((each["path"], each["reason"]), []).append(where)
    every_task = set(corrupt)
    section = []
    for (path, reason), stages in found.items():
        if corrupt and every_task <= set(stages):
            stages = ["every task", *(name for name in stages if name not in every_task)]
        section.append({"path": path, "reason": reason, "where": "; ".join(stages)})
    return section


def samples_section(corrupt: Mapping[str, Artifact], runtime: Runtime) -> list[dict[str, Any]]:
    """A contact sheet of validation patches per task; of the first source where there are more."""
    of_task: dict[str, Artifact] = {}
    for artifact in corrupt.values():
        of_task.setdefault(artifact.manifest.summary["task"], artifact)
    section = []
    for name in (name for name in TASKS if name in of_task):
        manifest = of_task[name].manifest
        task = task_named(name, clip_noise=manifest.summary["clip"] is not False)
        folder = of_task[name].folder
        files = shard_files(folder, runtime)
        samples = validation_samples(folder / "shards", task, SAMPLES, files)
        sheet = contact_sheet([(each.corrupted, each.clean) for each in samples])
        row = manifest.config["task"]
        drawn_with = [f"{key} {row[key]}" for key in row if key not in ("name", "corruption")]
        shown = {key: [each.parameters[key] for each in samples] for key in samples[0].parameters}
        section.append(
            {
                "task": name,
                "title": task.title,
                "parameters": ", ".join([row.get("corruption", "given"), *drawn_with]),
                # What was drawn for each of them, from left to right.
                "shown": {key: ", ".join(map(str, values)) for key, values in shown.items()},
                "count": len(samples),
                "patch": samples[0].corrupted.shape[0],
                "target": samples[0].clean.shape[0],
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
            "kind": kinds[name],
            "inputs": list(edges[name]),
            "seconds": seconds[name],
            "fingerprint": each.manifest.fingerprint,
            "version": each.manifest.version,
            "host": each.manifest.provenance["host"],
            "since": each.manifest.provenance["since"],
            "bytes": sum(file.bytes for file in each.manifest.files),
        }
        for name, each in artifacts.items()
    ]
    return {
        "svg": Markup(graph_picture(nodes)),
        "stages": stages,
        "seconds": sum(seconds.values()),
    }


def provenance_section(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Versions, machines and commands, and the config of every stage as it was resolved."""
    records = [each.manifest.provenance for each in artifacts.values()]
    packages: dict[str, dict[str, None]] = {}  # versions in the order of their stages, once each
    for record in records:
        for package, version in {"Python": record["python"], **record["packages"]}.items():
            packages.setdefault(package, {})[version] = None
    return {
        "packages": packages,
        "machines": list(dict.fromkeys(record["machine"] for record in records)),
        "commands": list(dict.fromkeys(shlex.join(record["command"]) for record in records)),
        "finished": max(record["since"] for record in records),
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
