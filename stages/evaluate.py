"""Scores a model on photographs that no stage trained on, and keeps a few of its pictures."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pipeline.artifacts import JSON, Manifest, canonical_digest, folder_listing, write_json
from pipeline.config import EvaluateConfig, TestSetConfig
from pipeline.config_file import ConfigError
from pipeline.config_section import Section
from pipeline.graph import Job, Stage, StageError
from pipeline.tasks import Bicubic, GaussianNoise, Task, ranges

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pipeline.data.testsets import TestSet
    from pipeline.scoring import Scored

logger = logging.getLogger(__name__)

ModelKind = Literal["pretrain", "finetune", "dncnn"]
PICTURES_PER_TEST_SET = 3


class EvaluationConfig(Section):
    """What decides the scores of one model."""

    model: ModelKind
    task: Task
    test_sets: dict[str, TestSetConfig]
    tiling: Literal["overlap", "official"] | None  # None: restored whole, without tiles
    self_ensemble: bool = False
    seed: int = 0


def evaluate_stage(
    model: Stage,
    task: Task,
    config: EvaluateConfig,
    *,
    sources: Mapping[str, Stage],
    rain_layers: Stage | None,
) -> Stage:
    """The stage that scores `model` at `task` on the test sets that are for it.

    Where the config names no test set at all: on the validation images of every source.
    """
    named = config.test_sets or {name: TestSetConfig(source=name) for name in sources}
    test_sets = {
        name: test_set
        for name, test_set in named.items()
        if test_set.tasks is None or task.name in test_set.tasks
    }
    if not test_sets:  # said now, not after a long training
        raise ConfigError(
            f"evaluate.test_sets: none is for {task.name}; add {task.name} to the tasks of one, or "
            "leave tasks out"
        )
    inputs = {"model": model}
    for test_set in test_sets.values():
        if test_set.source is not None:
            inputs[f"source_{test_set.source}"] = sources[test_set.source]
    if task.needs_rain_layers and rain_layers is not None:
        inputs["rain_layers"] = rain_layers
    return Stage(
        name=f"evaluate-{model.name}",
        kind="evaluate",
        version=4,
        config=EvaluationConfig(
            model=cast(ModelKind, model.kind),
            task=task,
            test_sets=test_sets,
            tiling=None if model.kind == "dncnn" else config.tiling,
            self_ensemble=config.self_ensemble,
            seed=config.seed,
        ),
        run=run,
        inputs=inputs,
        stale=_stale,
    )


def run(job: Job) -> dict[str, JSON]:
    import torch

    from pipeline.data.source import SourceError
    from pipeline.data.testsets import TestSetError
    from pipeline.models.hub import ModelFileError
    from pipeline.restorers import RestorerError, open_restorer
    from pipeline.scoring import RestorationError

    config = job.config
    assert isinstance(config, EvaluationConfig)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Taken first: what changes while the scoring runs must look changed afterwards.
    folders = _folder_listings(config)
    try:
        test_sets = _open_test_sets(job, config)
        restorer = open_restorer(
            job.inputs["model"].folder / "model",
            task=None if config.tiling is None else config.task.name,
            tiling=config.tiling or "overlap",
            ensemble=config.self_ensemble,
            device=device,
        )
        total = sum(len(test_set) for test_set in test_sets.values())
        (job.folder / "images").mkdir(exist_ok=True)
        scores: dict[str, JSON] = {}
        before = 0
        with torch.inference_mode():
            for name, test_set in test_sets.items():
                scores[name] = _score_test_set(
                    job, name, test_set, restore=restorer.restore, before=before, total=total
                )
                before += len(test_set)
    except TestSetError as error:
        raise StageError(f"evaluate.test_sets: {error}") from error
    except (SourceError, ModelFileError, RestorerError, RestorationError) as error:
        raise StageError(str(error)) from error
    record = {
        "model": config.model,
        "model_name": "DnCNN" if config.model == "dncnn" else "IPT",
        "task": config.task.name,
        "protocol": protocol(config),
        "test_sets": scores,
    }
    write_json(job.folder / "scores.json", record)
    return {
        "task": config.task.name,
        "model": config.model,
        "mean": {name: each["mean"] for name, each in scores.items()},
        "images": sum(len(each["images"]) for each in scores.values()),
        "folders": folders,
        # Photographs in folders are in no config: what depends on the scores follows them too.
        "identity": canonical_digest({"fingerprint": job.fingerprint, "folders": folders}),
    }


def protocol(config: EvaluationConfig) -> dict[str, JSON]:
    """Everything that must be known to compare the scores with other scores."""
    corruption = config.task.corruption
    noise = None
    if isinstance(corruption, GaussianNoise):
        noise = "clipped" if corruption.clip else "unclipped"
    return {
        "channels": ["grey"] if config.task.channels == 1 else ["RGB", "Y"],
        "border": config.task.scale if config.task.scale > 1 else 0,
        "rounding": "uint8",  # of the restored image, before it is scored
        "corrupted_rounding": "none, as drawn" if noise else "uint8",
        "luma": "BT.601, 16 to 235, unrounded",
        "ssim": "Gaussian 11×11, σ 1.5, valid region; RGB is the mean of the channels",
        "mean": "of per-image scores",
        "noise": noise,  # where it is drawn here
        "drawn": {name: list(each) for name, each in ranges(corruption).items()},  # per image
        "seed": config.seed,
        "tiling": config.tiling,
        "self_ensemble": config.self_ensemble,
        "precision": "float32",
        "corrupted_shown": "bicubic upscaling" if isinstance(corruption, Bicubic) else "as given",
    }


def _open_test_sets(job: Job, config: EvaluationConfig) -> dict[str, "TestSet"]:
    from pipeline.data.rain_bank import open_layers
    from pipeline.data.source_index import SourceIndex
    from pipeline.data.testsets import open_test_set

    sources = {
        role.removeprefix("source_"): SourceIndex(
            artifact.folder, Path(artifact.manifest.summary["root"])
        )
        for role, artifact in job.inputs.items()
        if role.startswith("source_")
    }
    layers = None
    if "rain_layers" in job.inputs:
        layers = open_layers(job.inputs["rain_layers"].folder, held_out=True)
    return {
        name: open_test_set(
            test_set, config.task, seed=config.seed, sources=sources, rain_layers=layers
        )
        for name, test_set in config.test_sets.items()
    }


def _score_test_set(
    job: Job,
    name: str,
    test_set: "TestSet",
    *,
    restore: Callable[["Tensor"], "Tensor"],
    before: int,
    total: int,
) -> dict[str, JSON]:
    from pipeline.scoring import mean_scores, score_restoration

    images: list[dict[str, JSON]] = []
    job.progress(before, total, name)
    for pair in test_set:
        scored = score_restoration(
            pair.corrupted, pair.clean, corruption=test_set.task.corruption, restore=restore
        )
        height, width = pair.clean.shape[:2]
        record: dict[str, JSON] = {"name": pair.name, "height": height, "width": width}
        record |= {"corrupted": scored.corrupted, "restored": scored.restored}
        if len(images) < PICTURES_PER_TEST_SET:
            stem = f"{name}-{_file_name(pair.name)}"
            record["pictures"] = _write_pictures(job.folder, stem, scored.pictures)
        images.append(record)
        job.progress(before + len(images) + len(test_set.skipped), total, f"{name}/{pair.name}")
        logger.info("%s/%s: %s", name, pair.name, _line(scored, test_set.task))
    if not images:
        skipped = "; ".join(f"{each['path']}: {each['reason']}" for each in test_set.skipped)
        raise StageError(f"evaluate.test_sets.{name}: no image could be used ({skipped})")
    mean = {
        version: mean_scores([image[version] for image in images])
        for version in ("corrupted", "restored")
    }
    return {
        "images": images,
        "mean": mean,
        "skipped": list(test_set.skipped),
        # Then the protocol's noise is not ours to state.
        "corrupted_is_given": test_set.is_given,
    }


def _write_pictures(
    folder: Path, stem: str, pictures: Mapping[str, "np.ndarray"]
) -> dict[str, str]:
    """Write each version of an image as PNG; returns their paths inside the artifact."""
    from PIL import Image

    paths = {version: f"images/{stem}-{version}.png" for version in pictures}
    for version, path in paths.items():
        Image.fromarray(pictures[version]).save(folder / path)
    return paths


def _file_name(name: str) -> str:
    """`name` without what a file system or a shell could trip over."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]
    return plain if plain == name else f"{plain}-{canonical_digest(name)[:6]}"


def _line(scored: "Scored", task: Task) -> str:
    values = (each["psnr_rgb"] for each in (scored.corrupted, scored.restored))
    texts = ("equal" if value is None else f"{value:.2f} dB" for value in values)
    return f"PSNR {'grey' if task.channels == 1 else 'RGB'} {' -> '.join(texts)}"


def _folder_listings(config: EvaluationConfig) -> dict[str, list[str]]:
    """Digests of the files behind every test set that lies in folders, by test set."""
    return {
        name: [
            folder_listing(Path(folder).expanduser())
            for folder in (test_set.path, test_set.corrupted)
            if folder is not None
        ]
        for name, test_set in config.test_sets.items()
        if test_set.path is not None
    }


def _stale(config: Section, manifest: Manifest) -> str | None:
    assert isinstance(config, EvaluationConfig)
    now = _folder_listings(config)
    for name, listed in manifest.summary["folders"].items():
        folder = config.test_sets[name].path
        # Photographs may be taken away once they are scored.
        if now[name] != listed and folder is not None and Path(folder).expanduser().is_dir():
            return f"the files of test set {name} changed"
    return None
