"""The one training loop: prepare, resume, then batch, step, log, checkpoint, stop?, and finish."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Runtime, TrainingConfig
from pipeline.graph import Progress, StageError, StoppedWithCheckpoint, report_nothing
from pipeline.training.batch_statistics import BatchStatistics
from pipeline.training.checkpoint import Checkpoint, CheckpointFolder, TrainState
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
    place: Place


def fit(
    objective: Objective,
    *,
    config: TrainingConfig,
    runtime: Runtime,
    folder: Path,
    fingerprint: str,
    batches: Callable[[Place, torch.device], Iterable[Batch]],
    groups: Mapping[str, Sequence[nn.Parameter]],
    images: Pictures | None = None,
    progress: Progress = report_nothing,
) -> Trained:
    """Train `objective.model` up to `config.samples`, going on from the checkpoints in `folder`.

    `batches` gives a process its micro-batches from a step on, in order, on its device. `groups`
    are the model's parameters by what uses them: "body" in every step, the others when their task
    is in the batch. `images` shows what a model can do, as named (N, C, H, W) in [0, 1].

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
        state = checkpoint.state if checkpoint else TrainState()
        if checkpoint is not None and state.step >= place.steps:
            return Trained(checkpoint=checkpoint, place=place)
        if checkpoint is not None:
            logger.info("going on from %s", checkpoint.folder)
            checkpoint.load_weights(objective.model)
        place = replace(place, start_step=state.step)
        objective.train()
        engine = build_engine(
            accelerator, name, objective, groups=groups, config=config, place=place
        )
        if checkpoint is not None:
            checkpoint.load_optimizer(engine)
        log = None
        if place.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            log = TrainingLog(folder, accelerator=accelerator, resumed_step=state.step)
        try:
            training = _Training(
                engine=engine,
                config=config,
                runtime=runtime,
                checkpoints=checkpoints,
                state=state,
                log=log,
                images=images,
                progress=progress,
            )
            training.run(batches(place, accelerator.device), stop)
        finally:
            if log is not None:
                log.close()
            engine.close()
        return Trained(checkpoint=checkpoints.at(place.steps), place=place)


def _find_checkpoint(
    checkpoints: CheckpointFolder, place: Place, device: torch.device
) -> Checkpoint | None:
    """The latest checkpoint, chosen by rank 0 for all."""
    latest = None
    if place.rank == 0:
        checkpoints.clean()
        latest = checkpoints.latest()
    if place.world_size == 1:
        return latest
    chosen = torch.tensor(latest.state.step if latest else -1, device=device)
    torch.distributed.broadcast(chosen, src=0)
    step = int(chosen.item())
    return checkpoints.at(step) if step >= 0 else None


@dataclass(kw_only=True)
class _Training:
    """The loop's own variables; one `run` from the first step to the last or to a stop."""

    engine: TorchEngine
    config: TrainingConfig
    runtime: Runtime
    checkpoints: CheckpointFolder
    state: TrainState
    log: TrainingLog | None  # of rank 0
    images: Pictures | None
    progress: Progress
    interval: Interval = field(default_factory=Interval)
    note: str = ""  # the last loss, beside the progress

    def __post_init__(self) -> None:
        self.place = self.engine.place
        self.model = self.engine.objective.model
        self.statistics = BatchStatistics(self.model)
        self.began = time.monotonic() - self.state.seconds  # as if it had never stopped

    def run(self, micro_batches: Iterable[Batch], stop: StopRequest) -> None:
        stream = iter(micro_batches)
        state, runtime, steps = self.state, self.runtime, self.place.steps
        stopping = False
        while state.step < steps and not stopping:
            rate = learning_rate(self.config, state.samples)
            stopping = self._step(stream, rate=rate, stop=stop).stop_requested
            ends = stopping or state.step == steps
            state.seconds = time.monotonic() - self.began
            if state.step % runtime.log_every_steps == 0 or ends:
                self._log(rate)
            if state.step % runtime.images_every_steps == 0 or state.step == steps:
                self._show_images()
            if state.step % runtime.checkpoint_every_steps == 0 or ends:
                self._save()
        if self.place.world_size > 1:
            # Rank 0 may still be writing, and a launcher that sees one rank end kills the others.
            torch.distributed.barrier()
        if stopping or stop:
            raise StoppedWithCheckpoint(
                f"stopped after step {state.step} of {steps} with a checkpoint; "
                "the same command goes on from there"
            )

    def _step(self, stream: Iterator[Batch], *, rate: float, stop: StopRequest) -> StepOutcome:
        """One optimizer update from this process's share of a batch."""
        accumulation = self.place.accumulation
        counts: Counter[str] = Counter()
        means: dict[str, Tensor] = {}
        self.statistics.remember()
        for number in range(accumulation):
            batch = self._next(stream)
            counts.update({task: len(corrupted) for task, (corrupted, _) in batch.items()})
            parts = self.engine.accumulate(batch, is_last=number == accumulation - 1)
            for name, value in parts.items():
                means[name] = means.get(name, 0) + value / accumulation
        outcome = self.engine.update(
            means, active=frozenset({BODY, *counts}), rate=rate, stop=bool(stop)
        )
        self._count(counts, outcome)
        if self.log is not None:
            self.progress(self.state.step, self.place.steps, self.note)
        return outcome

    def _next(self, stream: Iterator[Batch]) -> Batch:
        asked = time.monotonic()
        batch = next(stream, None)
        self.interval.waited += time.monotonic() - asked
        if batch is None:
            raise StageError(
                f"the data ended after step {self.state.step} of {self.place.steps}; make it again"
            )
        return batch

    def _count(self, counts: Mapping[str, int], outcome: StepOutcome) -> None:
        state, world_size = self.state, self.place.world_size
        assert sum(counts.values()) * world_size == self.config.batch, (counts, world_size)
        state.step += 1
        state.samples += self.config.batch
        for task, count in counts.items():
            state.samples_by_task[task] = state.samples_by_task.get(task, 0) + count * world_size
        self.interval.add(counts, samples=self.config.batch)
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

    def _log(self, rate: float) -> None:
        state = self.state
        row = self.interval.row()
        if row["loss"] is not None:
            state.loss = row["loss"]
            self.note = f"loss {state.loss:.4g}"
        if self.log is not None:
            row |= {
                "step": state.step,
                "samples": state.samples,
                "seconds": round(state.seconds, 3),
                "learning_rate": rate,
                "memory_gib": peak_memory_gib(self.engine.device),
                "skipped": state.skipped,
            }
            self.log.write(row, tasks=frozenset(self.interval.tasks), total_steps=self.place.steps)
        self.interval = Interval()

    def _show_images(self) -> None:
        if self.images is None or not self.runtime.trackers:
            return
        # Under ZeRO 3 each rank holds a part of the weights, so all must take part.
        if self.log is None and not self.engine.forward_is_collective:
            return
        self.model.eval()
        with torch.no_grad():
            shown = self.images(self.model)
        self.model.train()
        if self.log is not None:
            self.log.write_images(shown, self.state.step)

    def _save(self) -> None:
        began = time.monotonic()
        path = self.checkpoints.save(self.engine, self.state)
        if self.log is not None:
            logger.info("saved %s in %.2f s", path.name, time.monotonic() - began)
