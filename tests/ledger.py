"""A training on real shards that writes down every sample it is given, as its pixels tell it."""

# N batch, C channels, H W height and width

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.config import DataConfig, PretrainConfig
from pipeline.data.loader import training_batches
from pipeline.data.streams import open_stream
from pipeline.graph import StoppedWithCheckpoint
from pipeline.tasks import TASKS
from pipeline.training.loop import fit
from pipeline.training.objectives import Batch, RestorationObjective
from pipeline.training.placement import Place
from tests.training_toys import ToyIPT, toy_runtime

# Their shards hold nothing but clean crops.
NAMES = ("denoise30", "denoise50")
STEPS, BATCH, LANES = 12, 16, 4
Sample = tuple[int, int, int]  # photograph, row and column of its top left pixel


def write_numbered_photographs(folder: Path, count: int) -> Path:
    """Every pixel tells where it is: red the photograph, green the row, blue the column."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:200, :200]
    for number in range(count):
        pixels = np.stack([np.full_like(rows, number), rows, columns], axis=2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def samples_in(clean: Tensor) -> list[Sample]:
    """Which samples these images (N, C, H, W), uint8, are, whole and untouched."""
    corners = clean[:, :, :1, :1]
    side = np.arange(clean.shape[2])
    assert (clean[:, 0] == corners[:, 0]).all()
    assert ((clean[:, 1] - corners[:, 1]).numpy() == side[None, :, None]).all()
    assert ((clean[:, 2] - corners[:, 2]).numpy() == side[None, None, :]).all()
    return [tuple(each) for each in corners.flatten(1).tolist()]


class Accounted(RestorationObjective):
    """Appends a line to its rank's ledger for each micro-batch that it is given to train on.

    In step `ends_in`, counted from 1, the last rank sends itself the signal `ends_by`.
    """

    ledger: Path
    place: Place
    ends_in: int | None = None
    ends_by = signal.SIGUSR2
    seen = 0  # micro-batches

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        step = self.place.start_step + self.seen // self.place.accumulation + 1
        self.seen += 1
        samples = {task: samples_in(clean) for task, (_, clean) in batch.items()}
        with (self.ledger / f"rank-{self.place.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "samples": samples}) + "\n")
        if step == self.ends_in and self.place.rank == self.place.world_size - 1:
            os.kill(os.getpid(), self.ends_by)
        return super().forward(batch)


def train_accounted(
    folder: str,
    *,
    shards: str,
    ledger: str,
    mode: str,
    workers: int = 0,
    ends_in: int | None = None,
    ends_by: int = signal.SIGUSR2,
) -> None:
    """Twelve steps of a toy on the shards of NAMES, or those that are left of them."""
    config = PretrainConfig(
        tasks=NAMES,
        tasks_per_step=mode,
        samples=STEPS * BATCH,
        batch=BATCH,
        learning_rate=1e-3,
        contrastive={"weight": 0.1, "images": 2},
        data=DataConfig(lanes=LANES, window=1),
        precision="float32",
    )
    torch.manual_seed(0)
    objective = Accounted(ToyIPT(tasks=NAMES), contrastive=config.contrastive)
    objective.ledger = Path(ledger)
    objective.ledger.mkdir(parents=True, exist_ok=True)
    objective.ends_in, objective.ends_by = ends_in, signal.Signals(ends_by)
    streams = {name: open_stream(Path(shards) / name, TASKS[name], split="train") for name in NAMES}

    def batches(place: Place, device: torch.device) -> Iterator[Batch]:
        objective.place = place
        return training_batches(
            streams,
            config=config.data,
            tasks_per_step=config.tasks_per_step,
            batch=config.batch,
            micro_batch=place.micro_batch,
            seed=0,
            start_step=place.start_step,
            steps=place.steps,
            rank=place.rank,
            world_size=place.world_size,
            workers=workers,
            device=device,
        )

    try:
        fit(
            objective,
            config=config,
            runtime=toy_runtime(log_every_steps=1, checkpoint_every_steps=2, micro_batch=4),
            folder=Path(folder),
            fingerprint="f" * 64,
            batches=batches,
            groups=objective.model.parameter_groups(),
        )
    except StoppedWithCheckpoint:
        assert ends_in is not None


def read_ledgers(folder: Path) -> dict[int, dict[str, list[Sample]]]:
    """Of each step the samples of each task, in the order of ranks and micro-batches.

    Every rank must have trained the same tasks. Of a step that was broken off, it is what was read.
    """
    steps: dict[int, dict[str, list[Sample]]] = {}
    ranks = sorted(folder.glob("rank-*.jsonl"))
    for path in ranks:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            step = steps.setdefault(row["step"], {task: [] for task in row["samples"]})
            assert step.keys() == row["samples"].keys()
            for task, samples in row["samples"].items():
                step[task] += [tuple(each) for each in samples]
    return steps
