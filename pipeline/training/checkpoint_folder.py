"""The checkpoints of one training: chosen, taken, written, rotated."""

import copy
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError, open_artifact, seal, sync_folder, verify
from pipeline.training.checkpoint import (
    AVERAGE,
    CONFIG,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    CheckpointRefused,
    TrainState,
    opened,
)
from pipeline.training.checkpoint_names import checkpoint_name, newest_first, step_of
from pipeline.training.optimizer import MOMENTS
from pipeline.training.placement import Place
from pipeline.training.torch_engine import TorchEngine

logger = logging.getLogger(__name__)

FORMAT = 1
TRASH = ".trash-"
UNFINISHED = ".unfinished-"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a checkpoint holds, in the CPU's memory, where the training does not touch it."""

    state: TrainState
    files: dict[str, dict[str, Tensor]]  # by file name and name in it


class CheckpointFolder:
    """The checkpoints of one training. Rank 0 writes; every rank takes part in collecting."""

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str,
        keep: int,
        keep_every: int | None = None,
        model_config: str = "",
    ) -> None:
        """Keeps the last `keep` checkpoints and those of every `keep_every`-th step, each with the
        config.json of its model."""
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep
        self.keep_every = keep_every
        self.model_config = model_config
        self._memory: dict[str, dict[str, Tensor]] = {}  # of the last snapshot, used again

    def clean(self) -> None:
        """Remove what an execution that was killed left half written or half deleted."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith((TRASH, UNFINISHED)):
                    shutil.rmtree(path)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; those that don't are reported and passed over."""
        for folder in newest_first(self.folder):
            try:
                return self._verified(folder)
            except (ArtifactError, OSError, KeyError, TypeError) as error:
                logger.warning("%s: damaged (%s); using the checkpoint before it", folder, error)
        return None

    def latest_of_all_ranks(self, place: Place, device: torch.device) -> Checkpoint | None:
        """The latest, chosen by rank 0, which also cleans up; every rank must ask."""
        latest = None
        if place.rank == 0:
            self.clean()
            latest = self.latest()
        if place.world_size == 1:
            return latest
        chosen = torch.tensor(latest.state.step if latest else -1, device=device)
        torch.distributed.broadcast(chosen, src=0)
        step = int(chosen.item())
        return self.at(step) if step >= 0 else None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, which rank 0 has verified or written."""
        artifact = open_artifact(self._path(step))
        if artifact is None:
            raise CheckpointError(
                f"{self._path(step)}: not visible from this machine; "
                "runtime.runs must be on a file system that all machines share"
            )
        return opened(artifact)

    def _path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def _verified(self, folder: Path) -> Checkpoint:
        artifact = open_artifact(folder)
        problems = verify(artifact) if artifact else ["has no manifest"]
        if artifact is None or problems:
            raise ArtifactError("; ".join(problems))
        if artifact.manifest.fingerprint != self.fingerprint:
            raise CheckpointRefused(
                f"{folder}: belongs to the training {artifact.manifest.fingerprint[:12]}, this "
                f"one is {self.fingerprint[:12]}; move it away"
            )
        return opened(artifact)

    def take(self, engine: TorchEngine, state: TrainState) -> Snapshot | None:
        """Copy what the checkpoint of `state.step` will hold; of rank 0, None on the others.

        Every rank must call this: under ZeRO each of them holds a part. The copy takes the memory
        of the one before, which must be written by now.
        """
        keeps = engine.place.rank == 0
        for file, tensors in _tensors(engine).items():
            memory = self._memory.setdefault(file, {})
            for name, tensor in tensors:
                if keeps:
                    if name not in memory:
                        pinned = tensor.is_cuda
                        memory[name] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
                    memory[name].copy_(tensor, non_blocking=True)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        state = copy.deepcopy(state)
        state.adam_steps = engine.adam_steps()
        return Snapshot(state=state, files=self._memory) if keeps else None

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, whole or not at all, and rotate the old ones."""
        final = self._path(snapshot.state.step)
        temporary = self.folder / f"{UNFINISHED}{final.name}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            (temporary / CONFIG).write_text(self.model_config)
            for name, tensors in snapshot.files.items():
                save_file(tensors, temporary / name)
                with (temporary / name).open("rb") as file:
                    os.fsync(file.fileno())
            self._finish(temporary, final, snapshot.state)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{final}: this checkpoint can't be written ({error}); earlier ones are kept. "
                "Mend that (is the disk full?) and run the same command again"
            ) from error
        return final

    def check_space(self, bytes_each: int) -> None:
        """Raise CheckpointRefused now if there is no room for the checkpoints to come."""
        # The oldest goes when the newest is there.
        to_come = max(1, self.keep + 1 - len(newest_first(self.folder)))
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < to_come * bytes_each:
            raise CheckpointRefused(
                f"{self.folder}: {to_come} checkpoints of {bytes_each / GIB:.2f} GiB are to come, "
                f"and {free / GIB:.2f} GiB are free; make room, put runtime.runs elsewhere, or "
                f"lower runtime.keep_checkpoints ({self.keep}) down to 2"
            )

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
        for old in newest_first(self.folder)[self.keep :]:
            if self.keep_every is None or (step_of(old) or 0) % self.keep_every:
                self._discard(old)

    def _discard(self, folder: Path) -> None:
        """Delete a checkpoint; renamed first, so that half a deletion is not half a checkpoint."""
        trash = folder.with_name(f"{TRASH}{folder.name}")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)


def checkpoint_bytes(model: nn.Module, *, averages: bool) -> int:
    """What a checkpoint of the model takes, all but a few kB."""
    copies = 1 + len(MOMENTS) + averages
    parameters = {name: each.nbytes for name, each in model.named_parameters()}
    buffers = (each.nbytes for name, each in model.state_dict().items() if name not in parameters)
    return copies * sum(parameters.values()) + sum(buffers)


def _tensors(engine: TorchEngine) -> dict[str, Iterator[tuple[str, Tensor]]]:
    """What a checkpoint holds, by file: names and tensors. Going through them may take every rank,
    in this order."""
    model = engine.objective.model
    parameters = dict(model.named_parameters())
    state = model.state_dict()
    buffers = ((name, each) for name, each in state.items() if name not in parameters)
    weights = ((name, engine.weight(each)) for name, each in parameters.items())
    files: dict[str, Iterator[tuple[str, Tensor]]] = {WEIGHTS: chain(weights, buffers)}
    for moment in MOMENTS:
        files[f"{moment}.safetensors"] = _moments(engine, parameters, moment)
    if engine.average is not None:
        files[AVERAGE] = ((name, engine.averaged_weight(p)) for name, p in parameters.items())
    return files


def _moments(
    engine: TorchEngine, parameters: Mapping[str, nn.Parameter], moment: str
) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in parameters.items():
        yield name, engine.moment(parameter, moment)
