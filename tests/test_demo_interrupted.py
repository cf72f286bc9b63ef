"""What can befall a run of the whole graph: kills, signals, and another run in the same place."""

import os
import random
import signal
import time

import pytest
from demo_run import Run, wait_for

from pipeline.artifacts import read_manifest
from pipeline.locks import holder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "moment"),
    [
        (signal.SIGKILL, "corrupt-sr4@photos/*/shards/*.tar"),
        (signal.SIGKILL, "pretrain/*/checkpoints/step-*2"),
        (signal.SIGINT, "pretrain/*/checkpoints/step-*2"),
    ],
    ids=["killed in corrupt", "killed in pretrain", "Ctrl-C in pretrain"],
)
def test_interrupted_run_goes_on_to_the_same_weights(finished, tmp_path, sent, moment):
    run = Run(tmp_path)
    process = run.start("run", "--until", "finetune-denoise30")
    wait_for(run, moment, process)
    os.kill(process.pid, sent)
    process.communicate(timeout=60)
    assert process.returncode != 0

    run("run", "--until", "finetune-denoise30")

    for stage in ("pretrain", "finetune-denoise30"):
        resumed, untouched = run.weights(stage), finished.weights(stage)
        assert resumed.keys() == untouched.keys()
        assert all((resumed[name] == untouched[name]).all() for name in untouched)


@pytest.mark.slow
def test_run_killed_again_and_again_ends_as_if_untouched(finished, tmp_path):
    """Five SIGKILLs, wherever they hit: in a stage, in a save, between two stages."""
    run = Run(tmp_path)
    moments = random.Random(0)
    for _ in range(5):
        process = run.start("run")
        time.sleep(moments.uniform(1.0, 7.0))
        process.kill()
        process.communicate(timeout=60)

    run("run")

    patterns = ("*/*/model/model.safetensors", "*/*/scores.json", "*/*/shards/*.tar")
    for pattern, count in zip(patterns, (4, 3, 30), strict=True):
        files = list(run.folder.glob(pattern))
        assert len(files) == count
        for path in files:
            untouched = finished.folder / path.relative_to(run.folder)
            assert path.read_bytes() == untouched.read_bytes(), path
    assert "every file is as it was sealed" in run("verify")


@pytest.mark.slow
def test_ctrl_c_to_a_run_of_two_processes_is_a_stop_with_a_checkpoint(tmp_path):
    run = Run(tmp_path)
    longer = ("--set", "runtime.processes=2", "--set", "pretrain.samples=48000")
    process = run.start("run", "--until", "pretrain", *longer)
    wait_for(run, "pretrain/*/checkpoints/step-*2", process)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=100)

    assert process.returncode == 75, output
    assert "pretrain: stopped with a checkpoint" in output


@pytest.mark.slow
def test_training_does_not_outlive_a_killed_run(tmp_path):
    run = Run(tmp_path)
    longer = ("--set", "runtime.processes=2", "--set", "pretrain.samples=48000")
    process = run.start("run", "--until", "pretrain", *longer)
    wait_for(run, "pretrain/*/checkpoints/step-*2", process)
    (folder,) = run.folder.glob("pretrain/*")

    process.kill()
    process.wait()

    until = time.monotonic() + 60
    while holder(folder) is not None:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert read_manifest(folder) is None


@pytest.mark.slow
def test_two_runs_at_once_do_the_work_once(tmp_path):
    run = Run(tmp_path)
    first = run.start("run", "--until", "pretrain")
    wait_for(run, "pretrain/*/logs/log.txt", first)

    refused = run("run", "--until", "pretrain", code=1)
    output, _ = first.communicate(timeout=200)

    assert "another run is writing here" in refused
    assert f'"pid": {first.pid}' in refused
    assert first.returncode == 0, output
