"""Adapts the pretrained IPT to one task: its head, tail and query with the body, by L1 alone.

What pretraining gives is seen beside the same training from random weights.
"""

from pipeline.artifacts import JSON
from pipeline.config import FinetuneConfig
from pipeline.config_section import Section
from pipeline.graph import Job, Stage, StageError
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.tasks import TASKS


class FinetuneStageConfig(Section):
    """What decides the fine-tuned model, beside its inputs."""

    task: str
    training: FinetuneConfig
    size: IPTSize | None  # of random weights; None: the pretrained model's
    seed: int


def finetune_stage(
    task_name: str,
    config: FinetuneConfig,
    size: IPTSize,
    *,
    seed: int,
    shards: Stage,
    pretrained: Stage | None,
) -> Stage:
    """The stage that fine-tunes; without a pretrained one it begins from random weights."""
    inputs = {"shards": shards}
    return Stage(
        name=f"finetune-{task_name}",
        kind="finetune",
        version=2,
        config=FinetuneStageConfig(
            task=task_name,
            training=config,
            size=size if pretrained is None else None,
            seed=seed,
        ),
        run=run,
        inputs=inputs if pretrained is None else inputs | {"pretrained": pretrained},
        launch="distributed",
    )


def run(job: Job) -> dict[str, JSON]:
    import torch

    from pipeline.models.hub import ModelFileError
    from pipeline.models.ipt import IPT
    from pipeline.train_model import MODEL, train_and_export
    from pipeline.training.objectives import RestorationObjective

    config = job.config
    assert isinstance(config, FinetuneStageConfig)
    if config.size is not None:
        torch.manual_seed(config.seed)
        model = IPT(IPTConfig(size=config.size, scales={config.task: TASKS[config.task].scale}))
    else:
        try:
            pretrained = IPT.from_pretrained(job.inputs["pretrained"].folder / MODEL)
        except ModelFileError as error:
            raise StageError(f"{error}; make the pretrained model again") from error
        model = pretrained.task_subset((config.task,))
    model.precision = config.training.precision
    model.activation_checkpointing = job.runtime.activation_checkpointing
    return train_and_export(
        job,
        RestorationObjective(model),
        config=config.training,
        seed=config.seed,
        shards={config.task: job.inputs["shards"]},
        groups=model.parameter_groups(),
        restore=lambda model, corrupted, task: model(corrupted, task),
    )
