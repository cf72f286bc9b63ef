"""Which shards a process reads when, so that those that are elsewhere are here by then."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from itertools import islice

from pipeline.data.order import OrderError, Stretch
from pipeline.data.prefetch import Need, Prefetcher
from pipeline.data.samples import Samples
from pipeline.data.shard_files import GIBIBYTE, RemoteFiles

PASSES = 4  # looked at for a shard that is elsewhere
STRETCHES = 4  # of a lane, looked at to see how much it reads at a time


@contextmanager
def fetching_ahead(samples: Samples, step: int) -> Iterator[Callable[[int], None]]:
    """Within, shards that are elsewhere are fetched before they are read; the function is told
    every step that the training reaches.

    Raises OrderError where the cache can't hold what is read at a time.
    """
    elsewhere = shards_elsewhere(samples)
    if not elsewhere:
        yield lambda reached: None
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that share the cache
    cache = _files(samples, next(iter(elsewhere))).cache
    needed = processes * _bytes_at_a_time(samples, elsewhere, step)
    if needed > cache.limit:
        raise OrderError(
            f"runtime.shard_cache_gib: {cache.limit / GIBIBYTE:.3g} GiB are less than the "
            f"{needed / GIBIBYTE:.3g} GiB of shards that the {processes} processes of a machine "
            "read at a time; allow more, or have less read at a time by a smaller data.window, "
            "such as 2, and more data.lanes"
        )
    prefetcher = Prefetcher(cache, needs(samples, elsewhere, step), budget=cache.limit // processes)
    try:
        yield prefetcher.advance
    finally:
        prefetcher.close()


def shards_elsewhere(samples: Samples) -> dict[str, frozenset[int]]:
    """By task, the numbers of the shards that must be fetched; tasks without any are left out."""
    elsewhere = {}
    for name, stream in samples.streams.items():
        records = enumerate(stream.reader.records)
        missing = [number for number, each in records if not stream.reader.files.is_local(each)]
        if missing:
            elsewhere[name] = frozenset(missing)
    return elsewhere


def _files(samples: Samples, name: str) -> RemoteFiles:
    files = samples.streams[name].reader.files
    assert isinstance(files, RemoteFiles), "others have all of their shards"
    return files


def _stretches(samples: Samples, name: str, lane: int, step: int) -> Iterator[Stretch]:
    """Of a task's lane, from the step on."""
    visit = step if samples.tasks_per_step == "all" else step // len(samples.streams)
    each = samples.division.share // samples.orders[name].lanes
    return samples.orders[name].stretches(lane, visit * each)


def _bytes_at_a_time(samples: Samples, elsewhere: Mapping[str, frozenset[int]], step: int) -> int:
    def largest(name: str, lane: int) -> int:
        records = samples.streams[name].reader.records
        stretches = islice(_stretches(samples, name, lane, step), STRETCHES)
        return max(
            sum(records[shard].bytes for shard in elsewhere[name].intersection(each.shards))
            for each in stretches
        )

    return sum(largest(name, lane) for name in elsewhere for lane in samples.lanes())


def needs(samples: Samples, elsewhere: Mapping[str, frozenset[int]], step: int) -> Iterator[Need]:
    """The shards that are elsewhere, in the order in which the process begins to read them."""
    of_lanes = [
        _needs(samples, name, numbers, lane, step)
        for name, numbers in elsewhere.items()
        for lane in samples.lanes()
    ]
    return merge(*of_lanes, key=lambda need: need.first_step)


def _needs(
    samples: Samples, name: str, elsewhere: frozenset[int], lane: int, step: int
) -> Iterator[Need]:
    records, files = samples.streams[name].reader.records, _files(samples, name)
    passed = 0  # stretches in a row without any of them
    each = samples.division.share // samples.orders[name].lanes  # draws of a visit
    steps = 1 if samples.tasks_per_step == "all" else len(samples.streams)  # that hold a visit
    for stretch in _stretches(samples, name, lane, step):
        here = [shard for shard in stretch.shards.tolist() if shard in elsewhere]
        passed = 0 if here else passed + 1
        if passed > PASSES * len(records):
            return  # few are elsewhere, and hardly ever read by this lane: its reader fetches them
        for shard in here:
            yield Need(
                first_step=stretch.first // each * steps,
                last_step=(stretch.end - 1) // each * steps + steps - 1,
                url=files.url(records[shard]),
                record=records[shard],
            )
