"""Several processes: every engine takes the steps of one process, and stops as one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training_toys import FINAL, everything, toy_config, toy_fit

WORKER = Path(__file__).with_name("distributed_worker.py")
# Sums over processes in another order, through Adam.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
TRAININGS: dict[str, dict[str, dict]] = {
    "one": {},
    "all": {"config": {"tasks_per_step": "all"}},
    "clipped": {"config": {"clip_norm": 20.0, "ema_decay": 0.9}, "runtime": {"micro_batch": 3}},
    "poisoned": {"poisoned_steps": [0, 3, 4]},
    "poisoned in all": {
        "poisoned_steps": [0, 3, 4],
        "config": {"tasks_per_step": "all", "ema_decay": 0.9},
    },
}


def _launch_ddp(processes: int = 2) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc_per_node", str(processes)]


def _launch_zero(stage: int, processes: int = 2) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed"]
    launch += ["--zero_stage", str(stage), "--num_processes", str(processes)]
    launch += ["--num_machines", "1", "--main_process_port", "0"]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no"]


def _command(launcher: list[str], folder: Path, trainings: dict[str, dict]) -> list[str]:
    request = {
        name: {"folder": str(folder / name)} | training for name, training in trainings.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(json.dumps(request))
    return [*launcher, str(WORKER), str(folder / "request.json")]


def _environment(launcher: list[str]) -> dict[str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if "torch.distributed.run" in launcher:
        environment["ACCELERATE_USE_CPU"] = "true"
    return environment


def _run(launcher: list[str], folder: Path, trainings: dict[str, dict]) -> str:
    done = subprocess.run(
        _command(launcher, folder, trainings),
        env=_environment(launcher),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _reference(folder: Path, training: dict[str, dict]) -> dict[str, Tensor]:
    """The same training in one process; its samples and their order are the same."""
    toy_fit(
        folder,
        config=toy_config(**training.get("config", {})),
        poisoned_steps=tuple(training.get("poisoned_steps", ())),
    )
    return everything(folder / FINAL)


def _compare(folder: Path, names: list[str], tmp_path: Path) -> None:
    for name in names:
        expected = _reference(tmp_path / "reference" / name, TRAININGS[name])
        found = everything(folder / name / FINAL)
        assert found.keys() == expected.keys()
        for tensor in expected:
            torch.testing.assert_close(
                found[tensor], expected[tensor], **TOLERANCE, msg=lambda m, t=tensor: f"{t}: {m}"
            )
        state = json.loads((folder / name / FINAL / "manifest.json").read_text())["summary"]
        skipped = len(TRAININGS[name].get("poisoned_steps", ()))
        assert state["skipped"] == skipped
        assert state["adam_steps"]["body"] == 12 - skipped
        assert sum(state["samples_by_task"].values()) == 144


def test_ddp_in_two_processes_takes_the_steps_of_one_without_importing_deepspeed(
    tmp_path: Path,
) -> None:
    output = _run(_launch_ddp(), tmp_path / "ddp", TRAININGS)

    assert output.count("imported: torch\n") == 2 * len(TRAININGS)
    # Else a thread of gloo may abort a process after all is done.
    assert output.count("ends on its own") == 2
    _compare(tmp_path / "ddp", list(TRAININGS), tmp_path)


def test_zero1_in_two_processes_takes_the_steps_of_one(tmp_path: Path) -> None:
    _run(_launch_zero(1), tmp_path / "zero", TRAININGS)

    _compare(tmp_path / "zero", list(TRAININGS), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_other_zero_stages_take_the_steps_of_one_process(tmp_path: Path, stage: int) -> None:
    names = ["all", "poisoned in all"] if stage == 3 else list(TRAININGS)

    _run(_launch_zero(stage), tmp_path / "zero", {name: TRAININGS[name] for name in names})

    _compare(tmp_path / "zero", names, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [_launch_ddp(3), _launch_zero(1, 3)])
def test_three_processes_take_the_steps_of_one(tmp_path: Path, launcher: list[str]) -> None:
    names = ["one", "poisoned"]
    _run(launcher, tmp_path / "three", {name: TRAININGS[name] for name in names})

    _compare(tmp_path / "three", names, tmp_path)


LAUNCHERS = {
    "ddp": _launch_ddp(),
    "zero0": _launch_zero(0),
    "zero1": _launch_zero(1),
    "zero2": _launch_zero(2),
    "zero3": _launch_zero(3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAUNCHERS))
def test_resumed_in_two_processes_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    training = {"config": {"tasks_per_step": "all", "ema_decay": 0.9}, "normalises": True}
    _run(LAUNCHERS[name], tmp_path / "whole", {"toy": training})
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "toy" / FINAL)  # goes on from step 8

    _run(LAUNCHERS[name], tmp_path / "resumed", {"toy": training})

    expected = everything(tmp_path / "whole" / "toy" / FINAL)
    found = everything(tmp_path / "resumed" / "toy" / FINAL)
    assert "weights/body.1.running_var" in expected
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


@pytest.mark.slow
def test_a_checkpoint_goes_from_engine_to_engine_and_over_world_sizes(tmp_path: Path) -> None:
    training = TRAININGS["all"]
    expected = _reference(tmp_path / "reference", training)
    chain = tmp_path / "chain"
    launchers = [LAUNCHERS["zero3"], LAUNCHERS["ddp"], LAUNCHERS["zero2"], [sys.executable]]
    for steps, launcher in zip((3, 6, 9, 12), launchers, strict=True):
        # Shorter trainings, with the learning rate of the whole one.
        drop = {"samples": steps * 12, "drop_at": min(1, 8 / steps)}
        config = training["config"] | drop
        _run(launcher, chain, {"toy": {"config": config}})

    found = everything(chain / "toy" / FINAL)
    for tensor in expected:
        torch.testing.assert_close(found[tensor], expected[tensor], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero1"])
def test_a_signal_to_one_rank_checkpoints_all_at_one_step(tmp_path: Path, name: str) -> None:
    long = {"toy": {"config": {"samples": 12 * 100_000}, "runtime": {"log_every_steps": 10}}}
    launcher = LAUNCHERS[name]
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            _command(launcher, tmp_path, long), env=_environment(launcher), stderr=file
        )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "toy" / "checkpoints").is_dir():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(_rank_of(process.pid, 1), signal.SIGUSR2)
        process.wait(timeout=120)
    finally:
        process.kill()

    assert process.returncode != 0  # toy workers end with the exception
    stops = re.findall(r"stopped after step (\d+) of 100000 with a checkpoint", output.read_text())
    assert len(stops) >= 2  # each rank's, and what the launcher repeats
    assert len(set(stops)) == 1
    assert (tmp_path / "toy" / "checkpoints" / f"step-{int(stops[0]):08d}").is_dir()


def _rank_of(launcher: int, rank: int) -> int:
    """The process id of a rank among the children of a launcher."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")
