"""`ipt evaluate`: any weights, ours or imported, on every benchmark of a folder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.evaluation_table import print_evaluation
from launch.terminal import FAILED, CommandFailed, progress_line
from pipeline.artifacts import JSON, file_digest, write_json
from pipeline.benchmark_folders import find_benchmarks
from pipeline.benchmarks import benchmarks_for
from pipeline.config_file import ConfigError
from pipeline.model_configs import COLOURS, DnCNNConfig, IPTConfig
from pipeline.protocol import protocol
from pipeline.tasks import TASKS, GaussianNoise, Task, task_named

if TYPE_CHECKING:
    from pipeline.tiling import Tiling

GENERALISATION = (10.0, 30.0, 50.0, 70.0)  # σ: the paper's, trained for and not
GREY_LEVELS = (15.0, 25.0, 50.0)  # that Set12 and BSD68 are published at


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the weights are measured."""

    sigmas: tuple[float, ...] | None  # None: those of the paper
    clip_noise: bool | None  # None: as the family was published: IPT clips, DnCNN does not
    tiling: "Tiling"
    self_ensemble: bool
    batch: int | None
    device: str | None
    seed: int


def evaluate_weights(
    weights: Path, *, benchmarks: Path, out: Path, task: str | None, options: Options, force: bool
) -> int:
    """Score the model of the folder `weights` and write `out`/scores.json, anew after every task.

    The exit code is 1 where anything was left out of a benchmark, or is not as in it.
    """
    if not benchmarks.is_dir():
        raise ConfigError(f"--benchmarks {benchmarks}: no such folder")
    if (out / "scores.json").exists() and not force:
        raise ConfigError(f"{out / 'scores.json'} exists; choose another --out, or use --force")
    if task is not None and task not in TASKS:
        raise ConfigError(f"--task {task}: unknown; known: {', '.join(TASKS)}")

    from launch.restore_images import make_folder
    from pipeline.models.hub import ModelFileError, read_model_config

    import_module("pipeline.restorers")  # and with it every architecture that a folder may name
    try:
        config = read_model_config(weights)
    except ModelFileError as error:
        raise CommandFailed(f"--weights: {error}") from error
    tasks = _tasks(config, weights, task, options)
    there = [each for each in tasks if find_benchmarks(benchmarks, each)[0]]
    if not there:
        names = sorted({each.name for one in tasks for each in benchmarks_for(one)})
        raise ConfigError(
            f"--benchmarks {benchmarks}: none of {', '.join(names) or 'a known benchmark'}, which "
            f"measure {', '.join(each.name for each in tasks)}"
        )
    make_folder(out)
    began = time.monotonic()
    unmeasured = [each.name for each in tasks if each not in there]
    if isinstance(config, IPTConfig) and task is None:  # tasks of somebody's own
        unmeasured += [name for name in config.scales if name not in TASKS]
    records: list[dict[str, Any]] = []  # each as the scores.json of an evaluate stage
    evaluation: dict[str, JSON] = {
        "weights": str(weights),
        "sha256": file_digest(weights / "model.safetensors"),
        "architecture": "DnCNN" if isinstance(config, DnCNNConfig) else "IPT",
        "parameters": config.parameters,
        "benchmarks": str(benchmarks),
        "records": records,
        "without_benchmark": unmeasured,
    }
    for number, each in enumerate(there, start=1):
        records.append(
            _evaluate(each, config, weights, benchmarks=benchmarks, out=out, options=options)
        )
        evaluation["seconds"] = time.monotonic() - began
        evaluation["to_come"] = [later.name for later in there[number:]]
        evaluation["incomplete"] = number < len(there) or any(one["incomplete"] for one in records)
        write_json(out / "scores.json", evaluation)
    print_evaluation(evaluation, out)
    return FAILED if evaluation["incomplete"] else 0


def _tasks(
    config: IPTConfig | DnCNNConfig, weights: Path, given: str | None, options: Options
) -> list[Task]:
    """The tasks to measure the model at, under the noise convention asked for."""
    is_ipt = isinstance(config, IPTConfig)
    clip = is_ipt if options.clip_noise is None else options.clip_noise
    if isinstance(config, IPTConfig):
        known = {name: scale for name, scale in config.scales.items() if name in TASKS}
        restores = ", ".join(config.scales)
        if given is not None and given not in config.scales:
            raise ConfigError(f"--task {given}: {weights} restores {restores}")
        names = [given] if given is not None else list(known)
        if not names:
            raise ConfigError(f"{weights} restores {restores}, which no benchmark measures")
        for name in names:
            if config.scales[name] != TASKS[name].scale:
                raise ConfigError(
                    f"{weights}: its tail for {name} is of scale {config.scales[name]}, and the "
                    f"task of scale {TASKS[name].scale}"
                )
        return [task_named(name, clip_noise=clip) for name in names]
    if given is not None:
        task = task_named(given, clip_noise=clip)
        if task.scale != 1:
            raise ConfigError(
                f"--task {given}: {weights} is a DnCNN, which keeps the size of its input; it can "
                "be measured at ×1 tasks"
            )
        if task.channels != config.channels:
            raise ConfigError(
                f"--task {given}: its images have {task.channels} channels, and {weights} takes "
                f"{config.channels}"
            )
        return [task]
    name = "colour_blind" if config.channels == COLOURS else "grey_blind"
    blind = task_named(name, clip_noise=clip)
    return [replace(blind, name="denoising", title="Denoising")]  # nobody knows for which level


def levels(task: Task, given: Sequence[float] | None) -> tuple[float, ...]:
    """The σ that a denoiser is measured at beside its own."""
    if not isinstance(task.corruption, GaussianNoise):
        return ()
    if given is not None:
        return tuple(given)
    return (*GENERALISATION, *(GREY_LEVELS if task.channels == 1 else ()))


def _evaluate(
    task: Task,
    config: IPTConfig | DnCNNConfig,
    weights: Path,
    *,
    benchmarks: Path,
    out: Path,
    options: Options,
) -> dict[str, Any]:
    """The record of one task, as the scores.json of an evaluate stage, with the cost beside it."""
    import torch

    from launch.restore_images import open_device
    from pipeline.evaluation import benchmark_sets, faults_of, score_sets
    from pipeline.evaluation_cost import Meter
    from pipeline.models.hub import ModelFileError
    from pipeline.restorers import RestorerError, open_restorer

    is_ipt = isinstance(config, IPTConfig)
    sigmas = levels(task, options.sigmas)
    sets, missing, failed = benchmark_sets(
        benchmarks, task, sigmas=sigmas, seed=options.seed, only=options.sigmas is not None
    )
    device = open_device(options.device)
    try:
        restorer = open_restorer(
            weights,
            task=task.name if is_ipt else None,
            tiling=options.tiling if is_ipt else "overlap",
            ensemble=options.self_ensemble,
            batch=options.batch if is_ipt else None,
            device=device,
        )
    except ModelFileError as error:
        raise CommandFailed(f"--weights: {error}") from error
    except RestorerError as error:
        raise ConfigError(str(error)) from error
    meter = Meter(restorer.restore)
    folder = out / task.name
    folder.mkdir(exist_ok=True)
    with torch.inference_mode(), progress_line(task.name) as progress:
        scores, unusable = score_sets(sets, meter, folder=folder, progress=progress)
    tiling = options.tiling if is_ipt else None
    record: dict[str, Any] = {
        "model": "finetune" if is_ipt else "dncnn",
        "model_name": "IPT" if is_ipt else "DnCNN",
        "task": task.name,
        "protocol": protocol(
            task, tiling=tiling, self_ensemble=options.self_ensemble, seed=options.seed
        )
        | {"drawn": {}},  # benchmarks are measured at one level each
        "test_sets": scores,
        "failed": failed | unusable,
        "missing_benchmarks": missing,
    }
    faults = faults_of(record)
    cost = _cost(record, meter, config, device=device)
    return record | {"faults": faults, "incomplete": bool(faults), "cost": cost}


def _cost(
    record: dict[str, Any], meter: Any, config: IPTConfig | DnCNNConfig, *, device: Any
) -> dict[str, JSON]:
    from pipeline.evaluation_cost import PATCH, image_flops, parameters, patch_flops, peak_memory
    from pipeline.training.model_facts import device_name

    task = record["task"] if isinstance(config, IPTConfig) else None
    sizes = [
        (image["height"], image["width"])
        for scored in record["test_sets"].values()
        for image in scored["images"]
    ]
    flops = image_flops(
        config,
        task,
        sizes,
        tiling=record["protocol"]["tiling"],
        self_ensemble=record["protocol"]["self_ensemble"],
    )
    scored = sum(height * width for height, width in sizes) / 1e6
    return {
        "parameters": parameters(config, task),
        "patch_flops": patch_flops(config, task),
        "patch_size": config.size.patch_size if isinstance(config, IPTConfig) else PATCH,
        "flops_per_megapixel": flops / scored if scored else None,  # of the restored image
        "seconds_per_megapixel": meter.seconds / meter.pixels * 1e6 if meter.pixels else None,
        "megapixels": meter.pixels / 1e6,
        "peak_memory": peak_memory(device),
        "device": device_name(device),
    }
