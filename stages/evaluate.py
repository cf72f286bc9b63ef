"""Scores a model on photographs that no stage trained on, and keeps a few of its pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pipeline.artifacts import JSON, Manifest, canonical_digest, folder_listing, write_json
from pipeline.benchmark_folders import find_benchmarks
from pipeline.benchmarks import benchmarks_for
from pipeline.config import EvaluateConfig, TestSetConfig
from pipeline.config_file import ConfigError
from pipeline.config_section import Section
from pipeline.graph import Job, Stage, StageError
from pipeline.protocol import protocol
from pipeline.tasks import GaussianNoise, Task

if TYPE_CHECKING:
    from pipeline.evaluation import NamedSet

ModelKind = Literal["pretrain", "finetune", "dncnn"]
BENCHMARKS = "benchmarks/"  # the names of their listings begin so, as no test set's does


class EvaluationConfig(Section):
    """What decides the scores of one model."""

    model: ModelKind
    task: Task
    test_sets: dict[str, TestSetConfig]
    benchmarks: str | None = None
    sigmas: tuple[float, ...] = ()  # that benchmarks are corrupted by, beside the task's own
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
    """The stage that scores `model` at `task` on the test sets and benchmarks that are for it.

    Where the config names no test set at all: on the validation images of every source.
    """
    named = config.test_sets or {name: TestSetConfig(source=name) for name in sources}
    test_sets = {
        name: test_set
        for name, test_set in named.items()
        if test_set.tasks is None or task.name in test_set.tasks
    }
    benchmarks = config.benchmarks if benchmarks_for(task) else None
    if not test_sets and benchmarks is None:  # said now, not after a long training
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
        version=5,
        config=EvaluationConfig(
            model=cast(ModelKind, model.kind),
            task=task,
            test_sets=test_sets,
            benchmarks=benchmarks,
            sigmas=config.sigmas if benchmarks and _is_denoising(task) else (),
            tiling=None if model.kind == "dncnn" else config.tiling,
            self_ensemble=config.self_ensemble,
            seed=config.seed,
        ),
        run=run,
        inputs=inputs,
        stale=_stale,
    )


def _is_denoising(task: Task) -> bool:
    return isinstance(task.corruption, GaussianNoise)


def run(job: Job) -> dict[str, JSON]:
    import torch

    from pipeline.data.source import SourceError
    from pipeline.evaluation import faults_of, score_sets
    from pipeline.models.hub import ModelFileError
    from pipeline.restorers import RestorerError, open_restorer

    config = job.config
    assert isinstance(config, EvaluationConfig)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Taken first: what changes while the scoring runs must look changed afterwards.
    folders = _folder_listings(config)
    try:
        sets, missing, failed = _open(job, config)
        restorer = open_restorer(
            job.inputs["model"].folder / "model",
            task=None if config.tiling is None else config.task.name,
            tiling=config.tiling or "overlap",
            ensemble=config.self_ensemble,
            device=device,
        )
        with torch.inference_mode():
            scores, unusable = score_sets(
                sets, restorer.restore, folder=job.folder, progress=job.progress
            )
    except (SourceError, ModelFileError, RestorerError) as error:
        raise StageError(str(error)) from error
    failed |= unusable
    if not scores:
        reasons = "; ".join(f"evaluate.test_sets.{name}: {why}" for name, why in failed.items())
        nothing = f"evaluate.benchmarks: {config.benchmarks}: none of {', '.join(missing)}"
        raise StageError(reasons or nothing)
    record = {
        "model": config.model,
        "model_name": "DnCNN" if config.model == "dncnn" else "IPT",
        "task": config.task.name,
        "protocol": protocol(
            config.task,
            tiling=config.tiling,
            self_ensemble=config.self_ensemble,
            seed=config.seed,
        ),
        "test_sets": scores,
        "failed": failed,  # by test set: why it gave no score
        "missing_benchmarks": missing,
    }
    faults = faults_of(record)
    write_json(job.folder / "scores.json", record | {"incomplete": bool(faults)})
    return {
        "task": config.task.name,
        "model": config.model,
        "mean": {name: each["mean"] for name, each in scores.items()},
        "images": sum(len(each["images"]) for each in scores.values()),
        "faults": faults,
        "missing_benchmarks": missing,
        "folders": folders,
        # Photographs in folders are in no config: what depends on the scores follows them too.
        "identity": canonical_digest({"fingerprint": job.fingerprint, "folders": folders}),
    }


def _open(job: Job, config: EvaluationConfig) -> tuple[list["NamedSet"], list[str], dict[str, str]]:
    """The test sets and benchmarks, the benchmarks that are missing, and what can't be opened."""
    from pipeline.data.rain_bank import open_layers
    from pipeline.data.source_index import SourceIndex
    from pipeline.data.testset_pairs import TestSetError
    from pipeline.data.testsets import open_test_set
    from pipeline.evaluation import NamedSet, benchmark_sets

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
    sets: list[NamedSet] = []
    failed: dict[str, str] = {}
    for name, given in config.test_sets.items():
        try:
            test_set = open_test_set(
                given, config.task, seed=config.seed, sources=sources, rain_layers=layers
            )
        except TestSetError as error:
            failed[name] = str(error)
        else:
            sets.append(NamedSet(name=name, test_set=test_set))
    missing: list[str] = []
    if config.benchmarks is not None:
        found, missing, unopened = benchmark_sets(
            Path(config.benchmarks).expanduser(),
            config.task,
            sigmas=config.sigmas,
            seed=config.seed,
        )
        sets += [each for each in found if each.name not in config.test_sets]
        failed |= unopened
    return sets, missing, failed


def _folder_listings(config: EvaluationConfig) -> dict[str, list[str]]:
    """Digests of the files behind every test set that lies in folders, by test set."""
    listings = {
        name: [
            folder_listing(Path(folder).expanduser())
            for folder in (test_set.path, test_set.corrupted)
            if folder is not None
        ]
        for name, test_set in config.test_sets.items()
        if test_set.path is not None
    }
    root = Path(config.benchmarks).expanduser() if config.benchmarks else None
    if root is not None and root.is_dir():
        found, _ = find_benchmarks(root, config.task)
        listings |= {
            f"{BENCHMARKS}{each.benchmark.name}": [folder_listing(each.folder)] for each in found
        }
    return listings


def _stale(config: Section, manifest: Manifest) -> str | None:
    assert isinstance(config, EvaluationConfig)
    now, then = _folder_listings(config), manifest.summary["folders"]
    for name, listed in then.items():
        # Photographs may be taken away once they are scored.
        if name.startswith(BENCHMARKS):
            is_changed = name in now and now[name] != listed
        else:
            folder = config.test_sets[name].path
            is_there = folder is not None and Path(folder).expanduser().is_dir()
            is_changed = is_there and now[name] != listed
        if is_changed:
            return f"the files of {_titled(name)} changed"
    added = [_titled(name) for name in now if name not in then]
    return f"{', '.join(added)} has been added" if added else None


def _titled(name: str) -> str:
    benchmark = name.removeprefix(BENCHMARKS)
    return f"test set {name}" if benchmark == name else f"benchmark {benchmark}"
