"""The finished samples of one task, packed by workers and unpacked where training takes place.

A worker reads a micro-batch into bytes, turned and channel by channel; noise is drawn after these
bytes have reached the device, from keys that travel with them.
"""

# N batch, C channels, H W height and width

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.data.noise import noisy
from pipeline.data.order import SampleIds, keyed_number, mix
from pipeline.data.shard_files import ShardFiles
from pipeline.data.shard_reader import ShardReader, open_shards
from pipeline.tasks import GaussianNoise, Task

# Corrupted and clean, (N, C, H, W): uint8 0..255, or float32 in [0, 1] where noise was drawn, which
# leaves that range if the task doesn't clip.
Pair = tuple[Tensor, Tensor]
KEY_BYTES = 8
BLOCK_BYTES = 2**20  # read before it is turned; stays in a processor's cache


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Everything random about samples is a function of these and of the sample and the pass."""

    seed: int
    purpose: str = "train"
    config: DataConfig = field(default_factory=DataConfig)

    def numbers(self, what: str, task: str, samples: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """(N,) uint64, a random one for each sample and pass."""
        key = keyed_number(what, self.purpose, self.seed, task)
        return mix(mix(samples.astype(np.uint64) ^ key) ^ passes.astype(np.uint64))


@dataclass(frozen=True, kw_only=True)
class Stream:
    task: Task
    reader: ShardReader

    @property
    def samples(self) -> int:
        return sum(self.reader.counts)

    @property
    def draws_noise(self) -> bool:
        return not self.reader.stores_corrupted

    def packed_bytes(self, count: int) -> int:
        """Of `count` samples: their keys, then image after image, then what fills up 8 bytes."""
        size = count * KEY_BYTES if self.draws_noise else 0
        size += count * sum(map(math.prod, self.reader.shapes.values()))
        return size + -size % KEY_BYTES

    def pack(self, packed: np.ndarray, ids: SampleIds, drawn: Drawn) -> None:
        """Read the samples into `packed`, (packed_bytes,) uint8."""
        count = len(ids.places)
        samples = self.reader.first_samples[ids.shards] + ids.places
        if self.draws_noise:
            passes = ids.passes if drawn.config.fresh_noise else np.zeros_like(ids.passes)
            keys = drawn.numbers("noise", self.task.name, samples, passes)
            packed[: count * KEY_BYTES] = keys.view(np.uint8)
        turns = np.zeros(count, np.uint64)
        if drawn.config.flips_and_rotations:
            turns = drawn.numbers("turn", self.task.name, samples, ids.passes) >> np.uint64(61)
        images = {
            name: packed[begin : begin + math.prod(shape)].reshape(shape)
            for name, (begin, shape) in self._places(count).items()
        }
        self._read(images, ids, turns)

    def _read(self, images: Mapping[str, np.ndarray], ids: SampleIds, turns: np.ndarray) -> None:
        """Fill images, (N, C, H, W) by name; those of one turn are turned together."""
        reader = self.reader
        most = max(1, BLOCK_BYTES // reader.row_bytes)
        rows = np.empty((min(most, len(turns)), reader.row_bytes), np.uint8)
        for turn in np.unique(turns).tolist():
            alike = np.flatnonzero(turns == turn)
            for begin in range(0, len(alike), most):
                here = alike[begin : begin + most]
                read = rows[: len(here)]
                reader.read_rows(read, ids.shards[here], ids.places[here])
                for name, target in images.items():
                    pixels = read[:, reader.columns[name]].reshape(-1, *reader.shapes[name])
                    target[here] = turned(pixels.transpose(0, 3, 1, 2), turn)

    def _places(self, count: int) -> dict[str, tuple[int, tuple[int, int, int, int]]]:
        """Where the images of `count` samples begin, and their shape, by name."""
        places = {}
        begin = count * KEY_BYTES if self.draws_noise else 0
        for name, (height, width, channels) in self.reader.shapes.items():
            places[name] = (begin, (count, channels, height, width))
            begin += count * height * width * channels
        return places

    def unpack(self, packed: Tensor, count: int) -> Pair:
        """(corrupted, clean) of the `count` samples in `packed`, on its device."""
        images = {
            name: packed[begin : begin + math.prod(shape)].view(shape)
            for name, (begin, shape) in self._places(count).items()
        }
        if not self.draws_noise:
            return images["corrupted"], images["clean"]
        noise = self.task.corruption
        assert isinstance(noise, GaussianNoise), self.task.name
        keys = packed[: count * KEY_BYTES].view(torch.int64)
        return noisy(images["clean"], keys, noise), images["clean"]

    def pair(self, ids: SampleIds, drawn: Drawn) -> Pair:
        """(corrupted, clean) of the samples, on the CPU."""
        count = len(ids.places)
        packed = torch.empty(self.packed_bytes(count), dtype=torch.uint8)
        self.pack(packed.numpy(), ids, drawn)
        return self.unpack(packed, count)


def open_stream(
    artifact_folder: Path,
    task: Task,
    *,
    split: Literal["train", "validation"],
    files: ShardFiles | None = None,
) -> Stream:
    """The shards that the corrupt stage of `task` made, in its folder; `files` has their tars if
    they are elsewhere."""
    return Stream(task=task, reader=open_shards(artifact_folder / "shards", split, files))


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    """Square images (…, H, H) under one of the eight flips and rotations, as a view."""
    if turn & 4:
        images = images.swapaxes(-1, -2)
    if turn & 2:
        images = images[..., ::-1, :]
    if turn & 1:
        images = images[..., ::-1]
    return images
