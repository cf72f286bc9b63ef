"""A job of SLURM begins before its node may see what another node has made."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from demo_run import ROOT, Run

from launch import stage as program
from launch.supervision import accounted
from launch.terminal import FAILED, exit_code_of
from pipeline.artifacts import MANIFEST
from pipeline.config_file import load_config

STAGE = "corrupt-derain@photos"


@pytest.fixture
def rain(finished, tmp_path) -> Run:
    """A run in which all that rainy shards are made from is there."""
    run = Run(tmp_path)
    for name in ("source@photos", "rain-layers"):
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", finished.folder / name, run.folder / name], check=True)
    return run


def account(run: Run) -> str:
    """As a batch script names it."""
    return str(run.config.parent / "7-0")


@pytest.mark.slow
def test_what_comes_into_sight_later_is_waited_for(rain):
    (manifest,) = rain.folder.glob(f"rain-layers/*/{MANIFEST}")
    hidden = manifest.rename(manifest.with_name(".hidden"))
    command = [sys.executable, str(ROOT / "launch" / "stage.py"), str(rain.config)]
    command += ["--set", f"runtime.runs={rain.folder.parent}"]
    command += ["--stage", STAGE, "--account", account(rain)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    timer = threading.Timer(3, hidden.rename, (manifest,))
    timer.start()
    _, said = process.communicate(timeout=120)

    assert process.returncode == 0, said
    assert not timer.is_alive()
    assert list(rain.folder.glob(f"{STAGE}/*/{MANIFEST}"))


def test_what_never_comes_into_sight_is_a_failure_that_may_pass(rain, monkeypatch, capsys):
    """Not one of the config: those are never tried again."""
    (manifest,) = rain.folder.glob(f"rain-layers/*/{MANIFEST}")
    manifest.unlink()
    monkeypatch.setattr(program, "set_threads", lambda runtime: None)  # of this process
    monkeypatch.setattr(program, "SECONDS_UNTIL_SEEN", 0.5)
    monkeypatch.setattr(program, "SECONDS_BETWEEN_LOOKS", 0.1)
    began = time.monotonic()

    with exit_code_of() as outcome, accounted(account(rain)):
        program._run_named(
            load_config(rain.config, (f"runtime.runs={rain.folder.parent}",)),
            [],
            STAGE,
            part=(0, 1),
            account=account(rain),
        )

    assert outcome.code == FAILED
    assert time.monotonic() - began >= 0.5
    assert Path(f"{account(rain)}.why").exists()
    assert "its inputs are not done: rain-layers" in capsys.readouterr().err
