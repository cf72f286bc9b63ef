"""Adapts the pretrained IPT to one task: its head, tail and query with the body, by L1 alone."""

from pipeline.artifacts import JSON
from pipeline.config import FinetuneConfig
from pipeline.config_section import Section
from pipeline.graph import Job, Stage, StageError


class FinetuneStageConfig(Section):
    """What decides the fine-tuned model, beside its inputs."""

    task: str
    training: FinetuneConfig
    seed: int


def finetune_stage(
    task_name: str, config: FinetuneConfig, *, seed: int, shards: Stage, pretrained: Stage
) -> Stage:
    return Stage(
        name=f"finetune-{task_name}",
        kind="finetune",
        version=2,
        config=FinetuneStageConfig(task=task_name, training=config, seed=seed),
        run=run,
        inputs={"shards": shards, "pretrained": pretrained},
        launch="distributed",
    )


def run(job: Job) -> dict[str, JSON]:
    from pipeline.models.hub import ModelFileError
    from pipeline.models.ipt import IPT
    from pipeline.train_model import MODEL, train_and_export
    from pipeline.training.objectives import RestorationObjective

    config = job.config
    assert isinstance(config, FinetuneStageConfig)
    try:
        pretrained = IPT.from_pretrained(job.inputs["pretrained"].folder / MODEL)
    except ModelFileError as error:
        raise StageError(f"{error}; make the pretrained model again") from error
    pretrained.precision = config.training.precision
    pretrained.activation_checkpointing = job.runtime.activation_checkpointing
    model = pretrained.task_subset((config.task,))
    return train_and_export(
        job,
        RestorationObjective(model),
        config=config.training,
        seed=config.seed,
        shards={config.task: job.inputs["shards"]},
        groups=model.parameter_groups(),
        restore=lambda model, corrupted, task: model(corrupted, task),
    )
