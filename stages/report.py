"""Writes report.html, one page that holds everything a run has to show and loads nothing, and
report.json, the same numbers for machines."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import JSON, Artifact, write_atomically, write_json
from pipeline.config_section import Section
from pipeline.graph import Job, Stage, StageError
from pipeline.tasks import TASKS

if TYPE_CHECKING:
    from pipeline.report.verdict import VerdictRow

TRAININGS = {"pretrain": "Pretraining", "finetune": "Fine-tuning", "dncnn": "DnCNN"}


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
        version=3,
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
    from pipeline.data.shards import ShardError
    from pipeline.report.record import report_record
    from pipeline.report.verdict import verdict_rows

    scores = {name: _read_scores(artifact) for name, artifact in _of_kind(job, "evaluate").items()}
    rows = verdict_rows(list(scores.values()))
    try:
        sections = _sections(job, scores, rows)
    except ShardError as error:
        raise StageError(str(error)) from error
    page = _render(sections)
    write_atomically(job.folder / "report.html", page)
    write_json(job.folder / "report.json", report_record(sections))
    job.progress(1, 1, "report.html")
    return {"rows": [asdict(row) for row in rows], "bytes": len(page.encode())}


def _of_kind(job: Job, kind: str) -> dict[str, Artifact]:
    config = job.config
    assert isinstance(config, ReportConfig)
    return {name: each for name, each in job.inputs.items() if config.kinds[name] == kind}


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
    job: Job, scores: Mapping[str, dict[str, Any]], rows: "list[VerdictRow]"
) -> dict[str, Any]:
    from pipeline.published_comparison import compared_tables, comparison_data
    from pipeline.report import comparisons, facts, published, task_table, verdict

    config = job.config
    assert isinstance(config, ReportConfig)
    records = list(scores.values())
    tables = compared_tables(records)
    folders = [(job.inputs[name].folder, record) for name, record in scores.items()]
    # DnCNN's first, so that IPT's, which says how it tiles, stays where there are both.
    ordered = sorted(scores.values(), key=lambda record: record["model"] != "dncnn")
    protocols = {record["task"]: record["protocol"] for record in ordered}
    protocols = {task: protocols[task] for task in TASKS if task in protocols}
    sources, corrupt = _of_kind(job, "source"), _of_kind(job, "corrupt")
    trained_on = 0
    for name, source in sources.items():
        shards = [each for stage, each in corrupt.items() if name in config.edges[stage]]
        trained_on += facts.trained_on(shards, source.manifest.summary)
    scored_on = facts.scored_on(records)
    # Nobody knows what a folder of somebody's own holds.
    are_held_out = all(
        test_set["source"] is not None and manifest.config.get("benchmarks") is None
        for manifest in (job.inputs[name].manifest for name in scores)
        for test_set in manifest.config["test_sets"].values()
    )
    trainings = {title: _of_kind(job, kind) for kind, title in TRAININGS.items()}
    low, high, ticks = verdict.verdict_axis(rows)
    return {
        "name": config.name,
        "headline": verdict.headline(rows),
        "smoke_test": verdict.smoke_test(trained_on, scored_on) if rows else None,
        "trained_on": trained_on,
        "scored_on": scored_on,
        "are_held_out": are_held_out,
        "tasks": task_table.task_table(rows, records, tables),
        "unscored": task_table.unscored_section(records),
        "verdict": verdict.verdict_section(rows),
        "axis": [{"value": tick, "left": 100 * (tick - low) / (high - low)} for tick in ticks],
        "protocols": protocols,
        "titles": {task: TASKS[task].title for task in protocols},
        "published": published.published_section(tables),
        "comparison": comparison_data(records),
        **comparisons.pictures_sections(comparisons.comparisons(folders)),
        "trainings": [facts.curves_section(*each) for each in trainings.items() if each[1]],
        "samples": facts.samples_section(corrupt, job.runtime),
        "sources": {name: each.manifest.summary for name, each in sources.items()},
        "corrupt": {name: each.manifest.summary for name, each in corrupt.items()},
        "skipped": facts.skipped_section(sources, corrupt, scores),
        "rain_layers": [each.manifest.summary for each in _of_kind(job, "rain-layers").values()],
        "graph": facts.graph_section(job.inputs, config.kinds, config.edges),
        "provenance": facts.provenance_section(job.inputs),
    }


def _render(context: Mapping[str, Any]) -> str:
    from importlib import resources

    import jinja2
    from markupsafe import Markup

    import pipeline
    from pipeline.durations import duration
    from pipeline.report.facts import size

    assets = resources.files(pipeline) / "assets"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": size, "duration": duration}
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    template = environment.from_string((assets / "report.html.jinja").read_text("utf-8"))
    return template.render(
        context,
        style=Markup((assets / "report.css").read_text("utf-8")),
        script=Markup((assets / "report.js").read_text("utf-8")),
    )
