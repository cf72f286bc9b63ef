"""The one training loop: prepare, resume, then batch, step, log, checkpoint, stop?, and finish."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Runtime, TrainingConfig
from pipeline.graph import Progress, StageError, StoppedWithCheckpoint, report_nothing
from pipeline.training.batch_statistics import BatchStatistics
from pipeline.training.checkpoint import Checkpoint, TrainState
from pipeline.training.checkpoint_folder import CheckpointFolder, checkpoint_bytes
from pipeline.training.checkpoint_names import CHECKPOINTS
from pipeline.training.engine import build_engine, started
from pipeline.training.logs import Interval, TrainingLog, peak_memory_gib
from pipeline.training.model_facts import (
    ModelFacts,
    device_memory,
    device_name,
    peak_flops,
    what_runs,
)
from pipeline.training.nonfinite import Keys, suspects
from pipeline.training.objectives import Batch, Objective
from pipeline.training.optimizer import learning_rate
from pipeline.training.placement import LaunchError, Place, out_of_memory
from pipeline.training.preemption import StopRequest, stop_on_signals
from pipeline.training.saving import CheckpointWriter
from pipeline.training.torch_engine import StepOutcome, TorchEngine
from pipeline.training.watchdog import Watchdog, watched

logger = logging.getLogger(__name__)

BODY = "body"  # the parameter group that every step uses
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
    facts: ModelFacts | None = None,
    keys: Keys | None = None,
    images: Pictures | None = None,
    progress: Progress = report_nothing,
) -> Trained:
    """Train `objective.model` up to `config.samples`, going on from the checkpoints in `folder`.

    `batches` gives a process its micro-batches from a step on, in order, on its device; `keys`
    names their samples. `groups` are the model's parameters by what uses them: "body" in every
    step, the others when their task is in the batch. `images` shows what a model can do, as named
    (N, C, H, W) in [0, 1].

    Raises StoppedWithCheckpoint where a signal asked for it; the same call goes on then.
    """
    checkpoints = CheckpointFolder(
        folder / CHECKPOINTS,
        fingerprint=fingerprint,
        keep=runtime.keep_checkpoints,
        keep_every=runtime.keep_every_steps,
        model_config=facts.config if facts else "",
    )
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        accelerator, name, place = stack.enter_context(
            started(config, runtime, log_folder=str(folder / "logs"))
        )
        watchdog = stack.enter_context(watched(place.rank, runtime, folder / "logs"))
        checkpoint = checkpoints.latest_of_all_ranks(place, accelerator.device)
        state = checkpoint.state if checkpoint else TrainState()
        if checkpoint is not None and state.step >= place.steps:
            return Trained(checkpoint=checkpoint, place=place)
        if place.rank == 0:
            size = checkpoint_bytes(objective.model, averages=config.ema_decay is not None)
            checkpoints.check_space(size)
        if checkpoint is not None:
            logger.info("going on from %s", checkpoint.folder)
            checkpoint.load_weights(objective.model)
        place = replace(place, start_step=state.step)
        objective.train()
        engine = build_engine(
            accelerator, name, objective, groups=groups, config=config, place=place
        )
        stack.callback(engine.close)
        if checkpoint is not None:
            checkpoint.load_optimizer(engine)
        log = None
        if place.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            log = TrainingLog(folder, accelerator=accelerator, resumed_step=state.step)
            stack.callback(log.close)
        writer = CheckpointWriter(checkpoints.write)
        stack.callback(writer.close)
        if place.rank == 0:
            logger.info("%s", what_runs(name, place, accelerator.device, config.precision))
        training = _Training(
            engine=engine,
            config=config,
            runtime=runtime,
            checkpoints=checkpoints,
            writer=writer,
            watchdog=watchdog,
            state=state,
            log=log,
            facts=facts or ModelFacts(),
            keys=keys,
            images=images,
            progress=progress,
        )
        training.run(batches(place, accelerator.device), stop)
        return Trained(checkpoint=checkpoints.at(place.steps), place=place)


@dataclass(kw_only=True)
class _Training:
    """The loop's own variables; one `run` from the first step to the last or to a stop."""

    engine: TorchEngine
    config: TrainingConfig
    runtime: Runtime
    checkpoints: CheckpointFolder
    writer: CheckpointWriter
    watchdog: Watchdog
    state: TrainState
    log: TrainingLog | None  # of rank 0
    facts: ModelFacts
    keys: Keys | None
    images: Pictures | None
    progress: Progress
    interval: Interval = field(default_factory=Interval)
    note: str = ""  # the last loss, beside the progress

    def __post_init__(self) -> None:
        self.place = self.engine.place
        self.model = self.engine.objective.model
        self.statistics = BatchStatistics(self.model)
        self.began = time.monotonic() - self.state.seconds  # as if it had never stopped
        self.peak_flops = peak_flops(device_name(self.engine.device), self.config.precision)

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
            self.writer.check()
            self.watchdog.stepped()
        self.writer.finish()
        if self.place.world_size > 1:
            # Rank 0 may have been writing, and a launcher that sees one rank end kills the others.
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
        losses: list[Tensor] = []
        self.statistics.remember()
        for number in range(accumulation):
            batch = self._next(stream)
            counts.update({task: len(corrupted) for task, (corrupted, _) in batch.items()})
            parts = self._accumulate(batch, is_last=number == accumulation - 1)
            losses.append(parts["loss"])
            for name, value in parts.items():
                means[name] = means.get(name, 0) + value / accumulation
        outcome = self.engine.update(
            means, active=frozenset({BODY, *counts}), rate=rate, stop=bool(stop)
        )
        self._count(counts, outcome)
        if outcome.was_skipped:
            self._skipped(counts, losses)
        if self.log is not None:
            self.progress(self.state.step, self.place.steps, self.note)
        return outcome

    def _accumulate(self, batch: Batch, *, is_last: bool) -> dict[str, Tensor]:
        try:
            return self.engine.accumulate(batch, is_last=is_last)
        except torch.OutOfMemoryError as error:
            raise LaunchError(
                out_of_memory(
                    self.config,
                    self.place,
                    bytes_here=device_memory(self.engine.device),
                    bytes_each=self.facts.bytes_per_sample(batch, at_once=len(batch)),
                )
            ) from error

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
        flops = self.facts.training_flops(counts)
        self.interval.add(counts, samples=self.config.batch, flops=flops)
        if not outcome.was_skipped:
            self.statistics.average_over_ranks(world_size)
            self.interval.add_losses(outcome.parts, gradient_norm=outcome.gradient_norm)
            state.skipped_in_a_row = 0

    def _skipped(self, counts: Mapping[str, int], losses: Sequence[Tensor]) -> None:
        """Nothing has moved, on any rank; after too many such steps, stop."""
        state = self.state
        self.statistics.restore()
        state.skipped += 1
        state.skipped_in_a_row += 1
        where = f"step {state.step}, task {', '.join(sorted(counts))}"
        if self.log is not None:
            logger.warning("%s: skipped, its loss or gradient is not finite", where)
        if state.skipped_in_a_row >= self.config.max_skipped_in_a_row:
            of = suspects(losses, self.keys, step=state.step - 1, place=self.place)
            raise StageError(
                f"{where}: the loss or the gradient was not finite for {state.skipped_in_a_row} "
                f"steps in a row; the weights are those before them. {of}Lower learning_rate, set "
                "clip_norm, or look at the data of this task"
            )

    def _log(self, rate: float) -> None:
        state = self.state
        row = self.interval.row(peak_flops=self.peak_flops)
        if row["loss"] is not None:
            state.loss = row["loss"]
            self.note = f"loss {state.loss:.4g}"
        if self.log is not None:
            row |= {"learning_rate": rate, "memory_gib": peak_memory_gib(self.engine.device)}
            self.log.write(row, state, tasks=self.interval.tasks, total_steps=self.place.steps)
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
        """Copy a checkpoint, which is written while the training goes on."""
        began = time.monotonic()
        self.writer.finish()
        snapshot = self.checkpoints.take(self.engine, self.state)
        paused = time.monotonic() - began
        self.interval.paused += paused
        if snapshot is not None:
            self.writer.start(snapshot, paused=paused)
