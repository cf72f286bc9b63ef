"""Trainings on toys in several processes, under every engine. Imports no torch."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("distributed_worker.py")
# The recipe at its smallest, an IPT with the contrastive term on: a checkpoint after every step,
# and two micro-batches of each process where there are two.
CONTRASTED = {
    "is_ipt": True,
    "config": {
        "batch": 24,
        "samples": 12 * 24,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "contrastive": {"weight": 0.1, "images": 2},
    },
    "runtime": {
        "micro_batch": 6,
        "log_every_steps": 1,
        "checkpoint_every_steps": 1,
        "keep_checkpoints": 12,
    },
}
TRAININGS: dict[str, dict] = {
    "contrasted one": CONTRASTED,
    "contrasted all": CONTRASTED | {"config": CONTRASTED["config"] | {"tasks_per_step": "all"}},
    "clipped": {"config": {"clip_norm": 20.0, "ema_decay": 0.9}, "runtime": {"micro_batch": 3}},
    "poisoned": {"poisoned_steps": [0, 3, 4], "runtime": {"micro_batch": 3}},
    "normalised in all": {"normalises": True, "config": {"tasks_per_step": "all"}},
    "poisoned in all": {
        "poisoned_steps": [0, 3, 4],
        "config": {"tasks_per_step": "all", "ema_decay": 0.9},
    },
}
# One step: what follows differs by more than the sums.
TRAININGS["bfloat16 in all"] = CONTRASTED | {
    "config": CONTRASTED["config"]
    | {"tasks_per_step": "all", "samples": CONTRASTED["config"]["batch"], "precision": "bfloat16"}
}
# One step on groups of eight, cut in other ways; the contrastive term outweighs the other.
CUT_BATCHES: dict[str, dict] = {
    f"micro-batch {size}": {
        "config": {"batch": 96, "samples": 96, "contrastive": {"weight": 100.0, "images": 8}},
        "runtime": {"micro_batch": size, "log_every_steps": 1},
    }
    for size in (8, 16, 48)
}


def trainings_of(engine: str) -> dict[str, dict]:
    """What `launched` trains under an engine: no idle heads under ZeRO 3, which is refused."""
    if engine == "zero3":
        every = {"config": {"clip_norm": 20.0, "tasks_per_step": "all"}}
        dense = {name: each for name, each in TRAININGS.items() if name.endswith(" all")}
        return dense | {"clipped in all": every}
    return TRAININGS | (CUT_BATCHES if engine == "ddp" else {})


@dataclass(frozen=True, kw_only=True)
class Launched:
    """The finished trainings of `trainings_of`, a folder each."""

    folder: Path
    output: str  # of all processes
    compiled: Path  # where torch would put extensions that it compiles


def launcher(engine: str, processes: int) -> list[str]:
    if engine == "ddp":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*torchrun, "--nproc_per_node", str(processes)]
    machine = ["--num_machines", "1", "--main_process_port", "0"]
    return [*accelerate(engine, processes), *machine]


def accelerate(engine: str, processes: int) -> list[str]:
    """Without the options that say on which machines."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed"]
    launch += ["--zero_stage", engine.removeprefix("zero"), "--num_processes", str(processes)]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no"]


def command(launcher: list[str], folder: Path, trainings: dict[str, dict]) -> list[str]:
    """What starts the trainings, each in a folder of its name; an existing one goes on."""
    request = {
        name: {"folder": str(folder / name)} | training for name, training in trainings.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(json.dumps(request))
    return [*launcher, str(WORKER), str(folder / "request.json")]


def environment(launcher: list[str], folder: Path) -> dict[str, str]:
    """What that command needs to see; extensions are compiled where no other run waits for them."""
    variables = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
    }
    if "torch.distributed.run" in launcher:
        variables["ACCELERATE_USE_CPU"] = "true"
    return variables


def run(launcher: list[str], folder: Path, trainings: dict[str, dict]) -> str:
    """Finish the trainings; what their processes printed."""
    done = launch(launcher, folder, trainings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launch(
    launcher: list[str], folder: Path, trainings: dict[str, dict]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(launcher, folder, trainings),
        env=environment(launcher, folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
