"""What is fetched ahead of a training, in which order, how much; and that it isn't in the way."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cache_samples import (
    BYTES,
    content_of,
    dripping,
    eventually,
    impatient,
    kept,
    names_of,
    read,
    record_of,
    write_shards,
)
from source_samples import web_server

from pipeline.data.prefetch import CLOSE_SECONDS, Need, Prefetcher
from pipeline.data.shard_cache import ShardCache

IDLE_SECONDS = 0.2  # after which a thread that had something to do would have begun
FILES = {f"/{number}.tar": content_of(number) for number in range(6)}
RECORDS = [record_of(content, number) for number, content in enumerate(FILES.values())]


def need_of(url: str | Path, number: int, *, steps: int = 10) -> Need:
    """Shard `number`, read for `steps` steps, one shard after the other."""
    return Need(
        first_step=number * steps,
        last_step=(number + 1) * steps - 1,
        url=str(url),
        record=RECORDS[number % len(RECORDS)],
    )


@contextmanager
def prefetching(
    cache: ShardCache, needs: Iterator[Need], *, shards: int = 2, **settings: float
) -> Iterator[Prefetcher]:
    prefetcher = Prefetcher(cache, needs, budget=shards * BYTES, **settings)
    try:
        yield prefetcher
    finally:
        prefetcher.close()


def test_what_comes_next_is_fetched_as_room_appears(tmp_path: Path) -> None:
    cache = impatient(tmp_path, shards=3)
    with (
        web_server(FILES) as (address, asked),
        prefetching(
            cache, (need_of(address + path, number) for number, path in enumerate(FILES))
        ) as prefetcher,
    ):
        seen = []
        for step in (0, 9, 10, 19, 20, 40, 60):
            prefetcher.advance(step)
            expected = min(step // 10 + 2, len(FILES))
            assert eventually(lambda expected=expected: len(asked) >= expected)
            time.sleep(IDLE_SECONDS / 4)
            seen.append(len(asked))
        assert eventually(lambda: kept(tmp_path) == names_of(*RECORDS[3:]))

    assert seen == [2, 2, 3, 3, 4, 6, 6]
    assert sorted(asked) == sorted(FILES)
    assert asked[2:4] == ["/2.tar", "/3.tar"]


def test_one_thread_fetches_strictly_in_order(tmp_path: Path) -> None:
    order = [3, 1, 4, 0, 5, 2]
    with web_server(FILES) as (address, asked):
        needs = [need_of(f"{address}/{number}.tar", number) for number in order]
        with prefetching(impatient(tmp_path, shards=6), iter(needs), shards=6, threads=1):
            assert eventually(lambda: len(asked) == 6)

    assert asked == [f"/{number}.tar" for number in order]


def test_needs_without_an_end_are_taken_as_the_training_advances(tmp_path: Path) -> None:
    records = write_shards(tmp_path / "copy", 6)
    taken = []

    def needs() -> Iterator[Need]:
        for number in itertools.count():
            taken.append(number)
            yield need_of(tmp_path / "copy" / records[number % 6].file, number)

    with prefetching(impatient(tmp_path / "cache", shards=6), needs(), shards=20) as prefetcher:
        for step in (0, 10, 200):
            prefetcher.advance(step)
            # All that the budget allows, and one that waits for room.
            assert eventually(lambda step=step: len(taken) == step // 10 + 21)
            time.sleep(IDLE_SECONDS)
            assert len(taken) == step // 10 + 21


def test_what_the_training_has_passed_is_not_fetched(tmp_path: Path) -> None:
    with web_server(FILES) as (address, asked):
        may_go_on = threading.Event()

        def needs() -> Iterator[Need]:
            may_go_on.wait()
            for number in range(6):
                yield need_of(f"{address}/{number}.tar", number)

        with prefetching(impatient(tmp_path), needs(), shards=6) as prefetcher:
            prefetcher.advance(40)
            may_go_on.set()
            assert eventually(lambda: len(asked) == 2)

    assert sorted(asked) == ["/4.tar", "/5.tar"]


def test_a_budget_below_one_shard_still_fetches_one_ahead(tmp_path: Path) -> None:
    with web_server(FILES) as (address, asked):
        needs = [need_of(f"{address}/{number}.tar", number) for number in range(6)]
        with prefetching(impatient(tmp_path), iter(needs), shards=0) as prefetcher:
            assert eventually(lambda: len(asked) == 1)
            time.sleep(IDLE_SECONDS)
            assert len(asked) == 1
            prefetcher.advance(10)
            assert eventually(lambda: len(asked) == 2)


def test_what_is_here_is_only_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(tmp_path / "copy", 2)
    cache = impatient(tmp_path / "cache")
    for record in RECORDS[:2]:
        read(cache, tmp_path / "copy" / record.file, record)
    first = cache.folder / f"{RECORDS[0].sha256}.tar"
    os.utime(first, ns=(0, 0))

    with prefetching(cache, iter([need_of("/nowhere/0.tar", 0), need_of("/nowhere/1.tar", 1)])):
        assert eventually(lambda: first.stat().st_mtime_ns > 0)

    assert not caplog.messages


def test_what_is_held_is_used_from_time_to_time(tmp_path: Path) -> None:
    write_shards(tmp_path / "copy", 1)
    cache = impatient(tmp_path / "cache")
    path = cache.folder / f"{RECORDS[0].sha256}.tar"
    needs = iter([need_of(tmp_path / "copy" / RECORDS[0].file, 0)])

    with prefetching(cache, needs, touch_seconds=0.01) as prefetcher:
        assert eventually(path.exists)
        os.utime(path, ns=(0, 0))
        assert eventually(lambda: path.stat().st_mtime_ns > 0)
        prefetcher.advance(10)
        time.sleep(IDLE_SECONDS)
        os.utime(path, ns=(0, 0))
        time.sleep(IDLE_SECONDS)

    assert path.stat().st_mtime_ns == 0  # not needed any more


def test_a_failure_is_logged_once_and_left_to_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path / "copy", 2)
    needs = [need_of("/nowhere/0.tar", 0), need_of(tmp_path / "copy" / RECORDS[1].file, 1)]
    cache = impatient(tmp_path / "cache")

    with prefetching(cache, iter(needs)) as prefetcher:
        assert eventually(lambda: cache.touch(RECORDS[1]))
        assert eventually(lambda: bool(caplog.messages))
        prefetcher.advance(5)
        time.sleep(IDLE_SECONDS)

    (message,) = caplog.messages
    assert message.startswith("not fetched ahead: /nowhere/0.tar: can't be opened (No such file")
    assert read(cache, tmp_path / "copy" / RECORDS[0].file, RECORDS[0]) == content_of(0)


def test_close_ends_a_download_and_leaves_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    drip = dripping(tmp_path / "pipe", stop)
    cache = impatient(tmp_path / "cache")
    prefetcher = Prefetcher(cache, iter([need_of(tmp_path / "pipe", 0)]), budget=BYTES)
    assert eventually(lambda: list(cache.folder.glob("*.part")) != [])

    began = time.monotonic()
    prefetcher.close()
    seconds = time.monotonic() - began
    prefetcher.close()
    prefetcher.advance(1)
    stop.set()
    drip.join()

    assert seconds < CLOSE_SECONDS
    assert kept(cache.folder) == {".lock"}


def test_close_ends_a_wait_between_two_attempts(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=BYTES, backoff_seconds=1000.0)
    prefetcher = Prefetcher(cache, iter([need_of("http://127.0.0.1:9/x", 0)]), budget=BYTES)
    assert eventually(lambda: list(tmp_path.glob("*.part")) != [])
    time.sleep(IDLE_SECONDS)

    began = time.monotonic()
    prefetcher.close()

    assert time.monotonic() - began < CLOSE_SECONDS
    assert kept(tmp_path) == {".lock"}


LEFT_OPEN = """
import sys, time
from pathlib import Path
from cache_samples import eventually, impatient, record_of
from pipeline.data.prefetch import Need, Prefetcher

pipe, folder = map(Path, sys.argv[1:])
need = Need(first_step=0, last_step=9, url=str(pipe), record=record_of(b"never"))
Prefetcher(impatient(folder), iter([need]), budget=1)
assert eventually(lambda: list(folder.glob("*.part")) != [])
print("ends")
"""


def test_an_interpreter_ends_in_the_middle_of_a_download(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody ever writes into it

    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, str(tmp_path / "pipe"), str(tmp_path / "cache")],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", "tests"])},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
