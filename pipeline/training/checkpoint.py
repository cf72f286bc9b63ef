"""Checkpoints by parameter name: any engine, ZeRO stage and number of processes reads them.

A checkpoint is a folder `step-00001234`, sealed like any artifact: the newest that verifies is the
latest, and there is no pointer to it. It holds the weights and persistent buffers of the model,
both of Adam's moments, the average of the weights where there is one, and the state of the
training; safetensors and JSON, no pickle.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.artifacts import Artifact
from pipeline.training.optimizer import MOMENTS
from pipeline.training.torch_engine import TorchEngine

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"  # of the model, as its folder has it
STATE = "state.json"
AVERAGE = "average.safetensors"


class CheckpointError(Exception):
    """A checkpoint that can't be written or read; the message says what to do."""


class CheckpointRefused(CheckpointError):  # noqa: N818 - what happened, before any work
    """What is there does not fit what is asked for, or there is no room: a usage error."""


@dataclass(kw_only=True)
class TrainState:
    """How far a training is."""

    step: int = 0
    samples: int = 0
    samples_by_task: dict[str, int] = field(default_factory=dict)
    skipped: int = 0  # steps, for a non-finite loss or gradient
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # spent training, over all executions
    loss: float | None = None  # the last one logged
    adam_steps: dict[str, float] = field(default_factory=dict)  # updates of each group


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint, ready to be read."""

    folder: Path
    state: TrainState

    def load_weights(self, model: nn.Module) -> None:
        """The float32 weights and the buffers, as they were trained."""
        self._load(model, _read(self.folder / WEIGHTS))

    def load_result(self, model: nn.Module) -> None:
        """What the training gives: the average of the weights where it was asked for."""
        weights = _read(self.folder / WEIGHTS)
        if (self.folder / AVERAGE).exists():
            weights |= _read(self.folder / AVERAGE)
        self._load(model, weights)

    def _load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        _check_names(self.folder / WEIGHTS, weights, model.state_dict())
        model.load_state_dict(weights)

    def load_optimizer(self, engine: TorchEngine) -> None:
        parameters = dict(engine.objective.model.named_parameters())
        for moment in MOMENTS:
            path = self.folder / f"{moment}.safetensors"
            moments = _read(path)
            _check_names(path, moments, parameters)
            for name, parameter in parameters.items():
                engine.set_moment(parameter, moment, moments[name])
        engine.set_adam_steps(self.state.adam_steps)
        if engine.average is not None:
            averages = _read(self.folder / AVERAGE)
            _check_names(self.folder / AVERAGE, averages, parameters)
            for name, parameter in parameters.items():
                engine.set_averaged_weight(parameter, averages[name])


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); delete its folder") from error


def _check_names(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if found.keys() != expected.keys():
        missing = sorted(expected.keys() - found.keys())
        unknown = sorted(found.keys() - expected.keys())
        raise CheckpointRefused(
            f"{path}: is of another model: lacks {missing[:3]}, has {unknown[:3]} instead; "
            "delete the checkpoints to train anew"
        )


def opened(artifact: Artifact) -> Checkpoint:
    """A sealed checkpoint; its state is a file of its own, so that its hash covers it."""
    state = json.loads((artifact.folder / STATE).read_text(encoding="utf-8"))
    return Checkpoint(folder=artifact.folder, state=TrainState(**state))
