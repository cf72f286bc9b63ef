import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_samples import SMALL, corrupted, write_photographs

TRAINING = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
import torch
from pipeline.config import DataConfig
from pipeline.data.loader import training_batches
from pipeline.data.streams import open_stream
from pipeline.tasks import TASKS
if __name__ == "__main__":
    streams = {{
        name: open_stream(Path({folder!r}) / name, TASKS[name], split="train")
        for name in ("sr2", "denoise30")
    }}
    start = int(sys.argv[1])
    batches = training_batches(
        streams, config=DataConfig(flips_and_rotations=True, lanes=2, window=1),
        tasks_per_step="one", batch=12, micro_batch=12, seed=0, start_step=start, steps=400,
        rank=0, world_size=1, workers=int(sys.argv[2]), device=torch.device("cpu"),
    )
    for step, batch in enumerate(batches, start):
        digest = hashlib.sha256()
        for name, images in batch.items():
            digest.update(name.encode())
            for each in images:
                digest.update(each.numpy().tobytes())
        print(step, digest.hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 14)
    for name in ("sr2", "denoise30"):
        corrupted(name, photographs, tmp_path, config=SMALL)
    script = tmp_path / "training.py"
    repository = str(Path(__file__).parents[1])
    script.write_text(TRAINING.format(repository=repository, folder=str(tmp_path)))

    def started(step: int, workers: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(step), str(workers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with started(0, workers=0) as whole:
        untouched = list(whole.stdout)
    assert len(untouched) == 400

    rng = np.random.default_rng(0)
    taken: list[str] = []
    kills = 0
    while len(taken) < 400:
        training = started(len(taken), workers=int(rng.integers(1, 4)))
        if kills < 5:
            for _ in range(int(rng.integers(1, 60))):  # at least one, so that it goes on
                taken.append(training.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
            training.send_signal(signal.SIGKILL)
            kills += 1
        rest, _ = training.communicate()
        taken += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]

    assert kills == 5
    assert taken == untouched
