"""The one training loop: prepare, resume, then batch, step, log, checkpoint, stop?, and finish."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Runtime, TrainingConfig
from pipeline.graph import Progress, StageError, StoppedWithCheckpoint, report_nothing
from pipeline.training.batch_statistics import BatchStatistics
from pipeline.training.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    TrainState,
    same_on_all_ranks,
)
from pipeline.training.engine import build_engine, started
from pipeline.training.logs import Interval, TrainingLog, peak_memory_gib
from pipeline.training.objectives import Batch, Objective
from pipeline.training.optimizer import learning_rate
from pipeline.training.placement import Place
from pipeline.training.preemption import StopRequest, stop_on_signals
from pipeline.training.torch_engine import StepOutcome, TorchEngine

logger = logging.getLogger(__name__)

BODY = "body"  # the parameter group that every step uses
CHECKPOINTS = "checkpoints"
Pictures = Callable[[nn.Module], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training, as every rank sees it."""

    checkpoint: Checkpoint  # the last one
    rank: int
    world_size: int

    @property
    def state(self) -> TrainState:
        return self.checkpoint.state


def fit(
    objective: Objective,
    *,
    config: TrainingConfig,
    runtime: Runtime,
    folder: Path,
    fingerprint: str,
    batches: Callable[[Place], Iterable[Batch]],
    groups: Mapping[str, Sequence[nn.Parameter]],
    images: Pictures | None = None,
    progress: Progress = report_nothing,
) -> Trained:
    """Train `objective.model` up to `config.samples`, going on from the checkpoints in `folder`.

    `batches` gives a process its micro-batches from a step on, in order. `groups` are the model's
    parameters by what uses them: "body" in every step, the others when their task is in the
    batch. `images` shows what a model can do, as named (N, C, H, W) in [0, 1].

    Raises StoppedWithCheckpoint where a signal asked for it; the same call goes on then.
    """
    checkpoints = CheckpointFolder(
        folder / CHECKPOINTS, fingerprint=fingerprint, keep=runtime.keep_checkpoints
    )
    with (
        stop_on_signals() as stop,
        started(config, runtime, log_folder=str(folder / "logs")) as (accelerator, name, place),
    ):
        checkpoint = _find_checkpoint(checkpoints, place, accelerator.device)
        if checkpoint is not None and checkpoint.state.step >= place.steps:
            return Trained(checkpoint=checkpoint, rank=place.rank, world_size=place.world_size)
        if checkpoint is not None:
            logger.info("going on from %s", checkpoint.folder)
            checkpoint.load_weights(objective.model)
        place = replace(place, start_step=checkpoint.state.step if checkpoint else 0)
        objective.train()
        engine = build_engine(
            accelerator, name, objective, groups=groups, config=config, place=place
        )
        if checkpoint is not None:
            checkpoint.load_optimizer(engine)
        log = None
        if place.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            log = TrainingLog(folder, accelerator=accelerator, resumed_step=place.start_step)
        try:
            training = _Training(
                engine,
                config=config,
                runtime=runtime,
                checkpoints=checkpoints,
                state=checkpoint.state if checkpoint else TrainState(),
                log=log,
                images=images,
                progress=progress,
            )
            training.run(batches(place), stop)
        finally:
            if log is not None:
                log.close()
            engine.close()
        _wait_for_all(place)
        final = checkpoints.at(place.steps)
        return Trained(checkpoint=final, rank=place.rank, world_size=place.world_size)


def _find_checkpoint(
    checkpoints: CheckpointFolder, place: Place, device: torch.device
) -> Checkpoint | None:
    """The latest checkpoint, chosen by rank 0 for all."""
    latest = None
    if place.rank == 0:
        checkpoints.clean()
        latest = checkpoints.latest()
    step = same_on_all_ranks(latest.state.step if latest else -1, device, place.world_size)
    if step < 0:
        return None
    return latest or checkpoints.at(step)


def _wait_for_all(place: Place) -> None:
    """Until rank 0 has sealed the last checkpoint."""
    if place.world_size > 1:
        torch.distributed.barrier()


class _Training:
    """The loop's own variables; one `run` from the first step to the last or to a stop."""

    def __init__(
        self,
        engine: TorchEngine,
        *,
        config: TrainingConfig,
        runtime: Runtime,
        checkpoints: CheckpointFolder,
        state: TrainState,
        log: TrainingLog | None,
        images: Pictures | None,
        progress: Progress,
    ) -> None:
        self.engine = engine
        self.config = config
        self.runtime = runtime
        self.checkpoints = checkpoints
        self.state = state
        self.log = log
        self.images = images
        self.progress = progress
        self.steps = engine.place.steps
        self.statistics = BatchStatistics(engine.objective.model)
        self.seconds_before = state.seconds
        self.began = time.monotonic()
        self.interval = Interval()
        self.note = ""

    def run(self, micro_batches: Iterable[Batch], stop: StopRequest) -> None:
        stream = iter(micro_batches)
        while self.state.step < self.steps:
            outcome = self._step(stream, stop)
            state, runtime = self.state, self.runtime
            is_last = state.step == self.steps
            ends = is_last or outcome.stop_requested
            if state.step % runtime.log_every_steps == 0 or ends:
                self._log()
            if state.step % runtime.images_every_steps == 0 or is_last:
                self._show_images()
            if state.step % runtime.checkpoint_every_steps == 0 or ends:
                self._save()
            if outcome.stop_requested and not is_last:
                # A launcher that sees one rank end kills the others, which may be writing.
                _wait_for_all(self.engine.place)
                raise StoppedWithCheckpoint(
                    f"stopped after step {state.step} of {self.steps} with a checkpoint; "
                    "the same command goes on from there"
                )

    def _step(self, stream: Iterator[Batch], stop: StopRequest) -> StepOutcome:
        """One optimizer update from this process's share of a batch."""
        accumulation = self.engine.place.accumulation
        rate = learning_rate(self.config, self.state.samples)
        counts: dict[str, int] = {}
        means: dict[str, Tensor] = {}
        self.statistics.remember()
        for number in range(accumulation):
            batch = self._next(stream)
            for task, (corrupted, _) in batch.items():
                counts[task] = counts.get(task, 0) + len(corrupted)
            parts = self.engine.accumulate(batch, is_last=number == accumulation - 1)
            for name, value in parts.items():
                means[name] = means.get(name, 0) + value / accumulation
        outcome = self.engine.update(
            means, active=frozenset({BODY, *counts}), rate=rate, stop=bool(stop)
        )
        self._count(counts, outcome)
        self.rate = rate
        if self.log is not None:
            self.progress(self.state.step, self.steps, self.note)
        return outcome

    def _next(self, stream: Iterator[Batch]) -> Batch:
        asked = time.monotonic()
        batch = next(stream, None)
        self.interval.waited += time.monotonic() - asked
        if batch is None:
            raise StageError(
                f"the data ended after step {self.state.step} of {self.steps}; make it again"
            )
        return batch

    def _count(self, counts: Mapping[str, int], outcome: StepOutcome) -> None:
        state, world_size = self.state, self.engine.place.world_size
        assert sum(counts.values()) * world_size == self.config.batch, (counts, world_size)
        state.step += 1
        state.samples += self.config.batch
        self.interval.add(counts, samples=self.config.batch)
        for task, count in counts.items():
            state.samples_by_task[task] = state.samples_by_task.get(task, 0) + count * world_size
        if not outcome.was_skipped:
            self.statistics.average_over_ranks(world_size)
            self.interval.add_losses(outcome.parts, gradient_norm=outcome.gradient_norm)
            state.skipped_in_a_row = 0
            return
        self.statistics.restore()
        state.skipped += 1
        state.skipped_in_a_row += 1
        where = f"step {state.step}, task {', '.join(sorted(counts))}"
        if self.log is not None:
            logger.warning("%s: skipped, its loss or gradient is not finite", where)
        if state.skipped_in_a_row >= self.config.max_skipped_in_a_row:
            raise StageError(
                f"{where}: the loss or the gradient was not finite for {state.skipped_in_a_row} "
                "steps in a row; the weights are those before them. Lower learning_rate, set "
                "clip_norm, or look at the data of this task"
            )

    def _log(self) -> None:
        state = self.state
        row = self.interval.row()
        state.seconds = self.seconds_before + time.monotonic() - self.began
        state.loss = state.loss if row["loss"] is None else row["loss"]
        self.note = f"loss {state.loss:.4g}" if state.loss is not None else ""
        if self.log is not None:
            row |= {
                "step": state.step,
                "samples": state.samples,
                "seconds": round(state.seconds, 3),
                "learning_rate": self.rate,
                "memory_gib": peak_memory_gib(self.engine.device),
                "skipped": state.skipped,
            }
            self.log.write(row, tasks=frozenset(self.interval.tasks), total_steps=self.steps)
        self.interval = Interval()

    def _show_images(self) -> None:
        if self.images is None or not self.runtime.trackers:
            return
        # Under ZeRO 3 each rank holds a part of the weights, so all must take part.
        if self.log is None and not self.engine.forward_is_collective:
            return
        model = self.engine.objective.model
        model.eval()
        with torch.no_grad():
            shown = self.images(model)
        model.train()
        if self.log is not None:
            self.log.write_images(shown, self.state.step)

    def _save(self) -> None:
        self.state.seconds = self.seconds_before + time.monotonic() - self.began
        began = time.monotonic()
        path = self.checkpoints.save(self.engine, self.state)
        if self.log is not None:
            logger.info("saved %s in %.2f s", path.name, time.monotonic() - began)
