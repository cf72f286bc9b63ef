"""Several processes: every engine takes the steps of one process, and stops as one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import TRAININGS, Launched, command, environment, launcher, run, trainings_of
from torch import Tensor

from benchmarks.process_tree import rank_of
from tests.training_toys import FINAL, everything, toy_config, toy_fit

# Sums over processes in another order, through Adam.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
Trains = Callable[[str, int], Launched]


def _reference(folder: Path, training: dict[str, dict]) -> dict[str, Tensor]:
    """The same training in one process; its samples and their order are the same."""
    toy_fit(
        folder,
        config=toy_config(**training.get("config", {})),
        poisoned_steps=tuple(training.get("poisoned_steps", ())),
    )
    return everything(folder / FINAL)


def _compare(folder: Path, names: list[str], tmp_path: Path, *, engine: str) -> None:
    for name in names:
        training = trainings_of(engine)[name]
        expected = _reference(tmp_path / "reference" / name, training)
        found = everything(folder / name / FINAL)
        assert found.keys() == expected.keys()
        for tensor in expected:
            torch.testing.assert_close(
                found[tensor], expected[tensor], **TOLERANCE, msg=lambda m, t=tensor: f"{t}: {m}"
            )
        state = json.loads((folder / name / FINAL / "manifest.json").read_text())["summary"]
        skipped = len(training.get("poisoned_steps", ()))
        assert state["skipped"] == skipped
        assert state["adam_steps"]["body"] == 12 - skipped
        assert sum(state["samples_by_task"].values()) == 144


# Those with the contrastive term are compared with plain PyTorch, in test_gradients.py.
COMPARED = ["clipped", "poisoned", "poisoned in all"]


def test_ddp_in_two_processes_takes_the_steps_of_one_without_importing_deepspeed(
    launched: Trains, tmp_path: Path
) -> None:
    ddp = launched("ddp", 2)

    assert ddp.output.count("imported: torch\n") == 2 * len(trainings_of("ddp"))
    # Else a thread of gloo may abort a process after all is done.
    assert ddp.output.count("ends on its own") == 2
    _compare(ddp.folder, COMPARED, tmp_path, engine="ddp")


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("zero1", COMPARED),
        pytest.param("zero0", COMPARED, marks=pytest.mark.slow),
        pytest.param("zero2", COMPARED, marks=pytest.mark.slow),
        pytest.param("zero3", ["poisoned in all", "clipped in all"], marks=pytest.mark.slow),
    ],
)
def test_zero_in_two_processes_takes_the_steps_of_one(
    launched: Trains, tmp_path: Path, engine: str, names: list[str]
) -> None:
    _compare(launched(engine, 2).folder, names, tmp_path, engine=engine)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero1", marks=pytest.mark.chaos),
    ],
)
def test_three_processes_take_the_steps_of_one(tmp_path: Path, engine: str) -> None:
    names = ["clipped", "poisoned"]
    run(launcher(engine, 3), tmp_path / "three", {name: TRAININGS[name] for name in names})

    _compare(tmp_path / "three", names, tmp_path, engine=engine)


@pytest.mark.parametrize(
    ("engine", "processes"),
    # In three processes a sum depends on its order, which ddp would change after the first step.
    # All engines in two: test_resume, without batch normalisation.
    [
        pytest.param("zero1", 2, marks=pytest.mark.chaos),
        pytest.param("zero3", 2, marks=pytest.mark.slow),
        pytest.param("ddp", 3, marks=pytest.mark.slow),
    ],
)
def test_resumed_in_several_processes_gives_the_same_bits(
    tmp_path: Path, engine: str, processes: int
) -> None:
    config = {"tasks_per_step": "all", "batch": 18, "samples": 12 * 18, "ema_decay": 0.9}
    training = {"toy": {"config": config, "normalises": True}}
    starts = launcher(engine, processes)
    run(starts, tmp_path / "whole", training)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "toy" / FINAL)  # goes on from step 8

    run(starts, tmp_path / "resumed", training)

    expected = everything(tmp_path / "whole" / "toy" / FINAL)
    found = everything(tmp_path / "resumed" / "toy" / FINAL)
    assert "weights/body.1.running_var" in expected
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


@pytest.mark.slow
def test_a_checkpoint_goes_from_engine_to_engine_and_over_world_sizes(tmp_path: Path) -> None:
    training = {"config": {"tasks_per_step": "all"}}
    expected = _reference(tmp_path / "reference", training)
    chain = tmp_path / "chain"
    launchers = [*(launcher(each, 2) for each in ("zero3", "ddp", "zero2")), [sys.executable]]
    for steps, starts in zip((3, 6, 9, 12), launchers, strict=True):
        # Shorter trainings, with the learning rate of the whole one.
        drop = {"samples": steps * 12, "drop_at": min(1, 8 / steps)}
        config = training["config"] | drop
        run(starts, chain, {"toy": {"config": config}})

    found = everything(chain / "toy" / FINAL)
    for tensor in expected:
        torch.testing.assert_close(found[tensor], expected[tensor], **TOLERANCE)


@pytest.mark.slow
def test_a_signal_to_one_rank_checkpoints_all_at_one_step(tmp_path: Path) -> None:
    long = {"toy": {"config": {"samples": 12 * 100_000}, "runtime": {"log_every_steps": 10}}}
    starts = launcher("ddp", 2)
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            command(starts, tmp_path, long), env=environment(starts, tmp_path), stderr=file
        )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "toy" / "checkpoints").is_dir():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(rank_of(process.pid, 1), signal.SIGUSR2)
        process.wait(timeout=120)
    finally:
        process.kill()

    assert process.returncode != 0  # toy workers end with the exception
    stops = re.findall(r"stopped after step (\d+) of 100000 with a checkpoint", output.read_text())
    assert len(stops) >= 2  # each rank's, and what the launcher repeats
    assert len(set(stops)) == 1
    assert (tmp_path / "toy" / "checkpoints" / f"step-{int(stops[0]):08d}").is_dir()
