"""A training in which nothing moves is ended, and says where it stood."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import Runtime
from pipeline.training.watchdog import Watchdog, watched

HANGS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pipeline.config import Runtime
from pipeline.training.watchdog import watched

def wait_for_a_rank_that_is_gone():
    time.sleep(60)

runtime = Runtime(stall_seconds=0.4, first_step_seconds=1.5)
with watched(3, runtime, Path(sys.argv[2])) as watchdog:
    if sys.argv[3] == "later":
        for _ in range(3):
            time.sleep(0.01)
            watchdog.stepped()
    wait_for_a_rank_that_is_gone()
"""


@pytest.mark.parametrize(("when", "least"), [("later", 0.4), ("in the first step", 1.5)])
def test_a_process_that_hangs_is_ended_with_its_stacks(tmp_path: Path, when, least) -> None:
    began = time.monotonic()
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", HANGS, root, tmp_path / "logs", when],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 1
    assert least < time.monotonic() - began
    assert "rank 3: nothing has moved for" in done.stderr
    stacks = (tmp_path / "logs" / "stalled-rank-3.txt").read_text()
    assert "wait_for_a_rank_that_is_gone" in stacks
    assert "wait_for_a_rank_that_is_gone" in done.stderr


def test_a_training_that_moves_is_left_alone(tmp_path: Path) -> None:
    runtime = Runtime(stall_seconds=0.3, first_step_seconds=30)
    with watched(0, runtime, tmp_path) as watchdog:
        time.sleep(0.6)  # the first step
        watchdog.stepped()
        for _ in range(4):
            time.sleep(0.1)
            watchdog.stepped()

    assert not (tmp_path / "stalled-rank-0.txt").exists()


def test_a_process_that_was_suspended_itself_goes_on(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    steps = HANGS.replace(
        "wait_for_a_rank_that_is_gone()\n", "print('stepped', flush=True); time.sleep(0.2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", steps, root, tmp_path / "logs", "later"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)  # as Ctrl-Z does, or SLURM to make room
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)

    assert process.wait(timeout=30) == 0


def test_a_slow_training_may_take_20_of_its_usual_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watchdog = Watchdog(rank=0, first=3600, least=600, stacks=tmp_path / "stacks.txt")
    limits = []
    for seconds in (1000, 50, 50, 50):  # the first one compiles
        now[0] += seconds
        watchdog.stepped()
        limits.append(watchdog.limit)

    assert limits == [3600, 1000, 1000, 1000]
