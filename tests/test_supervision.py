"""How a stage answers the batch script that watches it, and SLURM's signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo_run import ROOT, Run

from launch import supervision
from launch.supervision import accounted, postponed, stopped_by_signals, touching
from pipeline.graph import StageError, StoppedWithCheckpoint, report_nothing

# Holds a folder's lock, watched, until it is ended or has waited long enough.
WATCHED = """
import sys, time
from pathlib import Path
from launch.supervision import ended_when_taken_over
from pipeline.locks import writing
folder = Path(sys.argv[1])
with writing(folder), ended_when_taken_over(folder):
    print("held", flush=True)
    time.sleep(30)
"""

# Ends beside threads of torch at work, which abort a process that takes Python apart.
BUSY = """
import atexit, sys, threading, time
import torch
from launch.supervision import leave
def work():
    ones = torch.ones(1000)
    while True:
        ones + ones
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
atexit.register(lambda: sys.stderr.write("ended a tracker\\n"))
print("written, not flushed")
leave(75)
"""


def test_a_signal_that_comes_too_early_is_there_for_the_handler_that_comes_later():
    received = []
    with postponed(signal.SIGUSR2):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.2)
        before = signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))
        until = time.monotonic() + 20
        while not received and time.monotonic() < until:
            time.sleep(0.05)
        signal.signal(signal.SIGUSR2, before)

    assert received == [signal.SIGUSR2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stage_without_steps_stops_at_the_signals_of_a_scheduler(number):
    with pytest.raises(StoppedWithCheckpoint, match=f"report: stopped by {number.name}"):
        stopped_while_asleep(number)


def stopped_while_asleep(number: signal.Signals) -> None:
    with stopped_by_signals("report"):
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_a_stopped_array_stage_ends_with_75_and_goes_on(finished, tmp_path):
    run = Run(tmp_path)
    run("run", "--until", "source@photos")
    outcome = tmp_path / "outcome"
    command = [sys.executable, str(ROOT / "launch" / "stage.py"), str(run.config)]
    command += ["--set", f"runtime.runs={run.folder.parent}", "--stage", "corrupt-sr2@photos"]
    command += ["--outcome", str(outcome), "--account", str(tmp_path / "job")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list(run.folder.glob("corrupt-sr2@photos/*/shards/.*.tmp")):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR2)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 75, said
    assert "corrupt-sr2@photos: stopped by SIGUSR2" in said
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert outcome.read_text() == "75\n0\n"
    assert (tmp_path / "job.alive").exists()
    assert not (tmp_path / "job.why").exists()
    for path in run.folder.glob("corrupt-sr2@photos/*/shards/*.tar"):
        untouched = finished.folder / path.relative_to(run.folder)
        assert path.read_bytes() == untouched.read_bytes()


def test_what_failed_is_left_for_the_batch_script(tmp_path):
    with pytest.raises(StageError), accounted(str(tmp_path / "a")):
        raise StageError("shards missing")
    with pytest.raises(KeyError), accounted(str(tmp_path / "b")):
        raise KeyError("x")
    with pytest.raises(StoppedWithCheckpoint), accounted(str(tmp_path / "c")):
        raise StoppedWithCheckpoint

    assert (tmp_path / "a.why").read_text() == "shards missing\n"
    assert (tmp_path / "b.why").read_text() == "KeyError: 'x'\n"
    assert not (tmp_path / "c.why").exists()


def test_progress_touches_the_sign_of_life_and_is_passed_on(tmp_path):
    seen = []
    file = tmp_path / "alive"

    def see(done: int, total: int, note: str = "") -> None:
        seen.append((done, total, note))

    touching(file, see)(1, 2, "a")
    assert file.exists()
    touching(tmp_path / "other", report_nothing)(1, 2)

    assert seen == [(1, 2, "a")]


def test_progress_that_says_the_same_again_is_no_sign_of_life(tmp_path, monkeypatch):
    """As of an array whose workers all wait for a disk."""
    monkeypatch.setattr(supervision, "SECONDS_BETWEEN_SIGNS", 0.0)
    file = tmp_path / "alive"
    progress = touching(file, report_nothing)

    def is_touched(*told: object) -> bool:
        file.unlink(missing_ok=True)
        progress(*told)
        return file.exists()

    assert is_touched(1, 9, "shard 1")
    assert not is_touched(1, 9, "shard 1")
    assert is_touched(2, 9, "shard 1")
    assert is_touched(2, 9, "shard 2")
    assert not is_touched(2, 9, "shard 2")


def test_a_process_ends_when_its_lock_is_taken_over(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "held\n"
    other = tmp_path / "other"
    other.write_text("another run")

    other.rename(tmp_path / ".lock")
    _, said = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "another run has taken over here (another run)" in said
    assert Path(tmp_path / ".lock").read_text() == "another run"


def test_a_process_that_leaves_is_not_aborted_by_threads_of_torch():
    ended = subprocess.run(
        [sys.executable, "-c", BUSY], capture_output=True, text=True, cwd=ROOT, check=False
    )

    assert ended.returncode == 75
    assert ended.stdout == "written, not flushed\n"
    assert ended.stderr.startswith("ended a tracker\n")
