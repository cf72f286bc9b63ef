"""Scores a model on test sets, image by image: for the evaluate stage and for `ipt evaluate`.

An image that can't be read, paired or restored is named, and the others are scored all the same.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.artifacts import JSON, canonical_digest
from pipeline.benchmark_checks import Checker
from pipeline.benchmark_folders import Found, find_benchmarks
from pipeline.checks import differing
from pipeline.data.testset_pairs import Fault, TestSetError
from pipeline.data.testsets import NO_MEMORY, Pair, TestSet, open_benchmark
from pipeline.graph import Progress
from pipeline.protocol import OF_FILES, border_of, noise_of
from pipeline.scoring import RestorationError, Scored, mean_scores, score_restoration
from pipeline.tasks import GaussianNoise, JpegCompression, Task, at_levels, published_name

logger = logging.getLogger(__name__)

PICTURES_PER_TEST_SET = 3

Restore = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A test set under the name that its scores stand by."""

    name: str
    test_set: TestSet
    found: Found | None = None  # where it is a benchmark of a folder of them

    @property
    def task(self) -> Task:
        """At what it measures: a denoiser of σ 30 may be measured at σ 10."""
        return self.test_set.task


def benchmark_sets(
    root: Path, task: Task, *, sigmas: Iterable[float], seed: int, only: bool = False
) -> tuple[list[NamedSet], list[str], dict[str, str]]:
    """The benchmarks of `root` for a task, those that it lacks, and why some can't be opened.

    Denoisers are measured at `sigmas` too, or `only` there.
    """
    sigmas = tuple(sigmas)
    found, missing = find_benchmarks(root, task)
    sets, failed = [], {}
    for each in found:
        for measured in at_levels(task, sigmas, only=only):
            name = each.benchmark.name + ("" if measured is task else _level(measured))
            try:
                test_set = open_benchmark(each, measured, seed=seed)
            except TestSetError as error:
                failed[name] = str(error)
            else:
                sets.append(NamedSet(name=name, test_set=test_set, found=each))
    return sets, missing, failed


def score_sets(
    sets: Sequence[NamedSet], restore: Restore, *, folder: Path, progress: Progress
) -> tuple[dict[str, dict[str, JSON]], dict[str, str]]:
    """The scores by test set, and of those that gave none, why. Pictures go to `folder`/images."""
    (folder / "images").mkdir(exist_ok=True)
    total = sum(len(each.test_set) for each in sets)
    scores: dict[str, dict[str, JSON]] = {}
    failed: dict[str, str] = {}
    before = 0
    for each in sets:
        record = _score_set(each, restore, folder=folder, told=(before, total), progress=progress)
        before += len(each.test_set)
        if record["images"]:
            scores[each.name] = record
        else:
            reasons = "; ".join(f"{one['path']}: {one['reason']}" for one in record["skipped"])
            failed[each.name] = f"no image could be used ({reasons})"
    return scores, failed


def faults_of(record: Mapping[str, JSON]) -> list[str]:
    """What makes the scores of a model incomplete, a sentence each; `record` is a scores.json."""
    faults = [f"{name}: {reason}" for name, reason in record["failed"].items()]
    for name, each in record["test_sets"].items():
        faults += [f"{name}: {one['path']}: {one['reason']}" for one in each["faults"]]
        if each["benchmark"] is not None:
            faults += [f"{name}: {reason}" for reason in differing(each["benchmark"]["checks"])]
    return faults


def _score_set(
    named: NamedSet, restore: Restore, *, folder: Path, told: tuple[int, int], progress: Progress
) -> dict[str, JSON]:
    test_set, task = named.test_set, named.task
    before, total = told
    checker = Checker(benchmark=named.found.benchmark, task=task) if named.found else None
    images: list[dict[str, JSON]] = []
    unrestored: list[Fault] = []
    progress(before, total, named.name)
    for number, pair in enumerate(test_set, start=1):
        try:
            scored = score_restoration(
                pair.corrupted, pair.clean, corruption=task.corruption, restore=restore
            )
            if checker is not None:
                given = pair.corrupted if test_set.is_given else None
                checker.add(pair.name, clean=pair.clean, corrupted=scored.corrupted, given=given)
        # What torch and numpy raise where a device fails or is full: another image may well fit.
        except (RestorationError, RuntimeError, MemoryError) as error:
            reason = str(error).partition("\n")[0] or NO_MEMORY
            logger.warning("%s/%s: not restored: %s", named.name, pair.name, reason)
            unrestored.append({"path": pair.name, "reason": reason})
            continue
        record = _image_record(pair, scored)
        if len(images) < PICTURES_PER_TEST_SET:
            stem = f"{named.name}-{file_name(pair.name)}"
            record["pictures"] = _write_pictures(folder, stem, scored.pictures)
        images.append(record)
        left_out = len(test_set.skipped) + len(test_set.faults) - len(test_set.unpaired)
        progress(min(before + number + left_out, total), total, f"{named.name}/{pair.name}")
        logger.info("%s/%s: %s", named.name, pair.name, _line(scored, task))
    faults = [*test_set.faults, *unrestored]
    return _set_record(named, images, faults=faults, checker=checker)


def _image_record(pair: Pair, scored: Scored) -> dict[str, JSON]:
    height, width = pair.clean.shape[:2]
    record: dict[str, JSON] = {"name": pair.name, "height": height, "width": width}
    return record | {"corrupted": scored.corrupted, "restored": scored.restored}


def _set_record(
    named: NamedSet,
    images: Sequence[Mapping[str, JSON]],
    *,
    faults: Sequence[Fault],
    checker: Checker | None,
) -> dict[str, JSON]:
    test_set, task = named.test_set, named.task
    noise = noise_of(task)
    benchmark: dict[str, JSON] | None = None
    if named.found is not None and checker is not None:
        benchmark = {
            "name": named.found.benchmark.name,
            "images": named.found.benchmark.images,
            "layout": named.found.layout_text,
            "checks": checker.checks() if images else [],
        }
    is_incomplete = bool(faults)
    if benchmark is not None and images:
        is_incomplete = is_incomplete or bool(differing(benchmark["checks"]))
    mean = {}
    if images:
        for version in ("corrupted", "restored"):
            mean[version] = mean_scores([image[version] for image in images])
    return {
        "images": list(images),
        "mean": mean,
        # Where it measures at another level than the model's task has, the name of that level.
        "task": published_name(task) if named.found else task.name,
        "title": task.title,
        # The convention of noise in files is not ours to state.
        "noise": OF_FILES if noise and test_set.is_given else noise,
        "border": border_of(task),
        "corrupted_is_given": test_set.is_given,
        "skipped": [*test_set.skipped, *faults],
        "faults": list(faults),
        "incomplete": is_incomplete,
        "benchmark": benchmark,
    }


def _write_pictures(folder: Path, stem: str, pictures: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write each version of an image as PNG; returns their paths inside `folder`."""
    paths = {version: f"images/{stem}-{version}.png" for version in pictures}
    for version, path in paths.items():
        Image.fromarray(pictures[version]).save(folder / path)
    return paths


def file_name(name: str) -> str:
    """`name` without what a file system or a shell could trip over."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]
    return plain if plain == name else f"{plain}-{canonical_digest(name)[:6]}"


def _line(scored: Scored, task: Task) -> str:
    values = (each["psnr_rgb"] for each in (scored.corrupted, scored.restored))
    texts = ("equal" if value is None else f"{value:.2f} dB" for value in values)
    return f"PSNR {'grey' if task.channels == 1 else 'RGB'} {' -> '.join(texts)}"


def _level(task: Task) -> str:
    match task.corruption:
        case GaussianNoise(sigma_255=float() | int() as sigma_255):
            return f"-sigma{sigma_255:g}"
        case JpegCompression(quality=int() as quality):
            return f"-quality{quality}"
    return ""
