"""The batch script of a stage: stage.sbatch.j2 filled in from the run and the cluster."""

import math
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cluster import Cluster, Resources
from launch.local import launcher_environment
from pipeline.config import RunConfig
from pipeline.config_file import ConfigError
from pipeline.graph import Stage
from pipeline.training.placement import LaunchError, check_sharing

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("stage.sbatch.j2")
PROGRAM = Path(__file__).with_name("stage.py")
SLURM_FOLDER = "slurm"  # in the run's folder
SECONDS_TO_BEGIN = 600  # of a training, before its own watchdog does


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is submitted from and to."""

    config: RunConfig
    snapshot: Path  # the run's config as it was submitted
    cluster: Cluster

    @property
    def run_folder(self) -> Path:
        return (self.config.runtime.runs / self.config.name).absolute()

    @property
    def folder(self) -> Path:
        return self.run_folder / SLURM_FOLDER


def job_name(config: RunConfig, stage: Stage) -> str:
    return f"{config.name}:{stage.name}"


def processes_per_node(resources: Resources, config: RunConfig) -> int:
    return resources.gpu_count or config.runtime.processes


def check_processes(config: RunConfig, cluster: Cluster, stages: tuple[Stage, ...]) -> None:
    """Refuse nodes and processes that a training's batch can't be divided over."""
    for stage in stages:
        if stage.launch != "distributed":
            continue
        training = config.trainings[stage.name.replace("-", ".", 1)]
        resources = cluster.resources(stage)
        world_size = (resources.nodes or 1) * processes_per_node(resources, config)
        try:
            check_sharing(training, config.runtime, world_size=world_size)
        except LaunchError as error:
            raise ConfigError(
                f"{stage.name} on {resources.nodes or 1} nodes with "
                f"{processes_per_node(resources, config)} processes each: {error}"
            ) from None


def render(stage: Stage, place: Place) -> str:
    """The batch script of a stage, as it is submitted."""
    config, cluster = place.config, place.cluster
    resources = cluster.resources(stage)
    is_array = stage.launch == "array"
    nodes = (resources.nodes or 1) if stage.launch == "distributed" else 1
    processes = processes_per_node(resources, config) if stage.launch == "distributed" else 1
    launcher = _launcher(stage, config, resources, nodes=nodes, processes=processes)
    return _template().render(
        stage=stage.name,
        run=config.name,
        job_name=job_name(config, stage),
        directory=Path.cwd(),
        folder=place.folder,
        stage_folder=place.run_folder / stage.name,
        log=place.folder / "logs" / f"{stage.name}-{'%A_%a' if is_array else '%j'}.log",
        is_array=is_array,
        is_launched=bool(launcher),
        parts=resources.parts or 1,
        nodes=nodes,
        processes=nodes * processes,
        cpus=resources.cpus or 1,
        options=_options(resources, cluster),
        further_options=resources.options or (),
        setup=cluster.setup,
        srun_options=cluster.srun_options,
        threads=config.runtime.threads_per_process,
        environment=_environment(place, resources, is_launched=bool(launcher)),
        command=_command(stage, place, launcher),
        seconds_before_limit=cluster.seconds_before_limit,
        hung_after_seconds=cluster.hung_after_seconds,
        first_sign_seconds=_first_sign_seconds(stage, place),
        starts_without_progress=cluster.starts_without_progress,
    )


def _first_sign_seconds(stage: Stage, place: Place) -> int:
    """After which a stage without any sign of life hangs. A training is given the time for its
    first step by its own watchdog, which knows more, and comes first."""
    hung = place.cluster.hung_after_seconds
    if stage.launch != "distributed":
        return hung
    return max(hung, math.ceil(place.config.runtime.first_step_seconds) + SECONDS_TO_BEGIN)


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    jinja = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    jinja.filters["sh"] = lambda value: shlex.quote(str(value))
    return jinja.from_string(TEMPLATE.read_text())


def _options(resources: Resources, cluster: Cluster) -> list[tuple[str, object]]:
    gpus = resources.gpus or None
    named = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "gpus-per-node": gpus if cluster.gpus_as == "gpus-per-node" else None,
        "gres": f"gpu:{gpus}" if gpus and cluster.gpus_as == "gres" else None,
        "mem": resources.memory,
        "time": resources.time,
    }
    return [(name, value) for name, value in named.items() if value is not None]


def _launcher(
    stage: Stage, config: RunConfig, resources: Resources, *, nodes: int, processes: int
) -> str:
    """The launcher's part of the command; empty where one process is enough."""
    engine = config.runtime.engine
    is_zero = engine.startswith("zero")
    if stage.launch != "distributed" or (nodes * processes == 1 and not is_zero):
        return ""
    address = '"$MASTER_ADDR"'
    if not resources.gpu_count and not is_zero:
        # accelerate launch starts a single process on CPUs, whatever it is told.
        return (
            f"-m torch.distributed.run --nnodes {nodes} --nproc_per_node {processes} \\\n"
            f'    --node_rank "$SLURM_NODEID" --master_addr {address} --master_port "$MASTER_PORT"'
        )
    kind = "--use_deepspeed --deepspeed_multinode_launcher standard" if is_zero else "--multi_gpu"
    return (
        f"-m accelerate.commands.launch {kind} \\\n"
        "    --mixed_precision no --dynamo_backend no \\\n"
        f"    --num_machines {nodes} --num_processes {nodes * processes} \\\n"
        f'    --machine_rank "$SLURM_NODEID" --main_process_ip {address} \\\n'
        '    --main_process_port "$MASTER_PORT"'
    )


def _environment(place: Place, resources: Resources, *, is_launched: bool) -> list[str]:
    on_gpus = bool(resources.gpu_count)
    # On CPUs, whatever the node has.
    variables = {} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    if is_launched:
        seconds = place.cluster.seconds_before_limit
        variables |= launcher_environment(place.config, on_gpus=on_gpus, seconds_to_save=seconds)
    return [f"export {name}={value}" for name, value in variables.items()]


def _command(stage: Stage, place: Place, launcher: str) -> str:
    """What every node's bash runs, given a file for exit codes and further options."""
    cluster = place.cluster
    python = f"{cluster.container} {cluster.python or shlex.quote(sys.executable)}".strip()
    program = f"{shlex.quote(str(PROGRAM))} {shlex.quote(str(place.snapshot))}"
    lines = [
        'trap "" USR2',
        *([f"exec {python} {launcher} \\", f"  {program} \\"] if launcher else []),
        *([] if launcher else [f"exec {python} {program} \\"]),
        f'  --stage {stage.name} --account "$1" --outcome "$1.outcome-$SLURM_NODEID" \\',
        '  "${@:2}"',
    ]
    return "\n  ".join(["", *lines]) + "\n"
