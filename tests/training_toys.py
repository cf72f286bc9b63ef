"""Tiny stand-ins for the models and the data, for the tests of training."""

# N batch, C channels, H W height and width, L tokens, D embedding

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import PretrainConfig, Runtime
from pipeline.model_configs import IPTConfig, IPTSize, Precision
from pipeline.models.ipt import IPT
from pipeline.training.loop import Trained, fit
from pipeline.training.objectives import Batch, RestorationObjective
from pipeline.training.placement import Place

TASKS = ("sr2", "denoise30", "denoise50")
SIDE = 6
FINAL = Path("checkpoints") / "step-00000012"  # of a training by `toy_config`


class ToyIPT(nn.Module):
    """A head and a tail per task around a shared body, as IPT; images are (N, 3, 6, 6)."""

    def __init__(self, *, normalises: bool = False, tasks: tuple[str, ...] = TASKS) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({task: nn.Conv2d(3, 4, 3, padding=1) for task in tasks})
        norm = nn.BatchNorm2d(4) if normalises else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm, nn.ReLU())
        self.tails = nn.ModuleDict({task: nn.Conv2d(4, 3, 1) for task in tasks})

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.forward_tasks({task: x})[task][0]

    def forward_tasks(self, images: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        features = torch.cat([self.heads[task](x) for task, x in images.items()])
        mixed = self.body(features)
        parts = mixed.split([len(x) for x in images.values()])
        return {
            task: (self.tails[task](part), part.flatten(2).transpose(1, 2))  # (N, L, D)
            for task, part in zip(images, parts, strict=True)
        }

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"body": list(self.body.parameters())}
        for task in self.heads:
            groups[task] = [*self.heads[task].parameters(), *self.tails[task].parameters()]
        return groups


def toy_model(*, normalises: bool = False) -> ToyIPT:
    torch.manual_seed(0)
    return ToyIPT(normalises=normalises)


def tiny_ipt(*, precision: Precision = "float32") -> IPT:
    """An IPT for the toys' images: heads, tails and queries; four tokens an image."""
    torch.manual_seed(0)
    size = IPTSize(
        features=4, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=SIDE
    )
    return IPT(IPTConfig(size=size, scales=dict.fromkeys(TASKS, 1)), precision=precision)


def sample(task: str, number: int) -> tuple[Tensor, Tensor]:
    """The sample of that number in a task's stream: corrupted and clean, (3, 6, 6)."""
    generator = torch.Generator().manual_seed(1000 * TASKS.index(task) + number)
    clean = torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    if task == "sr2":
        return clean.flip(0), clean
    noise = torch.randn(clean.shape, generator=generator) * 0.1
    return clean.float() / 255 + noise, clean


def toy_batches(
    config: PretrainConfig, place: Place, *, poisoned_steps: tuple[int, ...] = ()
) -> Iterator[Batch]:
    """The micro-batches of one process: sample k of step s is number s × batch + k.

    In a poisoned step (counted from 0), one value of the last rank's first images is NaN.
    """
    for step in range(place.start_step, place.steps):
        tasks = config.tasks if config.tasks_per_step == "all" else (step_task(config, step),)
        share = config.batch // len(tasks)
        size = place.micro_batch // len(tasks)
        for micro in range(place.accumulation):
            batch: dict[str, tuple[Tensor, Tensor]] = {}
            for task in tasks:
                first = step * share + (place.rank * place.accumulation + micro) * size
                pairs = [sample(task, first + k) for k in range(size)]
                corrupted, clean = zip(*pairs, strict=True)
                batch[task] = (torch.stack(corrupted), torch.stack(clean))
            is_last = place.rank == place.world_size - 1
            if step in poisoned_steps and is_last and micro == 0:
                clean = batch[tasks[-1]][1].float() / 255
                clean[0, 0, 0, 0] = torch.nan
                batch[tasks[-1]] = (batch[tasks[-1]][0], clean)
            yield batch


def step_task(config: PretrainConfig, step: int) -> str:
    return config.tasks[step % len(config.tasks)]


def toy_config(**values: object) -> PretrainConfig:
    chosen: dict[str, object] = {
        "tasks": TASKS,
        "samples": 12 * 12,
        "batch": 12,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "contrastive": {"weight": 0.0},
        "precision": "float32",
    }
    return PretrainConfig.model_validate(chosen | values)


def toy_runtime(**values: object) -> Runtime:
    chosen: dict[str, object] = {
        "trackers": (),
        "workers": 0,
        "log_every_steps": 3,
        "checkpoint_every_steps": 4,
    }
    return Runtime.model_validate(chosen | values)


def toy_fit(
    folder: Path,
    *,
    config: PretrainConfig | None = None,
    normalises: bool = False,
    is_ipt: bool = False,
    poisoned_steps: tuple[int, ...] = (),
    objective: type[RestorationObjective] = RestorationObjective,
    given: Mapping[str, Any] | None = None,
    **values: object,
) -> tuple[ToyIPT | IPT, Trained]:
    """Train a toy model; `given` goes to `fit`, `values` to the runtime. Returns the model as it
    was left."""
    chosen = config or toy_config()
    model = tiny_ipt(precision=chosen.precision) if is_ipt else toy_model(normalises=normalises)
    data = {
        "batches": lambda place, _: toy_batches(chosen, place, poisoned_steps=poisoned_steps),
    }
    trained = fit(
        objective(model, contrastive=chosen.contrastive),
        config=chosen,
        runtime=toy_runtime(**values),
        folder=folder,
        fingerprint="f" * 64,
        groups=model.parameter_groups(),
        **(data | dict(given or {})),
    )
    return model, trained


def everything(objective_folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, by file and name."""
    from safetensors.torch import load_file

    return {
        f"{path.stem}/{name}": tensor
        for path in sorted(objective_folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def logged_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
