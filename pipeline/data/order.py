"""Which samples a step trains on: pure functions of the seed and the step.

There is no state: step s costs the same for every s, and neither workers nor world size enter.

A stream has N samples in shards. Pass p permutes the shards by (seed, task, p) and cuts the
sequence of samples into L lanes; lane l holds ⌊((p+1)N + l)/L⌋ − ⌊(pN + l)/L⌋ of them, so that
after any number of passes the lanes are even to one sample. Inside a lane each window of K shards
is permuted. A visit of the stream takes the next samples of every lane, lane after lane, and goes
on over the end of a pass: every sample exactly once a pass, nothing dropped, nothing padded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.division import divisors, one_of

# Of the Feistel network. Small domains need more rounds than large ones to look random.
ROUNDS = 8
LAYOUTS_KEPT = 4  # passes whose shard order is remembered


class OrderError(ValueError):
    """Numbers that don't divide into each other; the message lists those that do."""


def keyed_number(*key: str | int) -> np.uint64:
    """64 bits that depend on every part of `key`, the same on every platform and version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit depends on every bit: splitmix64's finalizer
    (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def shuffled(count: int, key: np.uint64) -> np.ndarray:
    """The numbers 0..count-1 in the order that `key` gives; for counts that fit in memory."""
    ranks = mix(np.arange(count, dtype=np.uint64) ^ mix(np.array([key])))
    return np.argsort(ranks, kind="stable")


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where each `index` goes in the keyed permutation of 0..size-1; three arrays of one shape.

    A Feistel network over the next power of four, walked until it is back inside: a bijection
    that needs no memory, whatever the size.
    """
    bits = np.frexp((size - 1).astype(np.float64))[1]  # of the largest index; exact below 2**53
    half = np.maximum((bits + 1) // 2, 1).astype(np.uint64)
    values = index.astype(np.uint64)
    limit = size.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        moved = _feistel(values[outside], half[outside], key[outside])
        values[outside] = moved
        outside = outside[moved >= limit[outside]]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for turn in range(ROUNDS):
        scrambled = mix(right ^ mix(key + np.uint64(turn)))
        left, right = right, left ^ (scrambled & mask)
    return (left << half) | right


@dataclass(frozen=True, kw_only=True)
class SampleIds:
    """Samples of a stream, one entry each: in which pass, from which shard, at which place."""

    passes: np.ndarray
    shards: np.ndarray
    places: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive draws of a lane that come from the shards of one window."""

    first: int  # draw of the lane, counted from the beginning of the first pass
    end: int  # the draw after the last one
    shards: np.ndarray


class StreamOrder:
    """The endless order of one stream, any part of it at the same cost."""

    def __init__(
        self,
        counts: Sequence[int],
        *,
        task: str,
        seed: int,
        lanes: int = 1,
        window: int | None = None,
    ) -> None:
        self.samples = sum(counts)
        if self.samples < 1:
            raise OrderError(f"{task}: the shards hold no samples")
        if lanes > self.samples:
            raise OrderError(
                f"data.lanes: {lanes} lanes are more than the {self.samples} samples of {task}; "
                "use fewer"
            )
        self.task = task
        self.seed = seed
        self.lanes = lanes
        self._counts = np.asarray(counts, dtype=np.int64)
        self._window = window or len(counts)
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def ids(self, visit: int, share: int, elements: np.ndarray) -> SampleIds:
        """The samples at `elements` (places in 0..share-1) of a visit that takes `share`."""
        assert share % self.lanes == 0, "checked by accumulation_of"
        each = share // self.lanes
        lane = elements // each
        drawn = visit * each + elements % each  # from this lane, before this sample
        passes = ((drawn + 1) * self.lanes - 1 - lane) // self.samples
        offset = drawn - (passes * self.samples + lane) // self.lanes
        shards = np.empty_like(passes)
        places = np.empty_like(passes)
        for number in np.unique(passes).tolist():
            here = passes == number
            shards[here], places[here] = self._locate(number, lane[here], offset[here])
        return SampleIds(passes=passes, shards=shards, places=places)

    def _locate(
        self, number: int, lane: np.ndarray, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shard and place of the samples at `offset` inside `lane` of pass `number`."""
        order, starts = self._layout(number)
        first = self._lane_start(number, lane)
        end = self._lane_start(number, lane + 1)
        shard_of_first = np.searchsorted(starts, first, side="right") - 1
        shard = np.searchsorted(starts, first + offset, side="right") - 1
        window = (shard - shard_of_first) // self._window
        opening = shard_of_first + window * self._window
        closing = np.minimum(opening + self._window, len(order))
        low = np.maximum(first, starts[opening])
        high = np.minimum(end, starts[closing])
        key = keyed_number("order", self.seed, self.task, number)
        keys = mix((lane.astype(np.uint64) << np.uint64(32)) + window.astype(np.uint64)) ^ key
        position = low + permute(first + offset - low, high - low, keys)
        shard = np.searchsorted(starts, position, side="right") - 1
        return order[shard], position - starts[shard]

    def stretches(self, lane: int, drawn: int) -> Iterator[Stretch]:
        """Which shards `lane` reads and when, window after window for ever, from the window that
        holds its draw number `drawn` on."""
        number = ((drawn + 1) * self.lanes - 1 - lane) // self.samples
        while True:
            order, starts = self._layout(number)
            first, end = self._lane_start(number, np.array([lane, lane + 1])).tolist()
            before = (number * self.samples + lane) // self.lanes - first
            opening = int(np.searchsorted(starts, first, side="right")) - 1
            while starts[opening] < end:
                closing = min(opening + self._window, len(order))
                low, high = max(first, int(starts[opening])), min(end, int(starts[closing]))
                if before + high > drawn and low < high:
                    begins = np.maximum(starts[opening:closing], low)
                    ends = np.minimum(starts[opening + 1 : closing + 1], high)
                    shards = order[opening:closing][begins < ends]
                    yield Stretch(first=before + low, end=before + high, shards=shards)
                opening = closing
            number += 1

    def _lane_start(self, number: int, lane: np.ndarray) -> np.ndarray:
        """Where `lane` begins in the sequence of pass `number`; lane L begins at its end."""

        def drawn_by_lanes_before(total: int) -> np.ndarray:  # Σ over l < lane of ⌊(total + l)/L⌋
            quotient, remainder = divmod(total, self.lanes)
            return quotient * lane + np.maximum(0, lane + remainder - self.lanes)

        before = drawn_by_lanes_before(number * self.samples)
        return drawn_by_lanes_before((number + 1) * self.samples) - before

    def _layout(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of pass `number`, and where each begins in it (one more)."""
        layout = self._layouts.get(number)  # a thread that fetches ahead may read this too
        if layout is None:
            key = keyed_number("shards", self.seed, self.task, number)
            order = shuffled(len(self._counts), key)
            layout = (order, np.concatenate([[0], np.cumsum(self._counts[order])]))
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.pop(next(iter(self._layouts)), None)
            self._layouts[number] = layout
        return layout


def task_of_step(step: int, tasks: Sequence[str], seed: int) -> tuple[str, int]:
    """The task that `step` trains in mode `one`, and how often that task was trained before.

    Differs from the paper, which draws the task of every step independently: blocks of T steps
    each train every task once, in an order of their own, so that counts are arithmetic.
    """
    block, place = divmod(step, len(tasks))
    order = shuffled(len(tasks), keyed_number("tasks", seed, block))
    return tasks[order[place]], block


@dataclass(frozen=True, kw_only=True)
class Division:
    """How a batch divides over tasks, processes and micro-batches."""

    share: int  # of one task in a step's batch
    accumulation: int  # micro-batches of one process in a step
    share_of_micro_batch: int  # of one task in a micro-batch

    def elements(self, rank: int, micro: int) -> np.ndarray:
        """Places in a task's share that micro-batch `micro` of `rank` takes.

        Rank r of w takes the contiguous slice [r·share/w, (r+1)·share/w).
        """
        first = (rank * self.accumulation + micro) * self.share_of_micro_batch
        return np.arange(first, first + self.share_of_micro_batch, dtype=np.int64)


def divide_batch(
    *,
    tasks: Sequence[str],
    tasks_per_step: Literal["one", "all"],
    batch: int,
    micro_batch: int,
    world_size: int,
    lanes: int,
) -> Division:
    """Check that the batch divides evenly, or raise OrderError with what would."""
    slices = len(tasks) if tasks_per_step == "all" else 1
    if batch % slices:
        raise OrderError(
            f"batch: {batch} does not divide into {slices} tasks; use a multiple of {slices}"
        )
    share = batch // slices
    of_tasks = f" and {slices} tasks" if slices > 1 else ""
    if share % lanes:
        raise OrderError(
            f"data.lanes: {lanes} lanes do not divide the {share} samples that a task has in a "
            f"step; use {one_of(divisors(share))}"
        )
    if share % world_size:
        raise OrderError(
            f"batch: {batch} does not divide over {world_size} processes{of_tasks}; "
            f"start {one_of(divisors(share))} processes, or another batch"
        )
    if micro_batch % slices or share % (world_size * (micro_batch // slices)):
        allowed = [each * slices for each in divisors(share // world_size)]
        raise OrderError(
            f"runtime.micro_batch: {micro_batch} does not divide the batch of {batch} over "
            f"{world_size} processes{of_tasks}; use {one_of(allowed)}"
        )
    return Division(
        share=share,
        accumulation=batch // (world_size * micro_batch),
        share_of_micro_batch=micro_batch // slices,
    )
