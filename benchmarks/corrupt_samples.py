"""What the benchmark of corrupting works on: a listed source, one as large as ImageNet, and workers
that watch their memory. Never imports torch, because workers import it."""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pipeline.artifacts import Artifact, seal
from pipeline.config import CorruptConfig, Runtime, SourceConfig
from pipeline.corruptions.keyed import generator
from pipeline.corruptions.rain import render_layer
from pipeline.cost import FormatRates, TaskRates
from pipeline.data.shard_making import ShardSettings, ShardUnit, make_shard
from pipeline.data.source import UnreadablePhotograph, _decode_jpeg
from pipeline.data.source_index import INDEX_FILE, PATHS_FILE, SourceIndex
from pipeline.graph import Job, Stage
from pipeline.tasks import TASKS
from stages.corrupt import corrupt_stage
from stages.source import source_stage

MEBIBYTE = 2**20
PATCH_SIZE = 48
CROPS = 8  # from a photograph, as in imagenet.yaml
POOL_CROPS = 64  # or a few hundred photographs would be too few for shards that take a while
LARGEST_CROP = 192
VALIDATION_IMAGES = 8
LAYERS, LAYER_SIZE = 8, 512
WATCHED_IMAGES = 128  # of a worker whose memory is watched


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The photographs, listed by the real stage."""

    stage: Stage
    artifact: Artifact
    root: Path
    rain_layers: Path

    @property
    def index(self) -> SourceIndex:
        return SourceIndex(self.artifact.folder, self.root)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most memory that a worker took, in bytes."""

    resident: int  # pages of mapped files included
    proportional: int  # a page that several processes share counts in parts
    own: int  # not of any file

    def __str__(self) -> str:
        sizes = (f"{each / MEBIBYTE:.0f}" for each in (self.resident, self.proportional, self.own))
        return "{} MiB resident, {} MiB proportional, {} MiB of it its own".format(*sizes)


def list_source(photographs: Path, folder: Path) -> Listed:
    stage = source_stage(
        "x",
        SourceConfig(path=str(photographs.absolute()), validation_images=VALIDATION_IMAGES),
        seed=0,
        largest_crop=LARGEST_CROP,
    )
    target = folder / "source"
    target.mkdir()
    job = Job(config=stage.config, fingerprint="", folder=target, inputs={}, runtime=Runtime())
    artifact = seal(
        target,
        stage=stage.name,
        version=stage.version,
        fingerprint="",
        config={},
        inputs={},
        summary=stage.run(job) or {},
        seconds=0,
    )
    (folder / "rain").mkdir()
    layers = [
        render_layer(generator(0, "benchmark", number), LAYER_SIZE, "light")
        for number in range(LAYERS)
    ]
    np.save(folder / "rain" / "layers.npy", np.stack(layers))
    root = photographs.absolute()
    return Listed(stage=stage, artifact=artifact, root=root, rain_layers=folder / "rain")


def shard_settings(
    source: Listed, folder: Path, *, task: str, image_format: str, crops: int
) -> ShardSettings:
    """All photographs of training in one shard."""
    folder.mkdir(exist_ok=True)
    return ShardSettings(
        folder=folder,
        index_folder=source.artifact.folder,
        root=source.root,
        rain_layers=source.rain_layers if TASKS[task].needs_rain_layers else None,
        task=TASKS[task],
        seed=0,
        crops_per_image=crops,
        patch_size=PATCH_SIZE,
        samples_per_shard=2**30,
        image_format=image_format,  # type: ignore[arg-type]
    )


def measure_decoding(index: SourceIndex, repeats: int) -> str:
    fallbacks, total = 0, 0
    for number in range(len(index)):
        data = index.read(number)
        total += len(data)
        fallbacks += not (data.startswith(b"\xff\xd8") and _decode_jpeg(data) is not None)
    photographs, seconds = min(
        (decode_all(index) for _ in range(repeats)), key=lambda each: each[1]
    )
    return (
        f"Decoding alone: {photographs / seconds:.0f} photographs/s/core (simplejpeg; {fallbacks} "
        f"of {len(index)} fell back to Pillow), {total / len(index) / 1000:.0f} kB each."
    )


def decode_all(index: SourceIndex) -> tuple[int, float]:
    """(photographs, CPU seconds), reading included."""
    photographs, began = 0, time.process_time()
    for number in range(len(index)):
        try:
            index.photograph(number)
        except UnreadablePhotograph:
            continue
        photographs += 1
    return photographs, time.process_time() - began


@dataclass(frozen=True, kw_only=True)
class Measured:
    task: str
    format: str
    crops: int
    samples: int
    skipped: int
    seconds: float  # of CPU
    decoding: float  # CPU seconds of a photograph, timed in turn
    bytes: int

    @property
    def rate(self) -> float:
        return self.samples / self.seconds

    @property
    def share_of_decoding(self) -> float:
        """Of the rate that would be reached if decoding were all."""
        return self.rate * self.decoding / self.crops

    def best_with(self, again: "Measured") -> "Measured":
        seconds, decoding = min(self.seconds, again.seconds), min(self.decoding, again.decoding)
        return replace(self, seconds=seconds, decoding=decoding)


@dataclass(frozen=True, kw_only=True)
class PoolRate:
    by_clock: float  # patches per second, without the time that the pool takes to start
    by_processor: float  # patches per CPU second, that time included


def pool_rate(source: Listed, folder: Path, *, task: str, workers: int) -> PoolRate:
    """How fast the stage itself is."""
    config = CorruptConfig(crops_per_image=POOL_CROPS, samples_per_shard=8 * POOL_CROPS)
    stage = corrupt_stage(
        TASKS[task], config, seed=0, source_name="x", source=source.stage, rain_layers=None
    )
    folder.mkdir()
    seen: list[tuple[float, int]] = []
    job = Job(
        config=stage.config,
        fingerprint="",
        folder=folder,
        inputs={"source": source.artifact},
        runtime=Runtime(workers=workers),
        progress=lambda done, total, note="": seen.append((time.perf_counter(), done)),
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    stage.run(job)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder)
    (began, first), (ended, last) = next(each for each in seen if each[1]), seen[-1]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return PoolRate(by_clock=(last - first) / (ended - began), by_processor=last / used)


def loop_scaling() -> float:
    """How many times as fast two processes are as one where they share nothing: 2 on free cores."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_loop_rate, (1, 1)))  # starts both
        (one,) = pool.map(_loop_rate, (2000,))
        return sum(pool.map(_loop_rate, (2000, 2000))) / one


def _loop_rate(rounds: int) -> float:
    block = bytes(MEBIBYTE)
    began = time.perf_counter()
    for _ in range(rounds):
        hashlib.sha256(block)
    return rounds / (time.perf_counter() - began)


def grow_index(folder: Path, target: Path, count: int) -> None:
    """An index of `count` photographs, each row of it with a path of its own in `paths.bin`, that
    leads to one of the photographs of the index in `folder`."""
    shutil.copytree(folder, target)
    rows = np.load(folder / INDEX_FILE)
    paths = (folder / PATHS_FILE).read_bytes()
    times = -(-count // len(rows))
    grown = np.tile(rows, times)
    grown["path_offset"] += np.repeat(np.arange(times) * len(paths), len(rows))
    grown["key"] = np.sort(np.random.default_rng(0).integers(0, 2**63, len(grown), np.uint64))
    np.save(target / INDEX_FILE, grown[:count])
    (target / PATHS_FILE).write_bytes(paths * times)


def worker_peak(settings: ShardSettings) -> Peak:
    """The peak while a shard of WATCHED_IMAGES photographs is made, in this process."""
    peaks = {"Rss": 0, "Pss": 0, "Anonymous": 0}

    def watch() -> None:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)

    unit = ShardUnit(split="train", number=0, first=0, end=WATCHED_IMAGES)
    make_shard(settings, unit, after_image=watch)
    status = Path("/proc/self/status").read_text().splitlines()
    (highest,) = (int(each.split()[1]) * 1024 for each in status if each.startswith("VmHWM:"))
    return Peak(resident=highest, proportional=peaks["Pss"], own=peaks["Anonymous"])


def write_rates(path: Path, measured: Sequence[Sequence[Measured]], measured_by: str) -> None:
    """What a photograph costs, by the difference of eight crops and of one, and what a patch costs
    beside it."""
    image_seconds: dict[int, float] = {}  # by channels: the same whatever is cut and written
    for many, one in measured:
        patch_seconds = (many.seconds - one.seconds) / (many.samples - one.samples)
        channels, found = TASKS[many.task].channels, one.seconds / one.samples - patch_seconds
        image_seconds[channels] = min(found, image_seconds.get(channels, found))
    tasks: dict[str, TaskRates] = {}
    for many, one in measured:
        of_image = image_seconds[TASKS[many.task].channels]
        rates = TaskRates(image_seconds=float(f"{of_image:.3g}"), formats={})
        tasks.setdefault(many.task, rates).formats[many.format] = FormatRates(
            patch_seconds=float(f"{(many.seconds - one.samples * of_image) / many.samples:.3g}"),
            patch_bytes=round(many.bytes / many.samples),
        )
    record = {
        "measured": measured_by,
        "patch_size": PATCH_SIZE,
        "tasks": {name: asdict(each) for name, each in tasks.items()},
    }
    path.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
