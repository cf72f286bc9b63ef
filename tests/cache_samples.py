"""Shards to be fetched: a few bytes each, described by records as the real ones are."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import ShardRecord

BYTES = 100_000


def content_of(number: int, size: int = BYTES) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(size)


def record_of(content: bytes, number: int = 0) -> ShardRecord:
    return ShardRecord(
        file=f"train-{number:05d}.tar",
        format="npy",
        samples=1,
        images={"clean": [8, 8, 3]},
        first=0,
        stride=len(content),
        offsets=None,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=0.0,
    )


def write_shards(folder: Path, count: int, *, size: int = BYTES) -> list[ShardRecord]:
    """Shards as somebody has copied them to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [record_of(content_of(number, size), number) for number in range(count)]
    for number, record in enumerate(records):
        (folder / record.file).write_bytes(content_of(number, size))
    return records


def impatient(folder: Path, *, shards: int = 3, size: int = BYTES) -> ShardCache:
    """A cache with room for some shards, which doesn't wait long for a server."""
    return ShardCache(folder, limit=shards * size, backoff_seconds=0.001)


def read(cache: ShardCache, url: str | Path, record: ShardRecord) -> bytes:
    """The shard's bytes, through the cache."""
    descriptor = cache.open(str(url), record)
    with open(descriptor, "rb") as file:
        return file.read()


def kept(folder: Path) -> set[str]:
    """The names in the cache's folder."""
    return {path.name for path in folder.iterdir()}


def names_of(*records: ShardRecord) -> set[str]:
    """What a cache's folder has that holds these shards and nothing else."""
    return {".lock", *(f"{record.sha256}.tar" for record in records)}


def eventually(condition: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    """Whether it holds before long."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def dripping(path: Path, stop: threading.Event) -> threading.Thread:
    """A named pipe at `path` that gives some bytes and never ends, until `stop`."""
    os.mkfifo(path)

    def drip() -> None:
        with path.open("wb", buffering=0) as pipe:
            while not stop.wait(0.01):
                try:
                    pipe.write(b"x")
                except BrokenPipeError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    return thread
