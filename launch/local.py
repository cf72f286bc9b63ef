"""Runs the graph on this machine, stage after stage."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launch.stage import make_room, run_stage, set_threads
from launch.terminal import STOPPED, USAGE, progress_line
from pipeline.artifacts import Artifact
from pipeline.config import RunConfig
from pipeline.config_file import ConfigError
from pipeline.graph import (
    Graph,
    Resolved,
    Stage,
    StageError,
    StoppedWithCheckpoint,
    resolve_stage,
)
from pipeline.training.placement import LaunchError, check_engine, share_out

logger = logging.getLogger(__name__)


def run_graph(
    graph: Graph,
    config: RunConfig,
    *,
    config_arguments: list[str],
    until: str | None = None,
    start: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Artifact]:
    """Make every stage that isn't done, in order; return the artifacts by name.

    `until` leaves out what that stage doesn't need. `start` requires everything before that stage
    to be done. `force` makes the chosen stages again: all of them, or those from `start` on.
    """
    check_launch(config)
    set_threads(config.runtime)
    run_folder = config.runtime.runs / config.name
    wanted = graph.upstream(until) if until else {stage.name for stage in graph.stages}
    chosen = wanted & graph.downstream(start) if start else wanted
    _check_test_sets(graph, config, run_folder)
    known: dict[str, Resolved] = {}
    artifacts: dict[str, Artifact] = {}
    for stage in graph.stages:
        resolved = known[stage.name] = resolve_stage(stage, known, run_folder)
        if stage.name not in wanted:
            continue
        again = force and stage.name in chosen
        if resolved.artifact is not None and resolved.state == "done" and not again:
            say(f"✓ {stage.name:<32} done ({resolved.reason})")
            artifacts[stage.name] = resolved.artifact
            continue
        if stage.name not in chosen:
            raise StageError(
                f"--from {start} needs {stage.name}, which is not done ({resolved.reason})"
            )
        say(f"▸ {stage.name:<32} {resolved.state}: {'--force' if again else resolved.reason}")
        inputs = {role: artifacts[parent.name] for role, parent in stage.inputs.items()}
        began = time.monotonic()
        if again or resolved.is_stale:
            assert resolved.folder is not None
            make_room(resolved.folder)
        _make(resolved, inputs, config, config_arguments)
        known[stage.name] = resolve_stage(stage, known, run_folder)
        artifact = known[stage.name].artifact
        assert artifact is not None, f"{stage.name} ended without its manifest"
        artifacts[stage.name] = artifact
        say(f"✓ {stage.name:<32} made in {time.monotonic() - began:.1f} s")
    return artifacts


def check_launch(config: RunConfig) -> None:
    """Refuse, before anything is made, what would fail only after hours: batches that the run's
    processes can't share."""
    engine = config.runtime.engine
    for name, training in config.trainings.items():
        try:
            check_engine("ddp" if engine == "launcher" else engine, training)
            share_out(training, config.runtime, rank=0, world_size=config.runtime.processes)
        except LaunchError as error:
            raise ConfigError(f"{name}: {error}") from None


def _check_test_sets(graph: Graph, config: RunConfig, run_folder: Path) -> None:
    """Refuse test sets that aren't there, unless everything was scored before they went."""
    resolved = graph.resolve(run_folder).values()
    if all(each.state == "done" for each in resolved if each.stage.kind == "evaluate"):
        return
    for name, test_set in config.evaluate.test_sets.items():
        for key, folder in (("path", test_set.path), ("corrupted", test_set.corrupted)):
            if folder is not None and not Path(folder).expanduser().is_dir():
                raise ConfigError(f"evaluate.test_sets.{name}.{key}: {folder}: no such folder")


def _make(
    resolved: Resolved,
    inputs: dict[str, Artifact],
    config: RunConfig,
    config_arguments: list[str],
) -> None:
    stage, runtime = resolved.stage, config.runtime
    needs_launcher = runtime.processes > 1 or runtime.engine.startswith("zero")
    if stage.launch == "distributed" and needs_launcher:
        _launch(stage, config, config_arguments)
        return
    with progress_line(stage.name) as progress:
        run_stage(resolved, inputs, runtime=runtime, progress=progress)


def _launch(stage: Stage, config: RunConfig, config_arguments: list[str]) -> None:
    """Start one process per device for a distributed stage and wait for them."""
    with tempfile.NamedTemporaryFile("r", prefix="ipt-outcome-") as outcome:
        command = launcher_command(stage.name, config, config_arguments)
        command += ["--outcome", outcome.name]
        logger.info("starting %s", " ".join(command))
        process = subprocess.Popen(command, env=os.environ | launcher_environment(config))
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # The terminal's Ctrl-C has reached the processes too: they checkpoint before they end.
            code = process.wait()
        codes = {int(line) for line in outcome}
    if code == 0:
        return
    # The launcher's own exit code says only that some process failed.
    if USAGE in codes:
        raise ConfigError(f"{stage.name}: see above")
    if codes == {STOPPED}:
        raise StoppedWithCheckpoint(f"{stage.name}: stopped with a checkpoint")
    raise StageError(f"{stage.name}: its processes ended with exit code {code}, see above")


def launcher_command(stage_name: str, config: RunConfig, config_arguments: list[str]) -> list[str]:
    """How the processes of a stage are started: accelerate, or torchrun for ddp on CPUs."""
    runtime = config.runtime
    program = [str(Path(__file__).with_name("stage.py")), *config_arguments, "--stage", stage_name]
    if runtime.engine in ("launcher", "ddp") and not has_gpu():
        # accelerate launch starts a single process on CPUs, whatever it is told.
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*torchrun, "--nproc_per_node", str(runtime.processes), *program]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    accelerate += ["--num_processes", str(runtime.processes), "--num_machines", "1"]
    accelerate += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if runtime.engine.startswith("zero"):
        accelerate += ["--use_deepspeed"]
    else:
        accelerate += ["--multi_gpu"]
    return [*accelerate, *program]


def launcher_environment(config: RunConfig) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(config.runtime.threads_per_process)}
    if not has_gpu():
        environment |= {"DS_ACCELERATOR": "cpu"}
        if not config.runtime.engine.startswith("zero"):
            environment |= {"ACCELERATE_USE_CPU": "true"}
    return environment


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA device, found without importing torch."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
