"""Processes that share a cache: nobody fetches twice, nobody exceeds the limit, and one that is
killed takes nothing with it."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from cache_samples import (
    BYTES,
    content_of,
    eventually,
    impatient,
    kept,
    names_of,
    read,
    record_of,
    write_shards,
)
from source_samples import web_server

from pipeline.data.file_locks import hold
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import ShardRecord

PROCESSES = 3
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(PROCESSES, mp_context=SPAWN) as pool:
        yield pool


def read_all(cache: ShardCache, urls: list[str], records: list[ShardRecord]) -> list[bytes]:
    return [read(cache, url, record) for url, record in zip(urls, records, strict=True)]


def read_at_random(
    cache: ShardCache, folder: Path, records: list[ShardRecord], seed: int, seconds: float
) -> int:
    """How many shards were read, all of them right."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    done = 0
    while time.monotonic() < until:
        number = rng.randrange(len(records))
        assert read(cache, folder / records[number].file, records[number]) == content_of(number)
        done += 1
    return done


def size_of(folder: Path) -> int:
    """Bytes in the cache at one moment: under its lock nothing appears or grows."""
    lock = hold(folder / ".lock", wait=True)
    assert lock is not None
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    os.close(lock)
    return size


def test_shards_that_all_want_are_fetched_once(tmp_path: Path, pool: ProcessPoolExecutor) -> None:
    files = {f"/{number}.tar": content_of(number) for number in range(5)}
    records = [record_of(content) for content in files.values()]
    cache = impatient(tmp_path, shards=5)

    with web_server(files) as (address, asked):
        urls = [address + path for path in files]
        runs = [pool.submit(read_all, cache, urls, records) for _ in range(PROCESSES)]
        results = [run.result() for run in runs]

    assert results == PROCESSES * [list(files.values())]
    assert sorted(asked) == sorted(files)
    assert kept(tmp_path) == names_of(*records)


def test_together_they_never_exceed_the_limit(tmp_path: Path, pool: ProcessPoolExecutor) -> None:
    records = write_shards(tmp_path / "copy", 12)
    cache = impatient(tmp_path / "cache", shards=4)
    cache.folder.mkdir()

    runs = [
        pool.submit(read_at_random, cache, tmp_path / "copy", records, seed, 2.0)
        for seed in range(PROCESSES)
    ]
    largest = 0
    while not all(run.done() for run in runs):
        largest = max(largest, size_of(cache.folder))
        time.sleep(0.0005)

    assert min(run.result() for run in runs) > 0
    assert largest == cache.limit
    assert all(name == ".lock" or name.endswith(".tar") for name in kept(cache.folder))


def fetching(cache: ShardCache, pipe: Path) -> BaseProcess:
    """A process that has begun to fetch shard 0, and waits in the middle of it for `pipe`."""
    process = SPAWN.Process(target=read, args=(cache, pipe, record_of(content_of(0))), daemon=True)
    process.start()
    return process


def test_another_goes_on_when_the_fetcher_is_killed(
    tmp_path: Path, pool: ProcessPoolExecutor
) -> None:
    record = record_of(content_of(0))
    temporary = tmp_path / "cache" / f"{record.sha256}.part"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cache = impatient(tmp_path / "cache")
    fetcher = fetching(cache, pipe)
    with pipe.open("wb", buffering=0) as sender:
        sender.write(content_of(0)[:5000])
        assert eventually(lambda: temporary.exists() and temporary.read_bytes()[4999:5000] != b"\0")
        waiting = pool.submit(read, cache, str(pipe), record)
        time.sleep(0.2)

        assert not waiting.done()
        pipe.unlink()
        pipe.write_bytes(content_of(0))
        fetcher.kill()
        fetcher.join()

    assert fetcher.exitcode == -signal.SIGKILL
    assert waiting.result() == content_of(0)
    assert kept(cache.folder) == names_of(record)


def test_what_a_killed_fetcher_left_is_deleted_by_others(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1, size=BYTES - 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cache = impatient(tmp_path / "cache", shards=1)
    fetcher = fetching(cache, pipe)
    with pipe.open("wb"):
        eventually(lambda: size_of(cache.folder) == BYTES)
        fetcher.kill()
        fetcher.join()
    left = kept(cache.folder)

    content = read(cache, tmp_path / "copy" / record.file, record)

    assert left == {".lock", f"{record_of(content_of(0)).sha256}.part"}
    assert content == content_of(0, BYTES - 1)
    assert kept(cache.folder) == names_of(record)


@pytest.mark.slow
def test_no_wrong_byte_whatever_happens_to_the_folder(tmp_path: Path) -> None:
    records = write_shards(tmp_path / "copy", 12)
    cache = impatient(tmp_path / "cache", shards=5)
    rng = random.Random(0)

    def started(seed: int) -> BaseProcess:
        arguments = (cache, tmp_path / "copy", records, seed, 1000.0)
        process = SPAWN.Process(target=read_at_random, args=arguments, daemon=True)
        process.start()
        return process

    readers = [started(seed) for seed in range(PROCESSES)]
    try:
        for turn in range(60):
            time.sleep(rng.uniform(0.05, 0.4))
            assert all(reader.is_alive() for reader in readers), "one read a wrong byte, or failed"
            damaged = tmp_path / "damaged"
            damaged.write_bytes(bytes(rng.choice([BYTES, BYTES - 1])))
            if turn % 3 == 0:
                reader = readers.pop(0)
                reader.kill()
                reader.join()
                readers.append(started(PROCESSES + turn))
            elif turn % 3 == 1:
                cache.folder.mkdir(exist_ok=True)
                damaged.rename(cache.folder / f"{rng.choice(records).sha256}.tar")
            else:
                shutil.rmtree(cache.folder, ignore_errors=True)
    finally:
        for reader in readers:
            reader.kill()
            reader.join()

    lock = hold(cache.folder / ".lock", wait=False)
    assert lock is not None
    os.close(lock)
