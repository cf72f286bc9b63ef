"""What the benchmark of loading reads: shards of every task, an index as large as anybody's; and
the readers that ours is compared with."""

import itertools
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from benchmarks.corrupt_samples import VALIDATION_IMAGES, Listed, shard_settings
from pipeline.config import DataConfig
from pipeline.data.loader import TrainingBatches, training_batches
from pipeline.data.shard_making import make_shard, plan_shards
from pipeline.data.shards import shard_name
from pipeline.data.streams import Stream, open_stream
from pipeline.tasks import PUBLISHED_ORDER, TASKS

CROPS = 8
SAMPLES_PER_SHARD = 512
BATCH = 240  # divides by the six tasks and by their eight lanes


def make_streams(source: Listed, folder: Path, image_format: str) -> dict[str, Stream]:
    """The training shards of the six tasks, made by what makes them in a run."""
    streams = {}
    for name in PUBLISHED_ORDER:
        artifact = folder / f"{name}-{image_format}"
        artifact.mkdir()
        settings = replace(
            shard_settings(
                source, artifact / "shards", task=name, image_format=image_format, crops=CROPS
            ),
            samples_per_shard=SAMPLES_PER_SHARD,
        )
        for unit in plan_shards(len(source.index), VALIDATION_IMAGES, settings):
            make_shard(settings, unit, after_image=lambda: None)
        streams[name] = open_stream(artifact, TASKS[name], split="train")
    return streams


def grow_records(stream: Stream, folder: Path, samples: int) -> Stream:
    """A stream of at least `samples` samples in shards of 16,384, each a link to the same tar of
    that many; the tar is made by repeating what `stream` has."""
    record = stream.reader.records[0]
    assert record.stride is not None
    each = 16_384
    shards = folder / "shards"
    shards.mkdir(parents=True)
    content = (stream.reader.folder / record.file).read_bytes()[: record.samples * record.stride]
    tar = folder / "repeated.tar"
    with tar.open("wb") as file:
        for _ in range(each // record.samples):
            file.write(content)
        file.write(content[: each % record.samples * record.stride])
    for number in range(-(-samples // each)):
        name = shard_name("train", number)
        (shards / f"{name}.tar").symlink_to(tar)
        grown = record.__dict__ | {
            "file": f"{name}.tar",
            "samples": each,
            "bytes": tar.stat().st_size,
        }
        (shards / f"{name}.json").write_text(json.dumps(grown))
    return open_stream(folder, stream.task, split="train")


def batches(
    streams: Mapping[str, Stream],
    *,
    batch: int = BATCH,
    config: DataConfig | None = None,
    start_step: int = 0,
    workers: int = 0,
) -> TrainingBatches:
    """All tasks in every step, endlessly, as one process gets them."""
    return training_batches(
        streams,
        config=config or DataConfig(),
        tasks_per_step="all",
        batch=batch,
        micro_batch=batch,
        seed=0,
        start_step=start_step,
        steps=2**40,
        rank=0,
        world_size=1,
        workers=workers,
        device=torch.device("cpu"),
    )


def stock_batches(stream: Stream) -> Iterator[list[np.ndarray]]:
    """Pairs as webdataset streams them, in the order in which they lie in the tars."""
    tars = [str(stream.reader.folder / record.file) for record in stream.reader.records]
    image_format = stream.reader.records[0].format
    names = (f"clean.{image_format}", f"corrupted.{image_format}")
    while True:
        dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
        yield from dataset.to_tuple(*names).batched(BATCH)


def naive_batches(stream: Stream) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs at random, through tarfile's own index."""
    image_format = stream.reader.records[0].format
    tars = [
        tarfile.open(stream.reader.folder / each.file)  # noqa: SIM115 - open as long as it is read
        for each in stream.reader.records
    ]
    members = [
        (tar, clean, tar.getmember(clean.name.replace(".clean.", ".corrupted.")))
        for tar in tars
        for clean in tar.getmembers()
        if f".clean.{image_format}" in clean.name
    ]
    rng = np.random.default_rng(0)

    def image(tar: tarfile.TarFile, member: tarfile.TarInfo) -> np.ndarray:
        file = tar.extractfile(member)
        assert file is not None
        content = BytesIO(file.read())
        return np.load(content) if image_format == "npy" else np.asarray(Image.open(content))

    while True:
        chosen = [members[number] for number in rng.integers(0, len(members), BATCH)]
        clean = np.stack([image(tar, one) for tar, one, _ in chosen])
        corrupted = np.stack([image(tar, other) for tar, _, other in chosen])
        yield corrupted, clean


def rate(make: Callable[[], Iterator[object]], *, repeats: int, rounds: int = 8) -> float:
    """Samples per CPU second of `rounds` batches of BATCH, the best of `repeats`."""
    iterator = make()
    for _ in itertools.islice(iterator, 4):  # into the page cache
        continue
    took = []
    for _ in range(repeats):
        began = time.process_time()
        for _ in itertools.islice(iterator, rounds):
            continue
        took.append(time.process_time() - began)
    return rounds * BATCH / min(took)


def own_memory(pids: Sequence[int]) -> int:
    """Bytes of these processes together that are of no file."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Anonymous":
                total += int(value.split()[0]) * 1024
    return total
