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

STRETCHES = 4  # of a lane, looked at to see how much it reads at a time


@contextmanager
def fetching_ahead(samples: Samples, step: int) -> Iterator[Callable[[int], None]]:
    """Within, shards that are elsewhere are fetched before they are read; the function is told
    every step that the training reaches.

    Raises OrderError where the cache can't hold what is read at a time.
    """
    remote = _remote(samples)
    if not remote:
        yield lambda reached: None
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that share the cache
    cache = next(iter(remote.values())).cache
    needed = processes * _bytes_at_a_time(samples, remote, step)
    if needed > cache.limit:
        raise OrderError(
            f"runtime.shard_cache_gib: {cache.limit / GIBIBYTE:.3g} GiB are less than the "
            f"{needed / GIBIBYTE:.3g} GiB of shards that the {processes} processes of a machine "
            "read at a time; allow more, or have less read at a time by a smaller data.window, "
            "such as 16, and more data.lanes"
        )
    prefetcher = Prefetcher(cache, needs(samples, step), budget=cache.limit // processes)
    try:
        yield prefetcher.advance
    finally:
        prefetcher.close()


def _remote(samples: Samples) -> Mapping[str, RemoteFiles]:
    files = {name: stream.reader.files for name, stream in samples.streams.items()}
    return {name: each for name, each in files.items() if isinstance(each, RemoteFiles)}


def _stretches(samples: Samples, name: str, lane: int, step: int) -> Iterator[Stretch]:
    """Of a task's lane, from the step on."""
    visit = step if samples.tasks_per_step == "all" else step // len(samples.streams)
    each = samples.division.share // samples.orders[name].lanes
    return samples.orders[name].stretches(lane, visit * each)


def _bytes_at_a_time(samples: Samples, remote: Mapping[str, RemoteFiles], step: int) -> int:
    def largest(name: str, lane: int) -> int:
        records = samples.streams[name].reader.records
        elsewhere = [0 if remote[name].is_local(each) else each.bytes for each in records]
        stretches = islice(_stretches(samples, name, lane, step), STRETCHES)
        return max(sum(elsewhere[shard] for shard in each.shards) for each in stretches)

    return sum(largest(name, lane) for name in remote for lane in samples.lanes())


def needs(samples: Samples, step: int) -> Iterator[Need]:
    """The shards that are elsewhere, in the order in which the process begins to read them."""
    of_lanes = [
        _needs(samples, name, lane, step) for name in _remote(samples) for lane in samples.lanes()
    ]
    return merge(*of_lanes, key=lambda need: need.first_step)


def _needs(samples: Samples, name: str, lane: int, step: int) -> Iterator[Need]:
    stream = samples.streams[name]
    files = stream.reader.files
    assert isinstance(files, RemoteFiles)
    each = samples.division.share // samples.orders[name].lanes  # draws of a visit
    steps = 1 if samples.tasks_per_step == "all" else len(samples.streams)  # that hold a visit
    for stretch in _stretches(samples, name, lane, step):
        for shard in stretch.shards.tolist():
            record = stream.reader.records[shard]
            if not files.is_local(record):
                yield Need(
                    first_step=stretch.first // each * steps,
                    last_step=(stretch.end - 1) // each * steps + steps - 1,
                    url=files.url(record),
                    record=record,
                )
