import hashlib
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import (
    OrderError,
    StreamOrder,
    divide_batch,
    permute,
    shuffled,
    task_of_step,
)

TASKS = ("sr2", "sr3", "derain", "denoise30")


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int, int, int | None]:
    """Shard counts, lanes, samples a visit takes of each lane, window."""
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(sum))
    lanes = draw(st.integers(1, min(sum(counts), 6)))
    each = draw(st.integers(1, 5))
    window = draw(st.none() | st.integers(1, 8))
    return counts, lanes, each, window


def visited(order: StreamOrder, share: int, visits: range) -> list[tuple[int, int, int]]:
    """(pass, shard, place) of every sample of those visits."""
    taken = []
    for visit in visits:
        ids = order.ids(visit, share, np.arange(share))
        taken += zip(ids.passes.tolist(), ids.shards.tolist(), ids.places.tolist(), strict=True)
    return taken


@settings(deadline=None, max_examples=50)
@given(streams(), st.integers(0, 5))
def test_every_sample_comes_exactly_once_a_pass(
    stream: tuple[list[int], int, int, int | None], seed: int
) -> None:
    counts, lanes, each, window = stream
    order = StreamOrder(counts, task="sr2", seed=seed, lanes=lanes, window=window)
    share, passes = lanes * each, 3
    # A lane may begin pass p + 1 a sample before another ends pass p.
    visits = -(-passes * sum(counts) // share) + 1

    taken = visited(order, share, range(visits))

    everything = {(shard, place) for shard, count in enumerate(counts) for place in range(count)}
    for number in range(passes):
        of_pass = [(shard, place) for each_pass, shard, place in taken if each_pass == number]
        assert Counter(of_pass) == Counter(everything)
    assert len(set(taken)) == len(taken)


@settings(deadline=None, max_examples=20)
@given(
    streams(),
    st.lists(
        st.tuples(st.integers(1, 2), st.sampled_from([(1, 6), (2, 3), (3, 2), (4, 3)])),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["one", "all"]),
)
def test_samples_of_a_step_depend_neither_on_world_size_nor_on_interruptions(
    stream: tuple[list[int], int, int, int | None],
    runs: list[tuple[int, tuple[int, int]]],
    mode: str,
) -> None:
    counts, lanes, each, window = stream
    part = lanes * each
    share = 12 * part
    slices = len(TASKS) if mode == "all" else 1
    orders = {
        task: StreamOrder(counts, task=task, seed=3, lanes=lanes, window=window) for task in TASKS
    }

    def step_of(step: int, world_size: int, parts: int) -> list[tuple[str, int, int, int]]:
        division = divide_batch(
            tasks=TASKS,
            tasks_per_step=mode,
            batch=share * slices,
            micro_batch=parts * part * slices,
            world_size=world_size,
            lanes=lanes,
        )
        visits = dict.fromkeys(TASKS, step)
        if mode == "one":
            visits = dict([task_of_step(step, TASKS, 3)])
        samples = []
        for task, visit in visits.items():
            for rank in range(world_size):
                for number in range(division.accumulation):
                    ids = orders[task].ids(visit, share, division.elements(rank, number))
                    columns = (ids.passes.tolist(), ids.shards.tolist(), ids.places.tolist())
                    samples += [(task, *sample) for sample in zip(*columns, strict=True)]
        return samples

    untouched = [step_of(step, 1, 12) for step in range(sum(steps for steps, _ in runs))]

    resumed: list[list[tuple[str, int, int, int]]] = []
    for steps, (world_size, parts) in runs:
        resumed += [step_of(len(resumed) + number, world_size, parts) for number in range(steps)]
    assert resumed == untouched


def test_lanes_are_even_and_each_reads_a_stretch_of_shards() -> None:
    counts = [10] * 12
    order = StreamOrder(counts, task="sr2", seed=0, lanes=4, window=2)

    ids = order.ids(0, 120, np.arange(120))

    shards_of_lane = [set(lane.tolist()) for lane in ids.shards.reshape(4, 30)]
    assert [len(shards) for shards in shards_of_lane] == [3, 3, 3, 3]
    assert not set.intersection(*shards_of_lane)
    # A window of two shards is finished before the third is begun.
    first_window = ids.shards.reshape(4, 30)[:, :20]
    assert all(len(set(lane.tolist())) == 2 for lane in first_window)


def test_passes_differ_and_tasks_differ() -> None:
    order = StreamOrder([50, 50], task="sr2", seed=0)
    other = StreamOrder([50, 50], task="sr3", seed=0)

    first, second = (visited(order, 100, range(number, number + 1)) for number in (0, 1))

    assert [sample[1:] for sample in first] != [sample[1:] for sample in second]
    assert first != visited(other, 100, range(1))
    assert first != visited(StreamOrder([50, 50], task="sr2", seed=1), 100, range(1))


def test_order_is_the_same_on_every_platform_and_version() -> None:
    order = StreamOrder([16, 7, 0, 30], task="denoise30", seed=5, lanes=3, window=2)

    taken = visited(order, 12, range(20)) + visited(order, 12, range(10**9, 10**9 + 5))
    schedule = [task_of_step(step, TASKS, 5) for step in range(40)]

    digest = hashlib.sha256(repr((taken, schedule)).encode()).hexdigest()
    assert digest[:16] == "fce791f08e8add7a"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    index = np.arange(size)

    moved = permute(index, np.full(size, size), np.full(size, 7, dtype=np.uint64))

    assert sorted(moved.tolist()) == index.tolist()


def test_permute_scatters_evenly() -> None:
    """Where index 0 of eight goes, over 8000 keys: chi-square with 7 degrees of freedom."""
    keys = np.arange(8000, dtype=np.uint64)

    moved = permute(np.zeros(8000, dtype=np.int64), np.full(8000, 8), keys)

    counts = np.bincount(moved, minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 24.3  # exceeded by chance once in a thousand


def test_every_block_of_steps_trains_every_task_once() -> None:
    steps = [task_of_step(step, TASKS, 0) for step in range(400)]

    for block in range(100):
        tasks, visits = zip(*steps[block * 4 : block * 4 + 4], strict=True)
        assert sorted(tasks) == sorted(TASKS)
        assert set(visits) == {block}
    orders = {tuple(task for task, _ in steps[at : at + 4]) for at in range(0, 400, 4)}
    assert len(orders) > 12  # of 24


def test_shuffled_keeps_every_number() -> None:
    assert sorted(shuffled(1000, np.uint64(9)).tolist()) == list(range(1000))


def test_a_late_step_costs_what_the_first_costs() -> None:
    order = StreamOrder([16384] * 625, task="sr2", seed=0, lanes=64, window=16)
    elements = np.arange(256)

    def fastest(visit: int) -> float:
        times = []
        for number in range(20):
            began = time.perf_counter()
            order.ids(visit + number, 256, elements)
            times.append(time.perf_counter() - began)
        return min(times)

    assert fastest(10**9) < 20 * fastest(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 7}, r"data.lanes: 7 lanes .* the 64 .* use 1, 2, 4, 8, 16, 32 or 64"),
        (
            {"world_size": 3},
            r"batch: 64 does not .* 3 processes; start 1, 2, 4, 8, 16, 32 or 64",
        ),
        ({"micro_batch": 24}, r"runtime.micro_batch: 24 .* use 1, 2, 4, 8, 16 or 32$"),
        ({"micro_batch": 64}, r"runtime.micro_batch: 64 .* over 2 processes"),
        (
            {"tasks_per_step": "all", "micro_batch": 6},
            r"runtime.micro_batch: 6 .* and 4 tasks; use 4, 8, 16 or 32$",
        ),
        ({"tasks_per_step": "all", "batch": 66}, r"batch: 66 does not divide into 4 tasks"),
    ],
)
def test_what_does_not_divide_is_an_error_that_lists_what_does(
    changes: dict[str, object], message: str
) -> None:
    numbers = {
        "tasks": TASKS,
        "tasks_per_step": "one",
        "batch": 64,
        "micro_batch": 16,
        "world_size": 2,
        "lanes": 4,
    }

    with pytest.raises(OrderError, match=message):
        divide_batch(**(numbers | changes))


def test_more_lanes_than_samples_is_an_error() -> None:
    with pytest.raises(OrderError, match=r"data.lanes: 8 lanes are more than the 5 samples of sr2"):
        StreamOrder([2, 3], task="sr2", seed=0, lanes=8)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(OrderError, match="the shards hold no samples"):
        StreamOrder([0, 0], task="sr2", seed=0)
