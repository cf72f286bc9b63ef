"""The whole graph on one page: which stages a run has, and what each reads.

source ──> corrupt-<task>@<source> ──┬─> pretrain ──> finetune-<task> ──┐
rain-layers ──┘                      ├─> dncnn-<task> ──────────────────┼─> evaluate-<model> ──> report
                                     └─> finetune-<task>                ┘
"""  # noqa: E501 - a picture

from pipeline.config import RunConfig
from pipeline.graph import Graph, Stage
from pipeline.tasks import Task, task_named
from stages.corrupt import corrupt_stage
from stages.dncnn import dncnn_stage
from stages.evaluate import evaluate_stage
from stages.finetune import finetune_stage
from stages.pretrain import pretrain_stage
from stages.rain_layers import rain_layers_stage
from stages.report import report_stage
from stages.source import source_stage


def build_graph(config: RunConfig) -> Graph:
    """The stages of a run, every stage after its inputs. Imports nothing heavy."""
    stages: dict[str, Stage] = {}

    def add(stage: Stage) -> Stage:
        return stages.setdefault(stage.name, stage)

    tasks = _tasks(config)
    largest_crop = config.corrupt.patch_size * max(task.scale for task in tasks.values())
    sources = {
        name: add(source_stage(name, source, seed=config.seed, largest_crop=largest_crop))
        for name, source in config.sources.items()
    }
    rain_layers = None
    if any(task.needs_rain_layers for task in tasks.values()):
        rain_layers = add(rain_layers_stage(config.rain_layers, seed=config.seed))

    def shards(task_name: str, source_name: str) -> Stage:
        task = tasks[task_name]
        stage = corrupt_stage(
            task,
            config.corrupt,
            seed=config.seed,
            source_name=source_name,
            source=sources[source_name],
            rain_layers=rain_layers if task.needs_rain_layers else None,
        )
        return add(stage)

    pretrain_source = config.source_of(config.pretrain)
    pretrained = add(
        pretrain_stage(
            config.pretrain,
            config.ipt,
            seed=config.seed,
            shards={name: shards(name, pretrain_source) for name in config.pretrain.tasks},
        )
    )
    models = [
        add(
            finetune_stage(
                name,
                training,
                seed=config.seed,
                shards=shards(name, config.source_of(training)),
                pretrained=pretrained,
            )
        )
        for name, training in config.finetune.items()
    ]
    models += [
        add(
            dncnn_stage(
                name,
                training,
                seed=config.seed,
                shards=shards(name, config.source_of(training)),
            )
        )
        for name, training in config.dncnn.items()
    ]
    for model, name in zip(models, [*config.finetune, *config.dncnn], strict=True):
        add(
            evaluate_stage(
                model,
                tasks[name],
                config.evaluate,
                sources=sources,
                rain_layers=rain_layers,
            )
        )
    add(report_stage(config.name, dict(stages)))
    return Graph(stages=tuple(stages.values()))


def _tasks(config: RunConfig) -> dict[str, Task]:
    names = dict.fromkeys([*config.pretrain.tasks, *config.finetune, *config.dncnn])
    return {
        name: task_named(name, clip_noise=config.corrupt.clip_noise, border=config.corrupt.border)
        for name in names
    }
