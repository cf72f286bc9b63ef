"""Trains one IPT on all tasks: a head, a tail and a query for each, around one body."""

from collections.abc import Mapping

from pipeline.artifacts import JSON
from pipeline.config import PretrainConfig
from pipeline.config_section import Section
from pipeline.graph import Job, Stage
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.tasks import TASKS

SHARDS = "shards_"  # the role of a task's shards begins so


class PretrainStageConfig(Section):
    """What decides the pretrained model, beside the shards."""

    training: PretrainConfig
    size: IPTSize
    seed: int


def pretrain_stage(
    config: PretrainConfig, size: IPTSize, *, seed: int, shards: Mapping[str, Stage]
) -> Stage:
    """The stage that pretrains; `shards` by task name."""
    return Stage(
        name="pretrain",
        kind="pretrain",
        version=2,
        config=PretrainStageConfig(training=config, size=size, seed=seed),
        run=run,
        inputs={f"{SHARDS}{task}": shards[task] for task in config.tasks},
        launch="distributed",
    )


def run(job: Job) -> dict[str, JSON]:
    import torch

    from pipeline.models.ipt import IPT
    from pipeline.train_model import train_and_export
    from pipeline.training.objectives import RestorationObjective

    config = job.config
    assert isinstance(config, PretrainStageConfig)
    training = config.training
    torch.manual_seed(config.seed)
    model = IPT(
        IPTConfig(size=config.size, scales={task: TASKS[task].scale for task in training.tasks}),
        precision=training.precision,
        activation_checkpointing=job.runtime.activation_checkpointing,
    )
    return train_and_export(
        job,
        RestorationObjective(model, contrastive=training.contrastive),
        config=training,
        seed=config.seed,
        shards={task: job.inputs[f"{SHARDS}{task}"] for task in training.tasks},
        groups=model.parameter_groups(),
        restore=lambda model, corrupted, task: model(corrupted, task),
    )
