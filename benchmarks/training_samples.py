"""What the benchmarks of training train: an IPT by the real loop, on shards that are cut here from
the demo's photographs. Needs no package that a machine with a GPU may lack but those of loading."""

# N batch, H W height and width

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import torch
from PIL import Image

from pipeline.config import PretrainConfig, Runtime, TrainingConfig
from pipeline.corruptions.apply import corrupt
from pipeline.corruptions.keyed import generator
from pipeline.corruptions.rain import render_layer
from pipeline.data.shards import shard_name, writing_shard
from pipeline.data.streams import Stream, open_stream
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.ipt import IPT
from pipeline.tasks import PUBLISHED_ORDER, TASKS
from pipeline.train_model import _batches, _facts
from pipeline.training.logs import METRICS, Row
from pipeline.training.loop import fit
from pipeline.training.objectives import Batch, RestorationObjective
from pipeline.training.placement import Place

PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "pipeline" / "assets" / "photos"
SEED = 0
CYCLE = len(PUBLISHED_ORDER)  # steps in which each task is trained once
RAIN_LAYERS, LAYER_SIZE = 2, 256


def make_streams(folder: Path, samples: int, patch_size: int) -> dict[str, Stream]:
    """`samples` crops of each of the six tasks, in npy, stored as the corrupt stage stores them."""
    photographs = [
        np.asarray(Image.open(path).convert("RGB"))
        for path in sorted(PHOTOGRAPHS.iterdir())
        if path.suffix in (".png", ".jpg")
    ]
    layers = np.stack(
        [render_layer(generator(SEED, n), LAYER_SIZE, "light") for n in range(RAIN_LAYERS)]
    )
    streams = {}
    for name in PUBLISHED_ORDER:
        task, side = TASKS[name], patch_size * TASKS[name].scale
        shards = folder / name / "shards"
        shards.mkdir(parents=True)
        rng = generator(SEED, name)
        with writing_shard(shards, shard_name("train", 0), image_format="npy") as writer:
            for number in range(samples):
                photograph = photographs[number % len(photographs)]
                top, left = (int(rng.integers(each - side + 1)) for each in photograph.shape[:2])
                images = {"clean": photograph[top : top + side, left : left + side]}
                if task.stores_corrupted:
                    images["corrupted"] = corrupt(
                        images["clean"], task.corruption, rng, rain_layers=layers
                    )
                writer.add(f"{number:016x}-0", images, {"source": "benchmark"})
            writer.finish()
        streams[name] = open_stream(folder / name, task, split="train")
    return streams


def reopened(folder: Path) -> dict[str, Stream]:
    """What `make_streams` made there, in another process."""
    return {
        name: open_stream(folder / name, TASKS[name], split="train") for name in PUBLISHED_ORDER
    }


class Ticks:
    """What each step took: seconds by the clock, and CPU seconds of this process."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []
        self.go_on()

    def go_on(self) -> None:
        """Begin a step here: what came since the last one is nobody's."""
        self._began = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.clock.append(now[0] - self._began[0])
        self.processor.append(now[1] - self._began[1])
        self._began = now


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of steps over all repeats, each task equally often and in the same order."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def add(self, clock: Sequence[float], processor: Sequence[float]) -> None:
        self.clock.extend(clock)
        self.processor.extend(processor)

    @property
    def median_clock(self) -> float:
        return _over_tasks(self.clock, median)

    @property
    def best_clock(self) -> float:
        """Where nothing else ran."""
        return _over_tasks(self.clock, min)

    @property
    def median_processor(self) -> float:
        return _over_tasks(self.processor, median)


def _over_tasks(seconds: Sequence[float], of: Callable[[Sequence[float]], float]) -> float:
    """The mean over tasks, whose steps take different times."""
    return sum(of(seconds[task::CYCLE]) for task in range(CYCLE)) / CYCLE


@dataclass(frozen=True, kw_only=True)
class Trained:
    ticks: Ticks
    rows: list[Row]  # of metrics.jsonl
    saves: list[tuple[float, float]]  # seconds: to write a checkpoint; that the training waited
    parameters: int

    def steady(self, name: str) -> float | None:
        """The median of a number that is logged, without the first row, in which all warms up."""
        values = [row[name] for row in self.rows[1:] or self.rows]
        known = [each for each in values if each is not None]
        return median(known) if known else None


def ipt_config(size: IPTSize) -> IPTConfig:
    return IPTConfig(size=size, scales={name: TASKS[name].scale for name in PUBLISHED_ORDER})


def training_config(**values: object) -> PretrainConfig:
    """The recipe of imagenet.yaml: a task in each step, with the contrastive loss."""
    return PretrainConfig.model_validate({"tasks": PUBLISHED_ORDER, **values})


def train(
    streams: Mapping[str, Stream],
    folder: Path,
    *,
    size: IPTSize,
    config: PretrainConfig,
    runtime: Runtime,
    between: Callable[[], None] = lambda: None,
) -> Trained:
    """Train to the end by the loop that trains in a run; what rank 0 sees of it. `between` is
    called after every cycle of the tasks, and not timed."""
    model = built(size, config, runtime)
    ticks = Ticks()

    def stepped(done: int, total: int, note: str = "") -> None:
        ticks.tick()
        if done == CYCLE and torch.cuda.is_available():  # compiling tries kernels out before
            torch.cuda.reset_peak_memory_stats()
        if done % CYCLE == 0:
            between()
            ticks.go_on()

    with _saves_told() as saves:
        fit(
            RestorationObjective(model, contrastive=config.contrastive),
            config=config,
            runtime=runtime,
            folder=folder,
            fingerprint="0" * 64,
            batches=lambda place, device: _batches(
                streams, place, device, config=config, seed=SEED, workers=runtime.workers
            ),
            groups=model.parameter_groups(),
            facts=_facts(model, streams, config),
            progress=stepped,
        )
    return Trained(
        ticks=ticks,
        rows=_rows(folder / METRICS),
        saves=saves,
        parameters=model.config.parameters,
    )


def built(size: IPTSize, config: PretrainConfig, runtime: Runtime) -> IPT:
    torch.manual_seed(SEED)
    model = IPT(ipt_config(size), precision=config.precision)
    if runtime.compile:
        torch.compiler.reset()  # else the compiler gives up at its eighth variant
        model.compile_parts()
    return model.train()


def first_batches(
    streams: Mapping[str, Stream], config: TrainingConfig, count: int, *, seed: int = SEED
) -> Sequence[Batch]:
    """Those that a training of one process and one micro-batch a step begins with, on the CPU."""
    place = Place(rank=0, world_size=1, micro_batch=config.batch, accumulation=1, steps=count)
    cpu = torch.device("cpu")
    return list(_batches(streams, place, cpu, config=config, seed=seed, workers=0))


def bare_stepper(model: IPT, config: PretrainConfig) -> Callable[[Sequence[Batch]], Ticks]:
    """The least that a step needs: forward, backward and PyTorch's Adam, on batches at hand."""
    objective = RestorationObjective(model, contrastive=config.contrastive)
    adam = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=config.betas)

    def take(batches: Sequence[Batch]) -> Ticks:
        ticks = Ticks()
        for batch in batches:
            objective(batch)["loss"].backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
            ticks.tick()
        return ticks

    return take


@contextmanager
def _saves_told() -> Iterator[list[tuple[float, float]]]:
    """What the writer of checkpoints logs: how long it wrote, and how long the training waited."""
    saves: list[tuple[float, float]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # "saved %s in %.2f s; ... %.2f s"
            _, wrote, paused = cast(tuple[str, float, float], record.args)
            saves.append((wrote, paused))

    source = logging.getLogger("pipeline.training.saving")
    listener, level = Listener(), source.level
    source.addHandler(listener)
    source.setLevel(logging.INFO)
    try:
        yield saves
    finally:
        source.removeHandler(listener)
        source.setLevel(level)


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
