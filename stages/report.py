"""Writes report.html: one page that holds everything a run has to show, and loads nothing."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import JSON, Artifact, write_atomically
from pipeline.config import Section
from pipeline.graph import Job, Stage, StageError
from pipeline.tasks import TASKS, task_named

if TYPE_CHECKING:
    import numpy as np

    from pipeline.report.verdict import VerdictRow

logger = logging.getLogger(__name__)

TRAININGS = {"pretrain": "Pretraining", "finetune": "Fine-tuning", "dncnn": "DnCNN"}
SAMPLES = 6  # of every corruption, on its contact sheet


class ReportConfig(Section):
    """The stages of the run, as the picture of the graph needs them."""

    name: str
    kinds: dict[str, str]  # by stage
    edges: dict[str, tuple[str, ...]]  # the inputs of every stage


def report_stage(name: str, stages: Mapping[str, Stage]) -> Stage:
    """The stage that reads every other one and writes the page."""
    return Stage(
        name="report",
        kind="report",
        version=1,
        config=ReportConfig(
            name=name,
            kinds={each: stage.kind for each, stage in stages.items()},
            edges={
                each: tuple(dict.fromkeys(parent.name for parent in stage.inputs.values()))
                for each, stage in stages.items()
            },
        ),
        run=run,
        inputs=dict(stages),
    )


def run(job: Job) -> dict[str, JSON]:
    from pipeline.report.verdict import verdict_rows

    config = job.config
    assert isinstance(config, ReportConfig)
    scores = {name: _read_scores(artifact) for name, artifact in _of_kind(job, "evaluate").items()}
    rows = verdict_rows(list(scores.values()))
    page = _render(_sections(job, config, scores, rows))
    write_atomically(job.folder / "report.html", page)
    job.progress(1, 1, "report.html")
    return {"rows": [asdict(row) for row in rows], "bytes": len(page.encode())}


def _of_kind(job: Job, *kinds: str) -> dict[str, Artifact]:
    config = job.config
    assert isinstance(config, ReportConfig)
    return {name: each for name, each in job.inputs.items() if config.kinds[name] in kinds}


def _read_scores(artifact: Artifact) -> dict[str, Any]:
    path = artifact.folder / "scores.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path}: can't be read ({error}); make the evaluation again: "
            f"run with --from {artifact.manifest.stage} --force"
        ) from error


def _sections(
    job: Job,
    config: ReportConfig,
    scores: Mapping[str, dict[str, Any]],
    rows: "list[VerdictRow]",
) -> dict[str, Any]:
    from pipeline.report import comparisons, facts, published, verdict

    folders = [(job.inputs[name].folder, record) for name, record in scores.items()]
    # DnCNN's first, so that IPT's, which says how it tiles, stays where there are both.
    ordered = sorted(scores.values(), key=lambda record: record["model"] != "dncnn")
    protocols = {record["task"]: record["protocol"] for record in ordered}
    protocols = {task: protocols[task] for task in TASKS if task in protocols}
    sources = _of_kind(job, "source")
    trained_on = sum(_trained_on(job, name) for name in sources)
    held_out = {
        (test_set, image["name"])
        for record in scores.values()
        for test_set, each in record["test_sets"].items()
        for image in each["images"]
    }
    corrupt = _of_kind(job, "corrupt")
    trainings = [
        curves
        for kind, title in TRAININGS.items()
        if (curves := facts.curves_section(title, _trainings(job, kind))) is not None
    ]
    low, high, ticks = verdict.verdict_axis(rows)
    return {
        "name": config.name,
        "headline": verdict.headline(rows),
        "smoke_test": verdict.smoke_test(trained_on, len(held_out)) if rows else None,
        "trained_on": trained_on,
        "held_out": len(held_out),
        "verdict": verdict.verdict_section(rows),
        "axis": [{"value": tick, "left": 100 * (tick - low) / (high - low)} for tick in ticks],
        "protocols": protocols,
        "published": published.published_section(rows, protocols),
        "pictures": comparisons.pictures_section(comparisons.comparisons(rows, folders)),
        "trainings": trainings,
        "samples": facts.samples_section(_samples(job, corrupt), _corruption_configs(corrupt)),
        "sources": {name: each.manifest.summary for name, each in sources.items()},
        "corrupt": {name: each.manifest.summary for name, each in corrupt.items()},
        "skipped": facts.skipped_section(corrupt),
        "rain_layers": [each.manifest.summary for each in _of_kind(job, "rain-layers").values()],
        "graph": facts.graph_section(job.inputs, config.kinds, config.edges),
        "provenance": facts.provenance_section(job.inputs),
    }


def _trained_on(job: Job, source: str) -> int:
    """How many photographs of a source are in training shards: those that some task could use."""
    config = job.config
    assert isinstance(config, ReportConfig)
    summary = job.inputs[source].manifest.summary
    skipped = [
        each.manifest.summary["skipped_images"]
        for name, each in _of_kind(job, "corrupt").items()
        if source in config.edges[name]
    ]
    # A source without shards is there for evaluation only.
    return summary["images"] - summary["validation"] - min(skipped) if skipped else 0


def _trainings(job: Job, kind: str) -> dict[str, tuple[Path, Mapping[str, JSON]]]:
    artifacts = _of_kind(job, kind)
    return {name: (each.folder, each.manifest.summary) for name, each in artifacts.items()}


def _corruption_configs(corrupt: Mapping[str, Artifact]) -> dict[str, dict[str, JSON]]:
    """What each task's corruption was drawn with, by task; the first source's where several."""
    configs: dict[str, dict[str, JSON]] = {}
    for artifact in corrupt.values():
        row = artifact.manifest.config["task"]
        drawn = {"kind": row["corruption"]}
        drawn |= {key: row[key] for key in row if key not in ("name", "corruption")}
        configs.setdefault(row["name"], drawn)
    return configs


def _samples(
    job: Job, corrupt: Mapping[str, Artifact]
) -> "dict[str, tuple[list[np.ndarray], list[np.ndarray]]]":
    """A few (corrupted, clean) validation patches of every task, uint8, (H, W, 3)."""
    from pipeline.data.shards import ShardError
    from pipeline.report.samples import validation_samples

    samples = {}
    for number, artifact in enumerate(corrupt.values()):
        job.progress(number, len(corrupt) + 1, "samples")
        summary = artifact.manifest.summary
        if summary["task"] in samples or not summary["validation_samples"]:
            continue
        task = task_named(summary["task"], clip_noise=summary.get("clip") is not False)
        try:
            samples[task.name] = validation_samples(artifact.folder / "shards", task, SAMPLES)
        except ShardError as error:
            raise StageError(str(error)) from error
    return {name: samples[name] for name in TASKS if name in samples}


def _render(context: Mapping[str, Any]) -> str:
    from importlib import resources

    import jinja2
    from markupsafe import Markup

    import pipeline
    from pipeline.report.facts import size
    from pipeline.report.figures import duration

    assets = resources.files(pipeline) / "assets"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    environment.filters["size"] = size
    template = environment.from_string((assets / "report.html.jinja").read_text("utf-8"))
    return template.render(
        context,
        style=Markup((assets / "report.css").read_text("utf-8")),
        script=Markup((assets / "report.js").read_text("utf-8")),
    )
