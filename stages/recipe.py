"""The whole graph on one page: which stages a run has, and what each reads.

source ──> corrupt-<task>@<source> ──┬─> pretrain ──> finetune-<task> ──┐
rain-layers ──┘                      ├─> dncnn-<task> ──────────────────┼─> evaluate-<model> ──> report
                                     └─> finetune-<task>                ┘
"""  # noqa: E501 - a picture

from pathlib import Path

from pipeline.config import EvaluateConfig, RunConfig, TestSetConfig, TrainingConfig
from pipeline.config_file import ConfigError
from pipeline.graph import Graph, Stage
from pipeline.tasks import TASKS, Task, task_named
from stages.corrupt import corrupt_stage
from stages.dncnn import dncnn_stage
from stages.evaluate import evaluate_stage
from stages.finetune import finetune_stage
from stages.pretrain import pretrain_stage
from stages.rain_layers import rain_layers_stage
from stages.report import report_stage
from stages.source import source_folders, source_stage


def build_graph(config: RunConfig) -> Graph:
    """The stages of a run, every stage after its inputs. Imports nothing heavy."""
    stages: dict[str, Stage] = {}

    def add(stage: Stage) -> Stage:
        return stages.setdefault(stage.name, stage)

    seed = config.seed
    tasks = _tasks(config)
    sources = {
        name: add(source_stage(name, source, seed=seed, **_crops(config, name)))
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
                pairs=config.sources[name].is_pairs,
            )
        )

    models = []
    pretrained = None
    uses = [each.pretrained for each in config.finetune.values()]
    if config.pretrain.tasks and (any(uses) or not uses):
        of_tasks = {name: shards(name, config.pretrain) for name in config.pretrain.tasks}
        pretrained = add(pretrain_stage(config.pretrain, config.ipt, seed=seed, shards=of_tasks))
    for name, finetune in config.finetune.items():
        of_task = shards(name, finetune)
        begins_with = pretrained if finetune.pretrained else None
        stage = finetune_stage(
            name, finetune, config.ipt, seed=seed, shards=of_task, pretrained=begins_with
        )
        models.append((name, add(stage)))
    for name, dncnn in config.dncnn.items():
        of_task = shards(name, dncnn)
        models.append((name, add(dncnn_stage(name, dncnn, seed=seed, shards=of_task))))
    evaluate = _evaluation(config)
    for name, model in models:
        add(evaluate_stage(model, tasks[name], evaluate, sources=sources, rain_layers=rain_layers))
    add(report_stage(config.name, stages))
    return Graph(stages=tuple(stages.values()))


def folders_read(config: RunConfig) -> list[tuple[str, str, Path]]:
    """Folders of the user's that stages read: (dotted key, name or kind of the stages, folder)."""
    folders = [
        (f"sources.{name}.{key}", f"source@{name}", folder)
        for name, source in config.sources.items()
        for key, folder in source_folders(source).items()
    ]
    if config.rain_layers.folder is not None:
        folders.append(("rain_layers.folder", "rain-layers", Path(config.rain_layers.folder)))
    for name, test_set in config.evaluate.test_sets.items():
        for key, folder in (("path", test_set.path), ("corrupted", test_set.corrupted)):
            if folder is not None:
                place = Path(folder).expanduser()
                folders.append((f"evaluate.test_sets.{name}.{key}", "evaluate", place))
    if config.evaluate.benchmarks is not None:
        root = Path(config.evaluate.benchmarks).expanduser()
        folders.append(("evaluate.benchmarks", "evaluate", root))
    return folders


def _trained_from(config: RunConfig, source: str) -> tuple[str, ...]:
    """The tasks whose samples come from the source."""
    names: dict[str, None] = {}
    for key, training in config.trainings.items():
        if config.source_of(training) == source:
            names |= dict.fromkeys(
                config.pretrain.tasks if key == "pretrain" else [key.partition(".")[2]]
            )
    return tuple(names)


def _crops(config: RunConfig, source: str) -> dict[str, int]:
    """Pixels per side of the clean image: of the largest crop that the run cuts, real pairs only
    for the tasks that they serve; and of the largest of any run, so that a task that is trained
    later moves no photograph to the other side."""
    tasks, size = _tasks(config), config.corrupt.patch_size
    served = _trained_from(config, source) if config.sources[source].is_pairs else ()
    return {
        "largest_crop": size * max(tasks[name].scale for name in served or tasks),
        "preferred_crop": size * max(task.scale for task in TASKS.values()),
    }


def _evaluation(config: RunConfig) -> EvaluateConfig:
    """The evaluation, real pairs being shown only to the tasks whose corruption they have."""
    test_sets = config.evaluate.test_sets
    for name, test_set in test_sets.items():
        if test_set.source and config.sources[test_set.source].is_pairs and test_set.tasks is None:
            raise ConfigError(
                f"evaluate.test_sets.{name}: source {test_set.source} has real pairs; name in "
                "`tasks` the tasks whose corruption they show"
            )
    if test_sets or not any(source.is_pairs for source in config.sources.values()):
        return config.evaluate
    test_sets = {
        name: TestSetConfig(
            source=name, tasks=_trained_from(config, name) if source.is_pairs else None
        )
        for name, source in config.sources.items()
    }
    return config.evaluate.model_copy(update={"test_sets": test_sets})


def _tasks(config: RunConfig) -> dict[str, Task]:
    names = dict.fromkeys([*config.pretrain.tasks, *config.finetune, *config.dncnn])
    return {
        name: task_named(name, clip_noise=config.corrupt.clip_noise, border=config.corrupt.border)
        for name in names
    }
