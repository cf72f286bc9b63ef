"""Runs the graph on this machine, stage after stage."""

import logging
import os
import subprocess
import sys
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
    set_threads(config.runtime)
    run_folder = config.runtime.runs / config.name
    wanted = graph.upstream(until) if until else {stage.name for stage in graph.stages}
    chosen = wanted & graph.downstream(start) if start else wanted
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
                f"{stage.name}: not done ({resolved.reason}), but --from {start} needs it"
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


def _make(
    resolved: Resolved,
    inputs: dict[str, Artifact],
    config: RunConfig,
    config_arguments: list[str],
) -> None:
    stage, runtime = resolved.stage, config.runtime
    if stage.launch == "distributed" and runtime.processes > 1:
        _launch(stage, config, config_arguments)
        return
    with progress_line(stage.name) as progress:
        run_stage(resolved, inputs, runtime=runtime, progress=progress)


def _launch(stage: Stage, config: RunConfig, config_arguments: list[str]) -> None:
    """Start one process per device for a distributed stage and wait for them."""
    command = launcher_command(stage.name, config, config_arguments)
    environment = {**os.environ, **launcher_environment(config)}
    logger.info("starting %s", " ".join(command))
    process = subprocess.Popen(command, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # The terminal's Ctrl-C has reached the launcher too; it checkpoints before it ends.
        code = process.wait()
    if code == STOPPED:
        raise StoppedWithCheckpoint(f"{stage.name}: stopped with a checkpoint")
    if code == USAGE:
        raise ConfigError(f"{stage.name}: refused by its launcher, see above")
    if code:
        raise StageError(f"{stage.name}: ended with exit code {code}, see above and its log")


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
    elif runtime.processes > 1:
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
