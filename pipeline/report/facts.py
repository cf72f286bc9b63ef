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


def curves_section(folder: Path, summary: Mapping[str, JSON]) -> dict[str, Any] | None:
    """The curves of one training, from its metrics.jsonl; None where it logged nothing."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines if line.strip()]
    if not records:
        return None
    l1 = sorted({key for record in records for key in record if key.startswith("l1/")})
    losses = l1 or ["loss"]
    others = sorted(
        {
            key
            for record in records
            for key, value in record.items()
            if key not in NOT_PARTS and key not in l1 and isinstance(value, int | float)
        }
    )
    charts = [
        _chart(records, losses, "Loss" if losses == ["loss"] else "L1 loss by task", log=True),
        *(_chart(records, [key], key, log=False) for key in others[:2]),
        _chart(records, ["learning_rate"], "Learning rate", log=False),
    ]
    return {"charts": [chart for chart in charts if chart], "summary": summary}


def _chart(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str, *, log: bool
) -> dict[str, Any] | None:
    series = [
        Series(
            name=key.rpartition("/")[2].replace("learning_rate", "rate"),
            number=number,
            points=[
                (record["samples"], record[key])
                for record in records
                if isinstance(record.get(key), int | float)
            ],
        )
        for number, key in enumerate(keys)
    ]
    picture = line_chart(series, title=title, x_label="samples", log=log)
    note = "logarithmic" if log else ""
    return {"title": title, "note": note, "svg": Markup(picture)} if picture else None


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
                "parameters": configs[name],
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
