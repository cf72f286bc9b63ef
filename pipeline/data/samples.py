"""The samples of one process in the order in which it trains on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.order import Division, SampleIds, StreamOrder, task_of_step
from pipeline.data.shards import ShardError
from pipeline.data.streams import Drawn, Pair, Stream

Batch = dict[str, Pair]  # by task


@dataclass(frozen=True, kw_only=True)
class Samples(Dataset[Tensor]):
    """The samples of one process in the order in which it trains on them, read a micro-batch at a
    time: a step is `division.accumulation` of them."""

    streams: Mapping[str, Stream]
    orders: Mapping[str, StreamOrder]
    division: Division
    tasks_per_step: Literal["one", "all"]
    drawn: Drawn
    rank: int

    @property
    def micro_batch(self) -> int:
        return self.division.share_of_micro_batch * (
            len(self.streams) if self.tasks_per_step == "all" else 1
        )

    def visits(self, step: int) -> dict[str, int]:
        """The tasks of a step, and how often each was trained before."""
        if self.tasks_per_step == "all":
            return dict.fromkeys(self.streams, step)
        return dict([task_of_step(step, list(self.streams), self.drawn.seed)])

    def ids(self, number: int) -> dict[str, SampleIds]:
        """The samples of micro-batch `number`, counted from the first step on, by task."""
        step, micro = divmod(number, self.division.accumulation)
        elements = self.division.elements(self.rank, micro)
        return {
            name: self.orders[name].ids(visit, self.division.share, elements)
            for name, visit in self.visits(step).items()
        }

    def keys(self, number: int) -> list[str]:
        """The samples of micro-batch `number`, as task:key."""
        return [
            f"{name}:{key}"
            for name, ids in self.ids(number).items()
            for key in self.streams[name].reader.keys(ids.shards, ids.places)
        ]

    def lanes(self) -> range:
        """The lanes that this process reads; those at its ends perhaps with its neighbours."""
        each = self.division.share // self.drawn.config.lanes
        first = self.division.elements(self.rank, 0)[0]
        last = self.division.elements(self.rank, self.division.accumulation - 1)[-1]
        return range(first // each, last // each + 1)

    def __getitems__(self, places: range) -> Tensor | ShardError:
        """The micro-batch at `places`, packed into bytes; an error is returned, because raising it
        in a worker would bury its sentence under a traceback."""
        ids = self.ids(places.start // self.micro_batch)
        count = self.division.share_of_micro_batch
        sizes = [self.streams[name].packed_bytes(count) for name in ids]
        packed = torch.empty(sum(sizes), dtype=torch.uint8)
        try:
            for part, (name, of_task) in zip(packed.split(sizes), ids.items(), strict=True):
                self.streams[name].pack(part.numpy(), of_task, self.drawn)
        except ShardError as error:
            return error
        return packed

    def unpack(self, packed: Tensor, number: int) -> Batch:
        """The micro-batch `number` from its bytes, on the device where they are."""
        count = self.division.share_of_micro_batch
        streams = {
            name: self.streams[name] for name in self.visits(number // self.division.accumulation)
        }
        parts = packed.split([stream.packed_bytes(count) for stream in streams.values()])
        return {
            name: stream.unpack(part, count)
            for (name, stream), part in zip(streams.items(), parts, strict=True)
        }
