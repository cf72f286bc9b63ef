"""Cuts crops from photographs, corrupts them for one task and packs them into shards."""

import errno
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.artifacts import JSON
from pipeline.config import CorruptConfig
from pipeline.config_section import Section
from pipeline.graph import Job, Stage, StageError
from pipeline.tasks import Task

if TYPE_CHECKING:
    from pipeline.data.shard_making import ShardSettings, ShardUnit
    from pipeline.data.shards import ShardRecord

logger = logging.getLogger(__name__)

SKIPPED_LISTED = 100  # in the summary; the rest is in the records of the shards
REPORT_SECONDS = 0.5
# What an interrupted run left half written is deleted once nobody can be writing it any more.
ABANDONED_SECONDS = 600


class CorruptStageConfig(Section):
    """What decides the content of one task's shards."""

    task: dict[str, JSON]  # the resolved row: name, corruption and its parameters
    seed: int
    crops_per_image: int
    patch_size: int
    samples_per_shard: int
    format: Literal["npy", "png"]
    pairs: bool = False  # the source has the corrupted versions


def corrupt_stage(
    task: Task,
    config: CorruptConfig,
    *,
    seed: int,
    source_name: str,
    source: Stage,
    rain_layers: Stage | None,
    pairs: bool = False,
) -> Stage:
    """The stage that makes the shards of one task from one source, of real pairs if `pairs`.

    `task` carries the conventions of the run (clipping, border) already.
    """
    inputs = {"source": source}
    if task.needs_rain_layers and not pairs:
        assert rain_layers is not None, f"{task.name} needs rain layers"
        inputs["rain_layers"] = rain_layers
    row: dict[str, JSON] = {"name": task.name}
    if pairs:
        row |= {"scale": task.scale, "channels": task.channels}
    else:
        row |= {"corruption": type(task.corruption).__name__, **asdict(task.corruption)}
    return Stage(
        name=f"corrupt-{task.name}@{source_name}",
        kind="corrupt",
        version=4,
        config=CorruptStageConfig(
            task=row,
            seed=seed,
            crops_per_image=config.crops_per_image,
            patch_size=config.patch_size,
            samples_per_shard=config.samples_per_shard,
            format=config.format,
            pairs=pairs,
        ),
        run=partial(run, task=task, most_skipped=config.most_skipped),
        inputs=inputs,
        launch="array",
    )


def run(job: Job, task: Task, *, most_skipped: float) -> dict[str, JSON] | None:
    from pipeline.data.pairs import PairError
    from pipeline.data.shard_making import plan_shards
    from pipeline.data.shards import ShardError
    from pipeline.data.source import SourceError

    settings = _settings(job, task)
    source = job.inputs["source"].manifest
    units = plan_shards(source.summary["images"], source.summary["validation"], settings)
    not_listed = source.summary.get("not_listed", 0)  # older listings don't say
    part, parts = job.part
    try:
        settings.folder.mkdir(exist_ok=True)
        # Alone in the folder, this run needs no patience, and perhaps the space.
        _delete_half_written(settings.folder, older_than=0 if parts == 1 else ABANDONED_SECONDS)
        skipping = Skipping(
            task=task.name,
            photographs=sum(unit.end - unit.first for unit in units) + not_listed,
            most=most_skipped,
            kinds=Counter(["not listed"] * not_listed),
        )
        done = _finished(settings.folder, units)
        skipping.add(each["kind"] for record in done.values() for each in record.skipped)
        missing = [unit for unit in units[part::parts] if unit not in done]
        if missing:
            _make(job, settings, missing, skipping)
            done = _finished(settings.folder, units)
        if len(done) < len(units):
            logger.info("part %d of %d done: %d of %d shards", part, parts, len(done), len(units))
            return None
        _delete_half_written(settings.folder, older_than=0)
    except SourceError as error:
        raise StageError(
            f"{error}. Undo that, or list the photographs anew with --until {source.stage} "
            "--force; then run the same command again"
        ) from error
    except (ShardError, PairError) as error:
        raise StageError(str(error)) from error
    except OSError as error:
        full = " (free some space)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StageError(
            f"{error.filename or settings.folder}: {error.strerror or error}. Finished shards are "
            f"kept; once this is mended{full}, run the same command again"
        ) from error
    job.digests.update({f"shards/{each.file}": each.sha256 for each in done.values()})
    return _summary(job, task, done, replace(skipping, kinds=Counter()))


def _settings(job: Job, task: Task) -> "ShardSettings":
    from pipeline.data.shard_making import ShardSettings

    config, source, layers = job.config, job.inputs["source"], job.inputs.get("rain_layers")
    assert isinstance(config, CorruptStageConfig)
    return ShardSettings(
        folder=job.folder / "shards",
        index_folder=source.folder,
        root=Path(source.manifest.summary["root"]),
        rain_layers=layers.folder if layers else None,
        task=task,
        seed=config.seed,
        crops_per_image=config.crops_per_image,
        patch_size=config.patch_size,
        samples_per_shard=config.samples_per_shard,
        image_format=config.format,
    )


def _finished(folder: Path, units: Sequence["ShardUnit"]) -> dict["ShardUnit", "ShardRecord"]:
    from pipeline.data.shards import is_whole, read_record

    records = {unit: read_record(folder, unit.name) for unit in units}
    return {
        unit: record
        for unit, record in records.items()
        if record is not None and is_whole(folder, record)
    }


def _delete_half_written(folder: Path, *, older_than: float) -> None:
    """Delete what writers that were killed left, unless another part may be writing it."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # its writer was alive, and finished
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


@dataclass
class Skipping:
    """Photographs that gave nothing, counted while shards are made."""

    task: str
    photographs: int  # of all shards
    most: float  # share of them
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, kinds: Iterable[str]) -> None:
        """Count; StageError as soon as it is certain that too many will have been skipped."""
        self.kinds.update(kinds)
        count = self.kinds.total()
        if count > self.most * self.photographs:
            common = ", ".join(f"{kind} ({n})" for kind, n in self.kinds.most_common(3))
            raise StageError(
                f"{self.task}: {count} of {self.photographs} photographs "
                f"({count / self.photographs:.1%}) were skipped, more than "
                f"corrupt.most_skipped: {self.most:g} allows: {common}; mend or replace them, use "
                "a smaller corrupt.patch_size, or raise corrupt.most_skipped; what is made is kept"
            )


# Set by `_start_worker` in each worker, because shared memory can't be sent with a task.
_worker: dict[str, Any] = {}


def _start_worker(images_done: "Synchronized[int]", stop: Event, started: Event) -> None:
    from pipeline.data.worker_processes import exit_with_parent

    exit_with_parent()
    _worker.update(images_done=images_done, stop=stop)
    started.set()


def _make_in_worker(settings: "ShardSettings", unit: "ShardUnit") -> list[str]:
    """Make a shard; returns for each photograph that was skipped, why."""
    from pipeline.data.shard_making import MakingStopped, make_shard

    def after_image() -> None:
        with _worker["images_done"].get_lock():
            _worker["images_done"].value += 1
        if _worker["stop"].is_set():
            raise MakingStopped

    return [each["kind"] for each in make_shard(settings, unit, after_image=after_image).skipped]


def _make(
    job: Job, settings: "ShardSettings", missing: list["ShardUnit"], skipping: Skipping
) -> None:
    """Make the missing shards in worker processes; the first failure stops them all."""
    from pipeline.data.worker_processes import (
        FOR_THE_PARENT,
        blocked_in_children,
        single_threaded_children,
    )

    # Workers start from nothing, so that they share no lock and no torch with this process.
    context = multiprocessing.get_context("spawn")
    images_done, stop, started = context.Value("q", 0), context.Event(), context.Event()
    crops, total = settings.crops_per_image, sum(unit.end - unit.first for unit in missing)
    count = min(max(1, job.runtime.workers), len(missing))
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(images_done, stop, started)
    ) as pool:
        try:
            with single_threaded_children(), blocked_in_children(FOR_THE_PARENT):
                waiting = {pool.submit(_make_in_worker, settings, unit) for unit in missing}
            while waiting:
                finished, waiting = wait(
                    waiting, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED
                )
                for future in finished:
                    skipping.add(future.result())
                note = f"{len(missing) - len(waiting)} of {len(missing)} shards"
                job.progress(images_done.value * crops, total * crops, note)
        except (BrokenProcessPool, MemoryError) as error:
            what = "a worker process was killed, most likely for want of memory; lower"
            if isinstance(error, MemoryError):
                what = f"{error or 'out of memory'}; give the job more memory or lower"
            elif not started.is_set():
                what = "no worker process could begin; mend what they printed above, or lower"
            raise StageError(
                f"{settings.folder}: {what} runtime.workers ({count}), and run this again"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _summary(
    job: Job, task: Task, done: dict["ShardUnit", "ShardRecord"], skipping: Skipping
) -> dict[str, JSON]:
    config = job.config
    assert isinstance(config, CorruptStageConfig)
    samples = Counter({"train": 0, "validation": 0})
    skipped: list[dict[str, str]] = []
    for unit, record in done.items():
        samples[unit.split] += record.samples
        skipping.add(each["kind"] for each in record.skipped)
        skipped += [{"path": each["path"], "reason": each["reason"]} for each in record.skipped]
    del skipped[SKIPPED_LISTED:]
    for each in skipped:
        logger.warning("%s: skipped: %s", each["path"], each["reason"])
    for split, count in samples.items():
        if count == 0:
            first = f"; {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
            raise StageError(
                f"{job.folder}: all {split} photographs were skipped for {task.name} "
                f"({skipping.kinds.total()} photographs in all splits{first}); use larger or other "
                "photographs, or a smaller corrupt.patch_size"
            )
    return {
        "task": task.name,
        "format": config.format,
        "train_samples": samples["train"],
        "validation_samples": samples["validation"],
        "skipped_images": skipping.kinds.total(),
        "skipped": skipped,
        "skipped_by_reason": dict(sorted(skipping.kinds.items())),
        "bytes": sum(record.bytes for record in done.values()),
        "clip": config.task.get("clip"),
    }
