"""What corrupting costs: core-hours, bytes and files, from the rates in `assets/corrupt_rates.json`
that `benchmarks/corrupt.py --rates` measured. Imports nothing heavy."""

import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.config import CorruptConfig

RATES_FILE = Path(__file__).parent / "assets" / "corrupt_rates.json"
IMAGENET_PHOTOGRAPHS = 1_281_167  # ILSVRC 2012, training
MOST_COUNTED = 10_000  # files of a folder that nobody has listed yet


@dataclass(frozen=True, kw_only=True)
class FormatRates:
    patch_seconds: float  # of one core, for each patch: corrupting it, packing and writing
    patch_bytes: float


@dataclass(frozen=True, kw_only=True)
class TaskRates:
    image_seconds: float  # of one core, for each photograph: reading and decoding it
    formats: dict[str, FormatRates]


@dataclass(frozen=True, kw_only=True)
class Rates:
    measured: str  # by which command, when and on what
    patch_size: int
    tasks: dict[str, TaskRates]


@dataclass(frozen=True, kw_only=True)
class CorruptCost:
    core_hours: float
    bytes: float
    files: int

    def __add__(self, other: "CorruptCost") -> "CorruptCost":
        return CorruptCost(
            core_hours=self.core_hours + other.core_hours,
            bytes=self.bytes + other.bytes,
            files=self.files + other.files,
        )


def read_rates(path: Path = RATES_FILE) -> Rates:
    record = json.loads(path.read_text())
    tasks = {}
    for name, each in record["tasks"].items():
        formats = {key: FormatRates(**rates) for key, rates in each["formats"].items()}
        tasks[name] = TaskRates(image_seconds=each["image_seconds"], formats=formats)
    return Rates(measured=record["measured"], patch_size=record["patch_size"], tasks=tasks)


def corrupt_cost(
    rates: Rates, task_name: str, config: CorruptConfig, *, photographs: int, validation: int
) -> CorruptCost | None:
    """The cost of one corrupt stage; None for a task that was never measured."""
    task = rates.tasks.get(task_name)
    if task is None:
        return None
    of_format = task.formats[config.format]
    area = (config.patch_size / rates.patch_size) ** 2
    each = max(1, config.samples_per_shard // config.crops_per_image)  # photographs of a shard
    shards = math.ceil((photographs - validation) / each) + 1
    used = photographs - validation + min(validation, each)
    patches = used * config.crops_per_image
    seconds = used * task.image_seconds + patches * area * of_format.patch_seconds
    return CorruptCost(
        core_hours=seconds / 3600,
        bytes=patches * area * of_format.patch_bytes,
        files=shards * (3 if config.format == "png" else 2),  # tar, record, png's offsets
    )


def few_files(folder: Path) -> int | None:
    """How many files lie below a small folder; None where they are too many to count here."""
    found = sum(1 for path in islice(folder.rglob("*"), MOST_COUNTED + 1) if path.is_file())
    return found if found <= MOST_COUNTED else None
