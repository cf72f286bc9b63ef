"""Runs the graph on this machine, stage after stage."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.begun import refuse_in_requeue
from launch.stage import make_room, run_command, run_stage, set_threads
from launch.supervision import end_with_parent, stopped_by_signals
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
from pipeline.locks import writing
from pipeline.signal_handlers import handling
from pipeline.training.placement import LaunchError, check_sharing
from stages.recipe import folders_read

logger = logging.getLogger(__name__)

SECONDS_TO_SAVE = 300  # a checkpoint, once a training is asked to stop
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def run_graph(
    graph: Graph,
    config: RunConfig,
    *,
    config_arguments: list[str],
    until: str | None = None,
    before: str | None = None,
    start: str | None = None,
    force: bool = False,
    part: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = print,
) -> dict[str, Artifact]:
    """Make every stage that isn't done, in order; return the artifacts by name.

    `until` leaves out what that stage doesn't need, `before` also the stage itself. `start`
    requires everything before that stage to be done. `force` makes the chosen stages again: all of
    them, or those from `start` on. `part` i of n makes that part of the array stages and what they
    need, and leaves out what needs all parts.
    """
    check_launch(config)
    set_threads(config.runtime)
    run_folder = config.runtime.runs / config.name
    if part[1] > 1 and force:
        raise ConfigError("--force: parts of an array would set aside each other's work")
    wanted = _wanted(graph, until, before, in_parts=part[1] > 1)
    chosen = wanted & graph.downstream(start) if start else wanted
    if not chosen:
        raise ConfigError(f"--from {start}: nothing of it is left by --until, --before or --parts")
    check_folders(graph, config, run_folder)
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
            _make_room(resolved, config_arguments, in_parts=part[1] > 1)
        _make(resolved, inputs, config, config_arguments, part)
        known[stage.name] = resolve_stage(stage, known, run_folder)
        artifact = known[stage.name].artifact
        assert artifact is not None or part[1] > 1, f"{stage.name} ended without its manifest"
        if artifact is not None:
            artifacts[stage.name] = artifact
        mark, what = ("✓", "made") if artifact else ("▸", f"part {part[0]} of {part[1]} made")
        say(f"{mark} {stage.name:<32} {what} in {time.monotonic() - began:.1f} s")
    return artifacts


def _wanted(graph: Graph, until: str | None, before: str | None, *, in_parts: bool) -> set[str]:
    wanted = {stage.name for stage in graph.stages}
    if until is not None:
        wanted &= graph.upstream(until)
    if before is not None:
        wanted &= graph.upstream(before) - {before}
    return wanted & graph.upstream_of_arrays() if in_parts else wanted


def _make_room(resolved: Resolved, config_arguments: list[str], *, in_parts: bool) -> None:
    """Set aside what is to be made again."""
    if in_parts:  # each would set aside what another has just made
        again = run_command(config_arguments, "--until", resolved.stage.name)
        raise StageError(f"{resolved.stage.name}: {resolved.reason}; make it again first: {again}")
    assert resolved.folder is not None
    make_room(resolved.folder)


def check_launch(config: RunConfig) -> None:
    """Refuse, before anything is made, what would fail only after hours: batches that the run's
    processes can't share."""
    for name, training in config.trainings.items():
        try:
            check_sharing(training, config.runtime, world_size=config.runtime.processes)
        except LaunchError as error:
            raise ConfigError(f"{name}: {error}") from None


def check_folders(graph: Graph, config: RunConfig, run_folder: Path) -> None:
    """Refuse folders that aren't there, unless what reads them is done."""
    resolved = graph.resolve(run_folder)
    for key, stage_name, folder in folders_read(config):
        readers = [
            each
            for each in resolved.values()
            if each.stage.name == stage_name or each.stage.kind == stage_name
        ]
        if any(each.state != "done" for each in readers) and not folder.is_dir():
            raise ConfigError(f"{key}: {folder}: no such folder")


def _make(
    resolved: Resolved,
    inputs: dict[str, Artifact],
    config: RunConfig,
    config_arguments: list[str],
    part: tuple[int, int],
) -> None:
    stage, runtime = resolved.stage, config.runtime
    needs_launcher = runtime.processes > 1 or runtime.engine.startswith("zero")
    if stage.launch == "distributed" and needs_launcher:
        assert resolved.folder is not None
        refuse_in_requeue(resolved, inputs)  # in one sentence, not one of each process
        resolved.folder.mkdir(parents=True, exist_ok=True)
        with writing(resolved.folder):
            pass  # a second run hears of the first here, in one sentence
        _launch(stage, config, config_arguments)
        return
    with progress_line(stage.name) as progress, stopped_by_signals(stage.name):
        run_stage(resolved, inputs, runtime=runtime, progress=progress, part=part)


def _launch(stage: Stage, config: RunConfig, config_arguments: list[str]) -> None:
    """Start one process per device for a distributed stage and wait for them."""
    with tempfile.NamedTemporaryFile("r", prefix="ipt-outcome-") as outcome:
        command = launcher_command(stage.name, config, config_arguments)
        command += ["--outcome", outcome.name]
        logger.info("starting %s", " ".join(command))
        process = subprocess.Popen(
            command,
            env=os.environ | launcher_environment(config, on_gpus=has_gpu()),
            start_new_session=True,  # a terminal's Ctrl-C comes through us, once
            preexec_fn=end_with_parent,
        )
        with _passing_on_signals(process):
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


@contextmanager
def _passing_on_signals(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Meanwhile, what asks this process to stop asks the launcher, which asks its processes."""

    def pass_on(*_: object) -> None:
        process.send_signal(signal.SIGTERM)

    with handling(STOP_SIGNALS, pass_on):
        yield


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


def launcher_environment(
    config: RunConfig, *, on_gpus: bool, seconds_to_save: int = SECONDS_TO_SAVE
) -> dict[str, str]:
    """What the launcher must be told; the threads are in our own environment already."""
    # Torch's launcher, asked to stop, kills its processes after 30 s; from 2.12 on, after these.
    variables = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(30, seconds_to_save))}
    if on_gpus:
        return variables
    if config.runtime.engine.startswith("zero"):
        return variables | {"DS_ACCELERATOR": "cpu"}
    return variables | {"ACCELERATE_USE_CPU": "true"}


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA device, found without importing torch."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
