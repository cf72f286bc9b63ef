import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_samples import SMALL, children_of, corrupted, is_running, write_photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shards of sr2."""
    photographs = write_photographs(tmp_path / "in", 14)
    return corrupted("sr2", photographs, tmp_path, config=SMALL).folder


TRAINING = """
import multiprocessing, sys, time
import torch
from pathlib import Path
sys.path.insert(0, {repository!r})
from pipeline.config import DataConfig
from pipeline.data.loader import training_batches
from pipeline.data.streams import open_stream
from pipeline.tasks import TASKS
if __name__ == "__main__":
    stream = open_stream(Path({folder!r}), TASKS["sr2"], split="train")
    loader = training_batches(
        {{"sr2": stream}}, config=DataConfig(), tasks_per_step="one", batch=12, micro_batch=12,
        seed=0, start_step=0, steps=10**9, rank=0, world_size=1, workers=2,
        device=torch.device("cpu"),
    )
    iterator = iter(loader)
    next(iterator)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    for line in sys.stdin:
        for _ in range(10):
            next(iterator)
        print("ten more", flush=True)
"""


@pytest.mark.slow
def test_workers_ignore_the_schedulers_signals_and_end_with_a_killed_training(
    folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "training.py"
    repository = str(Path(__file__).parents[1])
    script.write_text(TRAINING.format(repository=repository, folder=str(folder)))
    training = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert training.stdin is not None
    assert training.stdout is not None
    workers = [int(pid) for pid in training.stdout.readline().split()]
    assert len(workers) == 2

    for pid in [*children_of(training.pid), *workers]:  # with the server that they come from
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(pid, number)
    time.sleep(0.5)  # a signal that ends a worker has ended it by then
    training.stdin.write("go on\n")
    training.stdin.flush()
    assert training.stdout.readline() == "ten more\n"

    training.kill()
    training.wait()
    deadline = time.monotonic() + 15
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived the training that was killed"
        time.sleep(0.1)
