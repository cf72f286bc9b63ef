"""Checkpoints by parameter name: any engine, ZeRO stage and number of processes reads them.

A checkpoint is a folder `step-00001234`, sealed like any artifact: the newest that verifies is the
latest, and there is no pointer to it. It holds the weights and persistent buffers of the model,
both of Adam's moments, and the state of the training; safetensors and JSON, no pickle.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError, open_artifact, seal, sync_folder, verify
from pipeline.training.optimizer import MOMENTS
from pipeline.training.torch_engine import TorchEngine

logger = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS = "weights.safetensors"
NAME = re.compile(r"step-(\d{8,})")
TRASH = ".trash-"
UNFINISHED = ".unfinished-"


class CheckpointError(Exception):
    """A checkpoint that can't be written or doesn't fit; the message says what to do."""


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

    def weights(self) -> dict[str, Tensor]:
        """The float32 weights and the buffers of the model, by their names in it."""
        return _read(self.folder / WEIGHTS)

    def load_weights(self, model: nn.Module) -> None:
        weights, expected = self.weights(), model.state_dict()
        _check_names(self.folder / WEIGHTS, weights, expected)
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


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); delete its folder") from error


def _check_names(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if found.keys() != expected.keys():
        missing = sorted(expected.keys() - found.keys())
        unknown = sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"{path}: is of another model: lacks {missing[:3]}, has {unknown[:3]} instead; "
            "delete the checkpoints to train anew"
        )


class CheckpointFolder:
    """The checkpoints of one training. Rank 0 writes; every rank takes part in collecting."""

    def __init__(self, folder: Path, *, fingerprint: str, keep: int) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep

    def clean(self) -> None:
        """Remove what an execution that was killed left half written or half deleted."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith((TRASH, UNFINISHED)):
                    shutil.rmtree(path)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; those that don't are reported and passed over."""
        for folder in reversed(self._folders()):
            try:
                return self._verified(folder)
            except (ArtifactError, OSError, KeyError, TypeError) as error:
                logger.warning("%s: damaged (%s); using the checkpoint before it", folder, error)
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, which rank 0 has verified or written."""
        artifact = open_artifact(self._path(step))
        if artifact is None:
            raise CheckpointError(
                f"{self._path(step)}: not visible from this machine; "
                "runtime.runs must be on a file system that all machines share"
            )
        return Checkpoint(folder=artifact.folder, state=TrainState(**artifact.manifest.summary))

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _verified(self, folder: Path) -> Checkpoint:
        artifact = open_artifact(folder)
        problems = verify(artifact) if artifact else ["has no manifest"]
        if artifact is None or problems:
            raise ArtifactError("; ".join(problems))
        if artifact.manifest.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{folder}: belongs to the training {artifact.manifest.fingerprint[:12]}, this "
                f"one is {self.fingerprint[:12]}; move it away"
            )
        return Checkpoint(folder=folder, state=TrainState(**artifact.manifest.summary))

    def save(self, engine: TorchEngine, state: TrainState) -> Path:
        """Write the checkpoint of `state.step`, whole or not at all, and rotate the old ones.

        Every rank must call this: under ZeRO each of them holds a part.
        """
        state.adam_steps = engine.adam_steps()
        final = self._path(state.step)
        is_writer = engine.place.rank == 0
        temporary = self.folder / f"{UNFINISHED}{final.name}"
        model = engine.objective.model
        parameters = dict(model.named_parameters())
        buffers = (
            (name, each) for name, each in model.state_dict().items() if name not in parameters
        )
        weights = ((name, engine.weight(each)) for name, each in parameters.items())
        try:
            if is_writer:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            _write(temporary / WEIGHTS, chain(weights, buffers), keep=is_writer)
            for moment in MOMENTS:
                moments = ((name, engine.moment(p, moment)) for name, p in parameters.items())
                _write(temporary / f"{moment}.safetensors", moments, keep=is_writer)
            if is_writer:
                self._finish(temporary, final, state)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{final}: this checkpoint can't be written ({error}); earlier ones are kept. "
                "Mend that (is the disk full?) and run the same command again"
            ) from error
        return final

    def _finish(self, temporary: Path, final: Path, state: TrainState) -> None:
        seal(
            temporary,
            stage="checkpoint",
            version=FORMAT,
            fingerprint=self.fingerprint,
            config={},
            inputs={},
            summary=asdict(state),
            seconds=state.seconds,
        )
        if final.exists():  # damaged, or this training would have gone on from it
            self._discard(final)
        temporary.rename(final)
        sync_folder(self.folder)
        for old in self._folders()[: -self.keep]:
            self._discard(old)

    def _discard(self, folder: Path) -> None:
        """Delete a checkpoint; renamed first, so that half a deletion is not half a checkpoint."""
        trash = folder.with_name(f"{TRASH}{folder.name}")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)


def _write(path: Path, tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> None:
    """Go through all tensors, which may take every rank, and write them where they are kept."""
    kept = {}
    for name, tensor in tensors:
        if keep:
            kept[name] = tensor.detach().to("cpu", copy=True).contiguous()
    if keep:
        save_file(kept, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
