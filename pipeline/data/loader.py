"""From shards to training batches, the same for any number of workers.

A worker is given nothing but the number of a micro-batch: which samples that is, their noise and
their flips are functions of the seed, so there is no state to keep, to save or to get wrong.
"""

# N batch, C channels, H W height and width; images leave as (N, C, H, W).

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.config import DataConfig
from pipeline.corruptions.apply import corrupt
from pipeline.corruptions.keyed import generator
from pipeline.data.order import (
    Division,
    SampleIds,
    StreamOrder,
    divide_batch,
    keyed_number,
    shuffled,
    task_of_step,
)
from pipeline.data.shard_reader import ShardReader, open_shards
from pipeline.data.worker_processes import (
    FOR_THE_PARENT,
    blocked_in_children,
    exit_with_parent,
)
from pipeline.tasks import Task

# By task: (corrupted, clean), each uint8 0..255, or float32 in [0, 1] where noise was drawn, which
# leaves that range if the task doesn't clip.
Batch = dict[str, tuple[Tensor, Tensor]]

# SIGTERM too: the training process still needs its next batches to reach a checkpoint.
IGNORED = (*FOR_THE_PARENT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The finished samples of one task."""

    task: Task
    reader: ShardReader

    @property
    def samples(self) -> int:
        return sum(self.reader.counts)

    def pairs(
        self, ids: SampleIds, *, seed: int, data: DataConfig, purpose: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(corrupted, clean), each (N, H, W, C)."""
        clean = self.reader.images("clean", ids.shards, ids.places)
        keys = self.reader.keys(ids.shards, ids.places)
        passes = ids.passes.tolist()
        corrupted = None
        if self.reader.stores_corrupted:
            corrupted = self.reader.images("corrupted", ids.shards, ids.places)
        if data.flips_and_rotations:
            turns = [
                int(generator("turn", purpose, seed, self.task.name, key, number).integers(8))
                for key, number in zip(keys, passes, strict=True)
            ]
            clean = _turned(clean, turns)
            corrupted = None if corrupted is None else _turned(corrupted, turns)
        if corrupted is None:
            if not data.fresh_noise:
                passes = [0] * len(passes)
            corrupted = np.empty(clean.shape, np.float32)
            for place, (key, number) in enumerate(zip(keys, passes, strict=True)):
                rng = generator("noise", purpose, seed, self.task.name, key, number)
                corrupted[place] = corrupt(
                    clean[place], self.task.corruption, rng, rain_layers=None
                )
        return corrupted, clean


def open_stream(
    artifact_folder: Path, task: Task, *, split: Literal["train", "validation"]
) -> Stream:
    """The shards that the corrupt stage of `task` made, in its folder."""
    reader = open_shards(artifact_folder / "shards", split)
    return Stream(task=task, reader=reader)


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
) -> DataLoader[Batch]:
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
    dataset = _MicroBatches(
        streams=dict(streams),
        orders=orders,
        config=config,
        tasks_per_step=tasks_per_step,
        division=division,
        seed=seed,
        rank=rank,
    )
    first, end = (step * division.accumulation for step in (start_step, steps))
    own_generator = torch.Generator()  # the global one is untouched
    own_generator.manual_seed(seed)
    return DataLoader(
        dataset,
        sampler=range(first, max(first, end)),
        batch_size=None,  # an element of the dataset is a micro-batch already
        collate_fn=_as_it_is,
        generator=own_generator,
        num_workers=workers,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def validation_crops(stream: Stream, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(corrupted, clean) of `count` samples that the seed picks, or of all if there are fewer."""
    counts = stream.reader.counts
    picked = shuffled(stream.samples, keyed_number("validation crops", seed))[:count]
    ends = np.cumsum(counts)
    shards = np.searchsorted(ends, picked, side="right")
    places = picked - (ends - counts)[shards]
    ids = SampleIds(passes=np.zeros_like(picked), shards=shards, places=places)
    pair = stream.pairs(ids, seed=seed, data=DataConfig(), purpose="validation")
    return _to_tensor(pair[0]), _to_tensor(pair[1])


@dataclass(frozen=True, kw_only=True)
class _MicroBatches(Dataset[Batch]):
    """Micro-batch number n of one process: micro-batch n mod accumulation of step n div it."""

    streams: dict[str, Stream]
    orders: dict[str, StreamOrder]
    config: DataConfig
    tasks_per_step: Literal["one", "all"]
    division: Division
    seed: int
    rank: int

    def __getitem__(self, number: int) -> Batch:
        step, micro = divmod(number, self.division.accumulation)
        elements = self.division.elements(self.rank, micro)
        if self.tasks_per_step == "all":
            visits = dict.fromkeys(self.streams, step)
        else:
            visits = dict([task_of_step(step, list(self.streams), self.seed)])
        batch = {}
        for name, visit in visits.items():
            ids = self.orders[name].ids(visit, self.division.share, elements)
            corrupted, clean = self.streams[name].pairs(ids, seed=self.seed, data=self.config)
            batch[name] = (_to_tensor(corrupted), _to_tensor(clean))
        return batch


def _as_it_is(batch: Any) -> Any:  # what DataLoader declares, which has lists in mind
    return batch


def _to_tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, C) to contiguous (N, C, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _turned(images: np.ndarray, turns: Sequence[int]) -> np.ndarray:
    """Each square image (N, H, H, C) under one of the eight flips and rotations."""
    turned = np.empty_like(images)
    for place, turn in enumerate(turns):
        rotated = np.rot90(images[place], turn % 4)
        turned[place] = rotated[:, ::-1] if turn >= 4 else rotated
    return turned


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
