"""A job of SLURM begins before its node may see what another node has made."""

import os
import subprocess
import sys
import threading
import time

import pytest
from demo_run import ROOT, Run

from launch import stage as program
from launch.terminal import FAILED
from pipeline.artifacts import MANIFEST


@pytest.fixture
def rain(finished, tmp_path) -> Run:
    """A run in which all that rainy shards are made from is there."""
    run = Run(tmp_path)
    for name in ("source@photos", "rain-layers"):
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", finished.folder / name, run.folder / name], check=True)
    return run


def arguments(run: Run) -> list[str]:
    runs = f"runtime.runs={run.folder.parent}"
    return [str(run.config), "--set", runs, "--stage", "corrupt-derain@photos"]


def test_what_comes_into_sight_later_is_waited_for(rain):
    (manifest,) = rain.folder.glob(f"rain-layers/*/{MANIFEST}")
    hidden = manifest.rename(manifest.with_name(".hidden"))
    command = [sys.executable, str(ROOT / "launch" / "stage.py"), *arguments(rain)]
    environment = os.environ | {"SLURM_JOB_ID": "7"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    timer = threading.Timer(4, hidden.rename, (manifest,))
    timer.start()
    _, said = process.communicate(timeout=120)

    assert process.returncode == 0, said
    assert not timer.is_alive()
    assert list(rain.folder.glob(f"corrupt-derain@photos/*/{MANIFEST}"))


def test_what_never_comes_into_sight_is_a_failure_that_may_pass(rain, monkeypatch, capsys):
    """Not one of the config: those are never tried again."""
    (manifest,) = rain.folder.glob(f"rain-layers/*/{MANIFEST}")
    manifest.unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(program, "SECONDS_UNTIL_SEEN", 0.5)
    began = time.monotonic()

    code = program.run_one(arguments(rain))

    assert code == FAILED
    assert time.monotonic() - began >= 0.5
    assert "its inputs are not done: rain-layers" in capsys.readouterr().err
