"""From shards to training batches, the same for any number of workers.

A worker is given nothing but places in the sequence of samples that its process trains on: which
samples these are, their noise and their flips are functions of the seed, so there is no state to
keep, to save or to get wrong.
"""

# N batch, C channels, H W height and width; images leave as (N, C, H, W).

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.config import DataConfig
from pipeline.data.fetching import fetching_ahead
from pipeline.data.order import (
    SampleIds,
    StreamOrder,
    divide_batch,
    keyed_number,
    shuffled,
)
from pipeline.data.samples import Batch, Samples
from pipeline.data.shards import ShardError
from pipeline.data.streams import Drawn, Pair, Stream
from pipeline.data.worker_processes import (
    FOR_THE_PARENT,
    blocked_in_children,
    exit_with_parent,
)

# SIGTERM too: the training process still needs its next batches to reach a checkpoint.
IGNORED = (*FOR_THE_PARENT, signal.SIGTERM)


class WorkerLost(Exception):  # noqa: N818 - what happened to it, not an error of its own
    """A worker process of the loader ended; the message says what is known."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchSampler:
    """Places in the sequence of a process's samples, micro-batch after micro-batch; starting at a
    late one costs nothing."""

    micro_batch: int
    numbers: range

    def __iter__(self) -> Iterator[Any]:  # ranges; DataLoader declares lists
        for number in self.numbers:
            yield range(number * self.micro_batch, (number + 1) * self.micro_batch)

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, kw_only=True)
class TrainingBatches:
    """The micro-batches of one process, on its device."""

    samples: Samples
    numbers: range
    workers: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        accumulation = self.samples.division.accumulation
        with fetching_ahead(self.samples, self.numbers.start // accumulation) as reached:
            packed = iter(self._loader())
            for number in self.numbers:
                content = self._next(packed)
                reached(number // accumulation)
                yield self.samples.unpack(content.to(self.device, non_blocking=True), number)

    def _next(self, packed: Iterator[Tensor | ShardError]) -> Tensor:
        try:
            content = next(packed)
        except RuntimeError as error:  # all that DataLoader says of a worker that is gone
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerLost(
                f"a worker of the loader ended ({error}); most likely for want of memory: lower "
                f"runtime.workers ({self.workers}); the same command goes on from the last "
                "checkpoint"
            ) from error
        if isinstance(content, ShardError):
            raise content
        return content

    def _loader(self) -> "DataLoader[Tensor]":
        own_generator = torch.Generator()  # the global one is untouched
        own_generator.manual_seed(self.samples.drawn.seed)
        return DataLoader(
            self.samples,
            batch_sampler=MicroBatchSampler(
                micro_batch=self.samples.micro_batch, numbers=self.numbers
            ),
            collate_fn=_as_it_is,
            generator=own_generator,
            num_workers=self.workers,
            multiprocessing_context=_worker_context() if self.workers else None,
            worker_init_fn=_start_worker if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )


def training_batches(
    streams: Mapping[str, Stream],
    *,
    config: DataConfig,
    tasks_per_step: Literal["one", "all"],
    batch: int,
    micro_batch: int,
    seed: int,
    start_step: int,
    steps: int,
    rank: int,
    world_size: int,
    workers: int,
    device: torch.device,
) -> TrainingBatches:
    """The micro-batches of one process from `start_step` on, up to the end of step `steps` - 1.

    A step is batch / (world_size · micro_batch) consecutive ones. Raises OrderError at once where
    the numbers don't divide. With workers, the calling program's main module must be importable.
    """
    division = divide_batch(
        tasks=list(streams),
        tasks_per_step=tasks_per_step,
        batch=batch,
        micro_batch=micro_batch,
        world_size=world_size,
        lanes=config.lanes,
    )
    orders = {
        name: StreamOrder(
            stream.reader.counts, task=name, seed=seed, lanes=config.lanes, window=config.window
        )
        for name, stream in streams.items()
    }
    samples = Samples(
        streams=dict(streams),
        orders=orders,
        division=division,
        tasks_per_step=tasks_per_step,
        drawn=Drawn(seed=seed, config=config),
        rank=rank,
    )
    first, end = (step * division.accumulation for step in (start_step, steps))
    return TrainingBatches(
        samples=samples, numbers=range(first, max(first, end)), workers=workers, device=device
    )


def validation_crops(stream: Stream, count: int, seed: int) -> Pair:
    """(corrupted, clean) of `count` samples that the seed picks, or of all if there are fewer."""
    counts = stream.reader.counts
    picked = shuffled(stream.samples, keyed_number("validation crops", seed))[:count]
    ends = np.cumsum(counts)
    shards = np.searchsorted(ends, picked, side="right")
    places = picked - stream.reader.first_samples[shards]
    ids = SampleIds(passes=np.zeros_like(picked), shards=shards, places=places)
    return stream.pair(ids, Drawn(seed=seed, purpose="validation"))


def _as_it_is(batch: Any) -> Any:  # what DataLoader declares, which has lists in mind
    return batch


def _worker_context() -> multiprocessing.context.ForkServerContext:
    """Workers come from a server that has imported torch and nothing else has happened to.

    By now this process has threads of torch, of gloo or NCCL and perhaps a CUDA context, none of
    which survives a fork; a spawned worker would take seconds to import torch, each time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    with blocked_in_children(IGNORED):
        forkserver.ensure_running()
    return context


def _start_worker(_: int) -> None:
    # Once more, for a server that another library had started before.
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    # The server's children would outlive a training that was killed.
    exit_with_parent()
    threading.Thread(target=_end_when_parent_asks, name="end-when-asked", daemon=True).start()


def _end_when_parent_asks() -> None:
    """SIGTERM is blocked here, unless the sender is the training process."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        continue
    os._exit(1)
