"""What befalls a pretraining in several processes, and that the same command goes on from it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from demo_run import Run, wait_for

from benchmarks.kill_pretrain import kill_and_compare, prepare
from benchmarks.process_tree import is_alive, kill_tree, process_tree, rank_of
from pipeline.training.checkpoint import CheckpointError
from tests.training_toys import (
    FINAL,
    everything,
    toy_batches,
    toy_config,
    toy_fit,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "runs")


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        pytest.param("ddp", "export", marks=pytest.mark.slow),
        pytest.param("zero0", "save", marks=pytest.mark.chaos),
        pytest.param("zero1", "rotation", marks=pytest.mark.slow),
        pytest.param("zero2", "rename", marks=pytest.mark.chaos),
        pytest.param("zero3", "random", marks=pytest.mark.chaos),
    ],
)
def test_killed_in_all_processes_the_same_command_ends_with_the_same_bits(
    prepared: Path, tmp_path: Path, engine: str, moment: str
) -> None:
    # It raises where a bit differs from a run that was never disturbed.
    place = tmp_path / "runs"
    kills, ends = kill_and_compare(place, prepared, engine, 1, 2, moments=(moment,), steps=12)

    assert len(kills) == 1
    assert ends >= 1


@contextmanager
def training(tmp_path: Path, engine: str, *options: str) -> Iterator[tuple[Run, subprocess.Popen]]:
    """A long pretraining in two processes that has saved a checkpoint."""
    run = Run(tmp_path)
    values = [
        "runtime.processes=2",
        f"runtime.engine={engine}",
        "pretrain.samples=480000",
        *options,
    ]
    sets = [part for value in values for part in ("--set", value)]
    process = run.start("run", "--until", "pretrain", *sets)
    try:
        wait_for(run, "pretrain/*/checkpoints/step-*", process)
        yield run, process
    finally:
        kill_tree(process.pid)
        process.communicate()


@pytest.mark.parametrize(
    "engine",
    [pytest.param("ddp", marks=pytest.mark.slow), pytest.param("zero1", marks=pytest.mark.chaos)],
)
def test_when_one_rank_is_killed_the_others_end_within_seconds(tmp_path: Path, engine: str) -> None:
    with training(tmp_path, engine) as (_, process):
        tree = process_tree(process.pid)
        began = time.monotonic()
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 1, output
    assert "pretrain: its processes ended with exit code 1" in output
    while left := [pid for pid in tree if is_alive(pid)]:
        assert time.monotonic() - began < 20, left
        time.sleep(0.1)


@pytest.mark.chaos
def test_when_one_rank_stands_still_the_watchdog_ends_the_run_with_stacks(tmp_path: Path) -> None:
    with training(tmp_path, "zero1", "runtime.stall_seconds=4") as (run, process):
        began = time.monotonic()
        stopped = rank_of(process.pid, 1)
        os.kill(stopped, signal.SIGSTOP)
        output, _ = process.communicate(timeout=120)

    # 4 s; then the launcher gives the one that is stopped 30 s to end.
    assert time.monotonic() - began < 90
    assert process.returncode == 1, output
    assert "rank 0: nothing has moved for" in output
    (stacks,) = run.folder.glob("pretrain/*/logs/stalled-rank-0.txt")
    assert "torch_engine.py" in stacks.read_text()
    assert not is_alive(stopped)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_asked_to_stop_all_ranks_save_one_step_and_end_with_75(tmp_path: Path, sent) -> None:
    with training(tmp_path, "zero2") as (run, process):
        began = time.monotonic()
        os.kill(process.pid, sent)
        output, _ = process.communicate(timeout=60)

    assert time.monotonic() - began < 20
    assert process.returncode == 75, output
    (log,) = run.folder.glob("pretrain/*/logs/log.txt")
    saved = re.findall(r"saved step-0*(\d+) in", log.read_text())
    assert set(re.findall(r"stopped after step (\d+) of", output)) == {saved[-1]}, output


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own, of that size, mounted at `folder`."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ipt-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a file system can't be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fit_with(folder: Path, happens: dict[int, object]) -> None:
    """Train a toy; before the batch of a step, what is to happen then happens."""

    def batches(place, device):
        for number, batch in enumerate(toy_batches(toy_config(), place), place.start_step):
            if number in happens:
                happens[number]()
            yield batch

    toy_fit(folder, given={"batches": batches})


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_disk_that_is_full_or_read_only_ends_it_and_nothing_is_lost(tmp_path: Path, what) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    filler = checkpoints / ".filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                continue

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(checkpoints)], check=True)

    with small_disk(checkpoints, "1m"):

        def befall() -> None:
            while not (checkpoints / "step-00000004").exists():  # it is written beside the steps
                time.sleep(0.01)
            fill() if what == "full" else remount("ro")

        complaint = "step-00000008: this checkpoint can't be written"
        with pytest.raises(CheckpointError, match=complaint):
            fit_with(tmp_path / "run", {6: befall})
        kept = sorted(path.name for path in checkpoints.iterdir() if path.name.startswith("step-"))
        assert kept == ["step-00000004"]

        if what == "full":
            filler.unlink()
        else:
            remount("rw")
        fit_with(tmp_path / "run", {})
        found = everything(tmp_path / "run" / FINAL)

    toy_fit(tmp_path / "whole")
    expected = everything(tmp_path / "whole" / FINAL)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
