"""What a run is, as it stands on disk: plan, verify, and the table at its end."""

import sys
from pathlib import Path

from launch.local import check_launch
from launch.stage import config_arguments, run_command
from launch.terminal import FAILED, print_table
from pipeline.artifacts import Artifact, open_artifact, verify
from pipeline.benchmark_folders import find_benchmarks, listed
from pipeline.config import RunConfig
from pipeline.config_file import load_config
from pipeline.cost import IMAGENET_PHOTOGRAPHS, CorruptCost, corrupt_cost, few_files, read_rates
from pipeline.graph import Resolved, StageError
from pipeline.model_configs import IPTConfig
from pipeline.tasks import TASKS
from stages.recipe import build_graph, folders_read

MARKS = {"done": "✓", "resume": "▸", "fresh": "·"}


def plan(path: Path, overrides: tuple[str, ...]) -> int:
    """Print the graph with the state of each stage and why."""
    config, resolved = _resolve(path, overrides)
    check_launch(config)
    _print_header(path, config)
    _print_pretraining(config)
    _print_corrupting(config, resolved)
    _print_benchmarks(config)
    rows = [
        [MARKS[each.state], each.stage.name, each.state, each.reason, _needs(each)]
        for each in resolved.values()
    ]
    print_table(["", "stage", "state", "why", "reads"], rows)
    again = run_command(config_arguments(path, overrides))
    to_make = sum(each.state != "done" for each in resolved.values())
    print(f"\n{to_make} of {len(resolved)} stages to make: {again}")
    return 0


def verify_run(path: Path, overrides: tuple[str, ...]) -> int:
    """Hash every sealed file in the run's folder; name those that are not as they were."""
    config = load_config(path, overrides)
    run_folder = config.runtime.runs / config.name
    problems = []
    manifests = sorted(run_folder.glob("*/*/manifest.json"))
    for manifest in manifests:
        artifact = open_artifact(manifest.parent)
        assert artifact is not None
        found = verify(artifact)
        problems += found
        mark = "✗" if found else "✓"
        name = manifest.parent.relative_to(run_folder)
        print(f"{mark} {name!s:<46} {len(artifact.manifest.files)} files")
    if problems:
        again = run_command(config_arguments(path, overrides), "--from", "STAGE", "--force")
        raise StageError(
            "\n".join(problems) + f"\n{len(problems)} files are not as they were sealed; "
            f"make their stages again: {again}"
        )
    print(f"{len(manifests)} artifacts in {run_folder}: every file is as it was sealed")
    return 0


def print_outcome(artifacts: dict[str, Artifact]) -> None:
    """The verdict table, where the report is, and what to do next."""
    report = artifacts.get("report")
    if report is None:
        return
    print("\nPSNR in dB, and SSIM; the report has the protocol\n")
    header = ["task", "test set", "model", "PSNR RGB", "PSNR Y", "SSIM RGB", "SSIM Y"]
    rows = []
    for row in report.manifest.summary["rows"]:
        names = {"corrupted": "corrupted", "dncnn": "DnCNN", "ipt": "IPT"}
        for key, name in names.items():
            score = row.get(key)
            if score is not None:
                rows.append(
                    [
                        row["task"],
                        row["test_set"] + (" INCOMPLETE" if row["incomplete"] else ""),
                        name,
                        *(_decibels(score[key]) for key in ("psnr_rgb", "psnr_y")),
                        *(f"{score[key]:.4f}" for key in ("ssim_rgb", "ssim_y")),
                    ]
                )
    print_table(header, rows)
    print(
        f"""
report   {report.folder / "report.html"}

next     the paper's recipe on one node with 8 GPUs, then on SLURM:
         python -m launch run configs/imagenet.yaml --set runtime.processes=8
         python -m launch submit configs/imagenet.yaml --cluster configs/slurm/gpu.yaml"""
    )


def print_faults(artifacts: dict[str, Artifact]) -> int:
    """Name what the evaluations could not score as they were told to; the exit code."""
    faults = [
        f"  {name}: {fault}"
        for name, artifact in artifacts.items()
        for fault in artifact.manifest.summary.get("faults", ())
    ]
    if not faults:
        return 0
    print(
        "\n".join(["the scores are incomplete:", *faults, "mend that and run it again"]),
        file=sys.stderr,
    )
    return FAILED


def _decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"  # None: no error at all


def _resolve(path: Path, overrides: tuple[str, ...]) -> tuple[RunConfig, dict[str, Resolved]]:
    config = load_config(path, overrides)
    return config, build_graph(config).resolve(config.runtime.runs / config.name)


def _print_header(path: Path, config: RunConfig) -> None:
    print(f"{config.name}: {path}, in {config.runtime.runs / config.name}\n")


def _print_pretraining(config: RunConfig) -> None:
    """How large the pretraining is, by arithmetic."""
    training = config.pretrain
    if not training.tasks:
        return
    model = IPTConfig(size=config.ipt, scales={name: TASKS[name].scale for name in training.tasks})
    forward = sum(model.flops(name).total for name in training.tasks) / len(training.tasks)
    print(
        f"pretraining: {model.parameters:,} parameters, {training.samples:,} samples of "
        f"{forward / 1e9:.3g} GFLOP, {3 * forward * training.samples:.2g} FLOP with backward\n"
    )


def _print_corrupting(config: RunConfig, resolved: dict[str, Resolved]) -> None:
    """What all shards of the run cost, made or not, by the rates that a benchmark measured."""
    rates = read_rates()
    counts = {
        name: _photographs(config, name, resolved[f"source@{name}"]) for name in config.sources
    }
    rows: list[list[str]] = []
    total = CorruptCost(core_hours=0, bytes=0, files=0)
    for each in resolved.values():
        if each.stage.kind != "corrupt":
            continue
        task, _, source = each.stage.name.removeprefix("corrupt-").partition("@")
        photographs, validation, _ = counts[source]
        cost = corrupt_cost(
            rates, task, config.corrupt, photographs=photographs, validation=validation
        )
        if cost is None:
            rows.append([each.stage.name, "not measured", "", ""])
            continue
        total += cost
        rows.append([each.stage.name, *_cells(cost)])
    print("corrupting, by measured rates")
    for source, (photographs, _, origin) in counts.items():
        print(f"  {source}: {photographs:,} photographs, {origin}")
    name = "all" if all(row[-1] for row in rows) else "all measured"
    print_table(["stage", "core-hours", "TB", "files"], [*rows, [name, *_cells(total)]])
    print(f"  rates: {rates.measured}\n")


def _print_benchmarks(config: RunConfig) -> None:
    """Which benchmarks each model will be scored on, and which are not there."""
    if config.evaluate.benchmarks is None:
        return
    root = Path(config.evaluate.benchmarks).expanduser()
    print(f"benchmarks in {root}{'' if root.is_dir() else ', which is no folder'}")
    for name in dict.fromkeys([*config.finetune, *config.dncnn]) if root.is_dir() else ():
        found, missing = find_benchmarks(root, TASKS[name])
        if found or missing:
            print(f"  {name:<13}{listed(found, missing)}")
    print()


def _cells(cost: CorruptCost) -> list[str]:
    return [f"{cost.core_hours:.2f}", f"{cost.bytes / 1e12:.3f}", str(cost.files)]


def _photographs(config: RunConfig, name: str, source: Resolved) -> tuple[int, int, str]:
    """How many photographs a source has, how many of them train nothing, and who says so."""
    if source.artifact is not None:
        summary = source.artifact.manifest.summary
        return summary["images"], summary["validation"], "as listed"
    validation = config.sources[name].validation_images
    folders = {key: folder for key, _, folder in folders_read(config)}
    folder = folders.get(f"sources.{name}.path") or folders.get(f"sources.{name}.clean")
    files = few_files(folder) if folder is not None and folder.is_dir() else None
    if files is not None:
        return files, min(validation, files), "the files in its folder; not listed yet"
    return IMAGENET_PHOTOGRAPHS, validation, "ImageNet's number; not listed yet"


def _needs(resolved: Resolved) -> str:
    names = [stage.name for stage in resolved.stage.inputs.values()]
    return (
        ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    )
