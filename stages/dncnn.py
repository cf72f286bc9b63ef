"""Trains a DnCNN for one task, the baseline beside which the IPT stands."""

from pipeline.artifacts import JSON
from pipeline.config import DnCNNTrainingConfig
from pipeline.config_section import Section
from pipeline.graph import Job, Stage


class DnCNNStageConfig(Section):
    """What decides the model, beside the shards."""

    task: str
    training: DnCNNTrainingConfig
    seed: int


def dncnn_stage(task_name: str, config: DnCNNTrainingConfig, *, seed: int, shards: Stage) -> Stage:
    return Stage(
        name=f"dncnn-{task_name}",
        kind="dncnn",
        version=2,
        config=DnCNNStageConfig(task=task_name, training=config, seed=seed),
        run=run,
        inputs={"shards": shards},
        launch="distributed",
    )


def run(job: Job) -> dict[str, JSON]:
    import torch

    from pipeline.models.dncnn import DnCNN
    from pipeline.train_model import train_and_export
    from pipeline.training.loop import BODY
    from pipeline.training.objectives import DnCNNObjective

    config = job.config
    assert isinstance(config, DnCNNStageConfig)
    training = config.training
    torch.manual_seed(config.seed)
    model = DnCNN(training.model, precision=training.precision)
    return train_and_export(
        job,
        DnCNNObjective(model, statistics_batch=training.statistics_batch),
        config=training,
        seed=config.seed,
        shards={config.task: job.inputs["shards"]},
        groups={BODY: list(model.parameters())},
        restore=lambda model, corrupted, task: model(corrupted),
    )
