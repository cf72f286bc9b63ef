"""Photographs to score, untrained models, and a run of the evaluate stage."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import data_samples
import torch
from data_samples import job_of
from PIL import Image

from pipeline import config
from pipeline.artifacts import Artifact, seal
from pipeline.graph import Progress, Stage, report_nothing
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.tasks import TASKS
from stages.evaluate import evaluate_stage

torch.set_num_threads(1)

photograph = partial(data_samples.photograph, height=60, width=70)


def save_photographs(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photograph(number)).save(folder / f"{number}.png")


def stage_of(kind: str, name: str) -> Stage:
    return Stage(name=name, kind=kind, version=1, config=config.Section(), run=lambda job: {})


def sealed(folder: Path, summary: dict) -> Artifact:
    return seal(
        folder,
        stage="model",
        version=1,
        fingerprint="1" * 64,
        config={},
        inputs={},
        summary=summary,
        seconds=1.0,
    )


def identity_dncnn(folder: Path) -> Artifact:
    """A DnCNN that predicts no noise at all: what it restores is its input."""
    model = DnCNN(DnCNNConfig(depth=3, features=4))
    torch.nn.init.zeros_(model.last.weight)
    folder.mkdir(parents=True)
    model.save_pretrained(folder / "model")
    return sealed(folder, {})


def small_ipt(folder: Path, task: str) -> Artifact:
    size = IPTSize(features=2, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=12)
    folder.mkdir(parents=True)
    model = IPT(IPTConfig(size=size, scales={task: TASKS[task].scale}))
    model.save_pretrained(folder / "model")
    return sealed(folder, {})


def run_stage(
    stage: Stage, folder: Path, inputs: dict[str, Artifact], progress: Progress = report_nothing
) -> dict:
    return stage.run(replace(job_of(stage, folder, inputs), progress=progress))


def evaluate(tmp_path: Path, model: Artifact, *, kind: str, task, test_set, **options) -> dict:
    stage = evaluate_stage(
        stage_of(kind, f"{kind}-{task.name}"),
        task,
        config.EvaluateConfig(test_sets={"mine": test_set}, **options),
        sources={},
        rain_layers=None,
    )
    run_stage(stage, tmp_path / "evaluate", {"model": model})
    return json.loads((tmp_path / "evaluate" / "scores.json").read_text())
