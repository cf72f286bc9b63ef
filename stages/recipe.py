"""The whole graph on one page: which stages a run has, and what each reads.

source ──> corrupt-<task>@<source> ──┬─> pretrain ──> finetune-<task> ──┐
rain-layers ──┘                      ├─> dncnn-<task> ──────────────────┼─> evaluate-<model> ──> report
                                     └─> finetune-<task>                ┘
"""  # noqa: E501 - a picture

from pathlib import Path

from pipeline.config import RunConfig, TrainingConfig
from pipeline.graph import Graph, Stage
from pipeline.tasks import Task, task_named
from stages.corrupt import corrupt_stage
from stages.dncnn import dncnn_stage
from stages.evaluate import evaluate_stage
from stages.finetune import finetune_stage
from stages.pretrain import pretrain_stage
from stages.rain_layers import rain_layers_stage
from stages.report import report_stage
from stages.source import resolve_location, source_stage


def build_graph(config: RunConfig) -> Graph:
    """The stages of a run, every stage after its inputs. Imports nothing heavy."""
    stages: dict[str, Stage] = {}

    def add(stage: Stage) -> Stage:
        return stages.setdefault(stage.name, stage)

    seed = config.seed
    tasks = _tasks(config)
    largest_crop = config.corrupt.patch_size * max(task.scale for task in tasks.values())
    sources = {
        name: add(source_stage(name, source, seed=seed, largest_crop=largest_crop))
        for name, source in config.sources.items()
    }
    rain_layers = None
    if any(task.needs_rain_layers for task in tasks.values()):
        rain_layers = add(rain_layers_stage(config.rain_layers, seed=seed))

    def shards(task_name: str, training: TrainingConfig) -> Stage:
        name = config.source_of(training)
        return add(
            corrupt_stage(
                tasks[task_name],
                config.corrupt,
                seed=seed,
                source_name=name,
                source=sources[name],
                rain_layers=rain_layers,
            )
        )

    of_tasks = {name: shards(name, config.pretrain) for name in config.pretrain.tasks}
    pretrained = add(pretrain_stage(config.pretrain, config.ipt, seed=seed, shards=of_tasks))
    models = []
    for name, finetune in config.finetune.items():
        of_task = shards(name, finetune)
        stage = finetune_stage(name, finetune, seed=seed, shards=of_task, pretrained=pretrained)
        models.append((name, add(stage)))
    for name, dncnn in config.dncnn.items():
        of_task = shards(name, dncnn)
        models.append((name, add(dncnn_stage(name, dncnn, seed=seed, shards=of_task))))
    for name, model in models:
        evaluate = config.evaluate
        add(evaluate_stage(model, tasks[name], evaluate, sources=sources, rain_layers=rain_layers))
    add(report_stage(config.name, stages))
    return Graph(stages=tuple(stages.values()))


def folders_read(config: RunConfig) -> list[tuple[str, str, Path]]:
    """Folders of the user's that stages read: (dotted key, name or kind of the stages, folder)."""
    folders = [
        (f"sources.{name}.path", f"source@{name}", resolve_location(source.path))
        for name, source in config.sources.items()
    ]
    if config.rain_layers.folder is not None:
        folders.append(("rain_layers.folder", "rain-layers", Path(config.rain_layers.folder)))
    for name, test_set in config.evaluate.test_sets.items():
        for key, folder in (("path", test_set.path), ("corrupted", test_set.corrupted)):
            if folder is not None:
                place = Path(folder).expanduser()
                folders.append((f"evaluate.test_sets.{name}.{key}", "evaluate", place))
    return folders


def _tasks(config: RunConfig) -> dict[str, Task]:
    names = dict.fromkeys([*config.pretrain.tasks, *config.finetune, *config.dncnn])
    return {
        name: task_named(name, clip_noise=config.corrupt.clip_noise, border=config.corrupt.border)
        for name in names
    }
