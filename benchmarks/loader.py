"""How fast samples reach a training, beside stock webdataset and a naive reader of the same shards.

    python -m benchmarks.loader --source FOLDER [--out loader.md] [--batches 100000]

Rates are of CPU seconds of one process, the best of --repeats; latencies are by the clock. Exit
code 1 where a floor is missed.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pages import write_page
from pipeline.data.worker_processes import THREAD_VARIABLES

if __name__ == "__main__":  # numerical libraries read this when they are imported
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))

import numpy as np
import torch

from benchmarks.corrupt_samples import MEBIBYTE, list_source
from benchmarks.loader_samples import (
    BATCH,
    batches,
    grow_records,
    make_streams,
    naive_batches,
    own_memory,
    rate,
    stock_batches,
)
from benchmarks.measuring import circumstances, processor, table
from pipeline.config import DataConfig
from pipeline.data.order import StreamOrder
from pipeline.data.streams import Stream

LEAST_TIMES_STOCK = {"npy": 10.0, "png": 1.0}
LEAST_RATE = 5000.0  # training samples of the six-task mix in npy, whole path
MOST_INDEX = 100 * 10**6  # bytes, of 10**8 npy samples
MOST_FIRST_BATCH = 2.0  # seconds, imports apart, of 10**7 samples
MOST_GROWTH = 24 * MEBIBYTE  # of the training process and its worker, over --batches batches
GPU_RATE, GPUS = 2000, 8  # samples per second and GPU, of one node
LATE = 10**9


class Options(argparse.Namespace):
    source: Path
    repeats: int
    batches: int
    out: Path | None


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("data/imagenet/train"))
    parser.add_argument("--repeats", type=int, default=5, help="of each timing (default: 5)")
    parser.add_argument("--batches", type=int, default=100_000, help="over which memory is watched")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    return parser.parse_args(namespace=Options())


def main() -> int:
    options = parse()
    if not options.source.is_dir():
        print(f"loader: {options.source}: no such folder; --source FOLDER names photographs")
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ipt-loader-") as name:
        folder = Path(name)
        source = list_source(options.source, folder)
        streams = {
            image_format: make_streams(source, folder, image_format)
            for image_format in ("npy", "png")
        }
        missed: list[str] = []
        parts = [
            f"# Loading\n\n{circumstances(processor())}",
            beside_others(streams, options.repeats, missed),
            whole_path(streams, options.repeats, missed),
            order_and_index(folder, streams["npy"]["derain"], missed),
            first_batches(folder, streams["npy"]["derain"], missed),
            memory(streams["npy"], options.batches, missed),
        ]
    page = "\n".join([*parts, *(f"Missed: {each}\n" for each in missed)])
    write_page(page, options.out)
    return 1 if missed else 0


def beside_others(
    streams: Mapping[str, Mapping[str, Stream]], repeats: int, missed: list[str]
) -> str:
    """Pairs of 48×48 pixels, every reader on the same tars."""
    rows = []
    for image_format, of_format in streams.items():
        pairs = of_format["derain"]
        stock = rate(lambda: stock_batches(pairs), repeats=repeats)  # noqa: B023 - called here
        naive = rate(lambda: naive_batches(pairs), repeats=repeats)  # noqa: B023
        ours = rate(lambda: iter(batches({"derain": pairs})), repeats=repeats)  # noqa: B023
        times = ours / stock
        rows.append([image_format, *(f"{each:.0f}" for each in (stock, naive, ours, times))])
        rows[-1][-1] = f"{times:.1f}"
        if times < LEAST_TIMES_STOCK[image_format]:
            missed.append(f"{image_format}: {times:.1f} times stock webdataset")
    header = ["format", "stock webdataset", "naive random access", "ours", "ours / stock"]
    return (
        "Pairs of 48×48 pixels (derain) per CPU second, from the page cache. Stock streams the "
        "tars in order and batches arrays; naive looks members up with tarfile and decodes each; "
        "ours reads at random, in exact order, to tensors (N, C, H, W).\n\n" + table(header, rows)
    )


def whole_path(streams: Mapping[str, Mapping[str, Stream]], repeats: int, missed: list[str]) -> str:
    """All six tasks, noise and flips included; and what a node needs by these figures."""
    config = DataConfig(flips_and_rotations=True)
    rates = {
        image_format: rate(lambda: iter(batches(each, config=config)), repeats=repeats)  # noqa: B023
        for image_format, each in streams.items()
    }
    if rates["npy"] < LEAST_RATE:
        missed.append(f"six tasks in npy: {rates['npy']:.0f} samples/s/core")
    reading = rate(lambda: _packed(streams["npy"], config), repeats=repeats)
    row_bytes = np.mean([stream.reader.row_bytes for stream in streams["npy"].values()])
    needed = GPU_RATE * GPUS
    return (
        f"The whole path (order, reading, flips, noise, to tensors) over the six tasks in equal "
        f"parts: {rates['npy']:.0f} samples/s/core in npy, {rates['png']:.0f} in png. Without "
        f"noise, which a GPU draws, a worker packs {reading:.0f} in npy.\n\n"
        f"A node of {GPUS} GPUs at {GPU_RATE} samples/s each needs {needed / reading:.1f} cores "
        f"for its workers and {needed * row_bytes / 1e6:.0f} MB/s from the page cache or its "
        f"disks, in npy; with png {needed / rates['png']:.0f} cores.\n"
    )


def _packed(streams: Mapping[str, Stream], config: DataConfig) -> Iterator[object]:
    samples = batches(streams, config=config).samples
    for number in itertools.count():
        yield samples.__getitems__(range(number * BATCH, (number + 1) * BATCH))


def order_and_index(folder: Path, stream: Stream, missed: list[str]) -> str:
    elements = np.arange(256)
    order = StreamOrder([16_384] * 6104, task="sr2", seed=0, lanes=64, window=16)  # 10**8 samples
    took = {}
    for step in (0, LATE):
        order.ids(step, 256, elements)
        took[step] = min(_seconds(lambda: order.ids(step, 256, elements)) for _ in range(50))  # noqa: B023
    tracemalloc.start()
    grown = grow_records(stream, folder / "grown", 10**8)
    streams_order = StreamOrder(grown.reader.counts, task="sr2", seed=0, lanes=64, window=16)
    streams_order.ids(0, 256, elements)
    index = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    if index > MOST_INDEX:
        missed.append(f"the index of 10**8 samples takes {index / 1e6:.0f} MB")
    return (
        f"The order of a batch of 256 (64 lanes, 10⁸ samples): {took[0] * 1e6:.0f} µs at step 0, "
        f"{took[LATE] * 1e6:.0f} µs at step 10⁹. An index of {grown.samples:,} samples in "
        f"{len(grown.reader.records)} shards of npy, with what the order remembers: "
        f"{index / 1e6:.0f} MB.\n"
    )


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def first_batches(folder: Path, stream: Stream, missed: list[str]) -> str:
    """From the call to the first batch in the middle of 10**7 samples."""
    began = time.perf_counter()
    next(iter(batches({"derain": stream}, workers=2)))
    cold = time.perf_counter() - began  # with the import of torch by the server of workers
    grown = grow_records(stream, folder / "ten-million", 10**7)

    def first() -> None:
        reader = type(grown.reader)(grown.reader.folder, grown.reader.records, grown.reader.files)
        again = replace(grown, reader=reader)
        next(iter(batches({"derain": again}, start_step=123_456, workers=2)))

    warm = min(_seconds(first) for _ in range(3))
    if warm > MOST_FIRST_BATCH:
        missed.append(f"the first batch of 10**7 samples took {warm:.1f} s")
    many = rate(lambda: iter(batches({"derain": grown})), repeats=5)
    return (
        f"From {len(grown.reader.records)} shards at once: {many:.0f} pairs per CPU second.\n\n"
        f"Start of two workers to the first batch: {cold:.2f} s, the import of torch included; "
        f"{warm:.2f} s without it, at step 123,456 of a stream of {grown.samples:,} samples.\n"
    )


def memory(streams: Mapping[str, Stream], count: int, missed: list[str]) -> str:
    """The training process and one worker, after a tenth of the batches and after all."""
    iterator = iter(batches(streams, batch=12, workers=1))
    seen = []
    for number in range(count):
        next(iterator)
        if number + 1 in (count // 10, count):
            workers = [each.pid for each in multiprocessing.active_children() if each.pid]
            seen.append(own_memory([os.getpid(), *workers]))
    growth = seen[1] - seen[0]
    if growth > MOST_GROWTH:
        missed.append(f"memory grew by {growth / MEBIBYTE:.0f} MiB over {count} batches")
    return (
        f"Memory of the training process and a worker, not of any file: {seen[0] / MEBIBYTE:.0f} "
        f"MiB after {count // 10:,} batches of 12, {seen[1] / MEBIBYTE:.0f} after {count:,}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
