"""How fast photographs become shards, what bounds it, and how much memory and disk it takes.

    python -m benchmarks.corrupt --source FOLDER [--tasks sr2,derain] [--out corrupt.md]

Rates are of CPU seconds, so that they hold for one free core; scaling is of wall-clock time.
Every timing is the best of --repeats, of twice as many where a floor was missed at first. Exit
code 1 where one is missed.
"""

import argparse
import cProfile
import multiprocessing
import os
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pages import write_page
from pipeline.data.worker_processes import THREAD_VARIABLES, single_threaded_children

if __name__ == "__main__":  # numerical libraries read this when they are imported
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))

from benchmarks.corrupt_samples import (
    CROPS,
    MEBIBYTE,
    POOL_CROPS,
    VALIDATION_IMAGES,
    Listed,
    Measured,
    PoolRate,
    decode_all,
    grow_index,
    list_source,
    loop_scaling,
    measure_decoding,
    pool_rate,
    shard_settings,
    worker_peak,
    write_rates,
)
from pipeline.cost import IMAGENET_PHOTOGRAPHS
from pipeline.data.shard_making import ShardSettings, ShardUnit, make_shard, plan_shards
from pipeline.tasks import TASKS

FORMATS = ("npy", "png")
# Patches per second and core, with 8 crops from a photograph.
FLOORS = {1: 1500.0, 4: 400.0}  # by scale
LEAST_OF_DECODING = 0.5  # of what decoding alone would allow, for tasks of scale 1
LEAST_SCALING = 1.8  # from one process to two
FREE = 1.9  # how much faster two processes are that share nothing, where nothing else runs
MOST_MEMORY = 400 * MEBIBYTE
MOST_GROWTH = 32 * MEBIBYTE  # of a worker's own memory, from this source to ImageNet's size
STEPS = {"decoding": "photograph", "corrupting": "corrupt_crop", "writing": "add"}


class Options(argparse.Namespace):
    source: Path
    tasks: str
    repeats: int
    scaling_task: str
    out: Path | None
    rates: Path | None


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("data/imagenet/train"))
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing (default: 3)")
    parser.add_argument("--scaling-task", default="sr2", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    parser.add_argument("--rates", type=Path, help="a JSON file for the rates that `plan` reads")
    return parser.parse_args(namespace=Options())


def main() -> int:
    options = parse()
    if not options.source.is_dir():
        print(f"corrupt: {options.source}: no such folder; --source FOLDER names photographs")
        return 0
    with tempfile.TemporaryDirectory(prefix="ipt-corrupt-") as folder:
        page, missed = measure(options, Path(folder))
    write_page(page, options.out)
    for each in missed:
        print(each, file=sys.stderr)
    return 1 if missed else 0


def measure(options: Options, folder: Path) -> tuple[str, list[str]]:
    """The page, and a sentence for each floor that was missed."""
    # Here, because it imports torch, and workers import this file but must not import torch.
    from benchmarks.measuring import circumstances, table

    where = circumstances(machine())
    source = list_source(options.source, folder)
    decoding = measure_decoding(source.index, options.repeats)
    print(decoding, flush=True)
    measured, steps = [], []
    for name in options.tasks.split(","):
        for image_format in FORMATS:
            found = [
                measure_task(source, folder, name, image_format, crops, options.repeats)
                for crops in (CROPS, 1)
            ]
            measured.append(found)
            steps.append(shares(source, folder, name, image_format))
            print(" | ".join(row_of(found, steps[-1])), flush=True)
    # What else the machine does may last for minutes: what was below a floor is timed again.
    for found in measured:
        if any(misses(found[0])):
            for number, once in enumerate(found):
                what = once.task, once.format, once.crops
                found[number] = once.best_with(measure_task(source, folder, *what, options.repeats))
    rows = [row_of(*each) for each in zip(measured, steps, strict=True)]
    missed = [sentence for many, _ in measured for sentence in misses(many)]
    scaling, is_free, too_slow = measure_scaling(
        options.scaling_task, folder, source, options.repeats
    )
    memory, too_much = measure_memory(folder, source)
    missed += [*too_slow, *too_much]
    if options.rates is not None and not is_free:
        missed.append(f"{options.rates} was not written: the machine isn't free")
    elif options.rates is not None:
        write_rates(
            options.rates, measured, f"python -m benchmarks.corrupt, {date.today()}, {machine()}"
        )
    header = [
        "task",
        "format",
        "patches/s",
        "of decoding",
        "one crop each",
        "bytes",
        "time goes to",
    ]
    note = (
        f"Patches per CPU second of one process, {CROPS} crops from a photograph; the share of "
        "what decoding alone allows, which is timed in turn with them; patches with one crop from "
        "a photograph; bytes of a sample in its tar. Every timing is the best of "
        f"{options.repeats}, twice as many where a floor was missed at first. The floor of "
        f"{LEAST_OF_DECODING:.0%} of decoding is for tasks of scale 1 in npy: png is bounded by "
        "its encoder.\n\n"
    )
    parts = [f"# Corrupting\n\n{where}", decoding + "\n", note + table(header, rows)]
    parts += [f"{each}\n" for each in (scaling, memory, *(f"Missed: {each}" for each in missed))]
    return "\n".join(parts), missed


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"


def measure_task(
    source: Listed, folder: Path, name: str, image_format: str, crops: int, repeats: int
) -> Measured:
    """All photographs of training as one shard, by the function that workers call."""
    settings, unit = whole_shard(source, folder, name, image_format, crops)
    index, took, decoding = source.index, [], []
    for _ in range(repeats):
        photographs, seconds = decode_all(index)
        decoding.append(seconds / photographs)
        empty(settings.folder)
        began = time.process_time()
        record = make_shard(settings, unit, after_image=lambda: None)
        took.append(time.process_time() - began)
    return Measured(
        task=name,
        format=image_format,
        crops=crops,
        samples=record.samples,
        skipped=len(record.skipped),
        seconds=min(took),
        decoding=min(decoding),
        bytes=record.bytes,
    )


def empty(folder: Path) -> None:
    """A shard that is there already is not made again."""
    shutil.rmtree(folder)
    folder.mkdir()


def whole_shard(
    source: Listed, folder: Path, name: str, image_format: str, crops: int
) -> tuple[ShardSettings, ShardUnit]:
    settings = shard_settings(
        source, folder / "shards", task=name, image_format=image_format, crops=crops
    )
    return settings, plan_shards(len(source.index), VALIDATION_IMAGES, settings)[0]


def shares(source: Listed, folder: Path, name: str, image_format: str) -> dict[str, float]:
    """Which part of the time each step takes, as a profiler sees it."""
    settings, unit = whole_shard(source, folder, name, image_format, CROPS)
    empty(settings.folder)
    profile = cProfile.Profile()
    profile.runcall(make_shard, settings, unit, after_image=lambda: None)
    functions = pstats.Stats(profile).get_stats_profile().func_profiles
    total = functions["make_shard"].cumtime
    return {
        step: functions[function].cumtime / total
        for step, function in STEPS.items()
        if function in functions
    }


def row_of(found: Sequence[Measured], steps: dict[str, float]) -> list[str]:
    many, one = found
    goes_to = ", ".join(f"{step} {share:.0%}" for step, share in steps.items())
    return [
        many.task,
        many.format,
        f"{many.rate:.0f}",
        f"{many.share_of_decoding:.0%}",
        f"{one.rate:.0f}",
        f"{many.bytes / many.samples:.0f}",
        goes_to,
    ]


def misses(measured: Measured) -> Iterator[str]:
    """What is below the floors; those of decoding are for npy, which writes without encoding."""
    scale = TASKS[measured.task].scale
    what = f"{measured.task} in {measured.format}: {measured.rate:.0f} patches/s/core"
    floor = FLOORS.get(scale, FLOORS[4])
    if measured.rate < floor:
        yield f"{what}, below {floor:.0f}"
    share = measured.share_of_decoding
    if scale == 1 and measured.format == "npy" and share < LEAST_OF_DECODING:
        yield f"{what}, {share:.0%} of what decoding alone allows, below {LEAST_OF_DECODING:.0%}"


def measure_scaling(
    task: str, folder: Path, source: Listed, repeats: int
) -> tuple[str, bool, list[str]]:
    """One worker and two in turn, so that what else the machine does hits both: a sentence, whether
    the machine is free, and what is missed."""
    rates: dict[int, list[PoolRate]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, found in rates.items():
            found.append(pool_rate(source, folder / "pool", task=task, workers=workers))
    one, two = (max(each.by_clock for each in found) for found in rates.values())
    alone, shared = (max(each.by_processor for each in found) for found in rates.values())
    control = max(loop_scaling() for _ in range(repeats))
    missed = []
    if two / one < LEAST_SCALING and control >= FREE:
        missed.append(f"scaling from 1 to 2 processes: {two / one:.2f}, below {LEAST_SCALING}")
    sentence = (
        f"{task} by the stage's pool, {POOL_CROPS} crops from a photograph, by the clock: "
        f"{one:.0f} patches/s with one worker process, {two:.0f} with two: {two / one:.2f} times "
        "as many. By CPU seconds, which other programs "
        f"on the machine don't take away: {2 * shared / alone:.2f} times as many. A loop that "
        f"shares nothing: {control:.2f} times as fast (below {FREE}, the machine isn't free, and "
        "the scaling isn't judged)."
    )
    return sentence, control >= FREE, missed


def measure_memory(folder: Path, source: Listed) -> tuple[str, list[str]]:
    """The peak of a worker, for this source and for one of ImageNet's size."""
    settings = shard_settings(
        source, folder / "shards", task="sr4", image_format="npy", crops=CROPS
    )
    grow_index(source.artifact.folder, folder / "grown", IMAGENET_PHOTOGRAPHS)
    peaks = []
    for index_folder in (settings.index_folder, folder / "grown"):
        context = multiprocessing.get_context("spawn")
        with single_threaded_children(), ProcessPoolExecutor(1, mp_context=context) as pool:
            of_index = replace(settings, index_folder=index_folder)
            peaks.append(pool.submit(worker_peak, of_index).result())
    small, large = peaks
    growth = large.own - small.own
    missed = []
    if large.resident > MOST_MEMORY:
        missed.append(f"a worker's memory: {large}, above {MOST_MEMORY / MEBIBYTE:.0f} MiB")
    if growth > MOST_GROWTH:
        missed.append(f"a worker's own memory grows by {growth / MEBIBYTE:.0f} MiB with the source")
    return (
        f"A worker's peak (sr4, {len(source.index)} photographs): {small}; with an index of "
        f"{IMAGENET_PHOTOGRAPHS:,}: {large}. The index is a mapped file, shared by all workers."
    ), missed


if __name__ == "__main__":
    sys.exit(main())
