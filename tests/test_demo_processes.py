"""Pretraining of the whole graph in several processes, started by the run or by a launcher."""

import os
import subprocess
import sys

import pytest
from demo_run import ROOT, Run

from pipeline.artifacts import read_manifest


@pytest.mark.slow
def test_run_starts_the_processes_of_a_training(finished, tmp_path):
    run = Run(tmp_path)
    values = ["runtime.engine=zero3", "runtime.processes=2"]

    run("run", "--until", "pretrain", *(part for value in values for part in ("--set", value)))

    (folder,) = run.folder.glob("pretrain/*")
    assert read_manifest(folder).summary["world_size"] == 2
    assert "step 6/6" in (folder / "logs" / "log.txt").read_text()
    trained, reference = run.weights("pretrain"), finished.weights("pretrain")
    assert all(abs(trained[name] - reference[name]).max() < 1e-4 for name in reference)


def launched(run: Run, *launcher: str) -> subprocess.CompletedProcess[str]:
    """launch/pretrain.py under a launcher, from another folder than the checkout."""
    script = [str(ROOT / "launch" / "pretrain.py"), str(run.config)]
    return subprocess.run(
        [sys.executable, *launcher, *script, "--set", f"runtime.runs={run.folder.parent}"],
        cwd=run.config.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )


ACCELERATE = ("-m", "accelerate.commands.launch", "--num_machines", "1", "--main_process_port", "0")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no")


def test_pretraining_without_its_inputs_names_the_command_that_makes_them(tmp_path):
    run = Run(tmp_path)

    done = launched(run)

    assert done.returncode == 2
    assert "its inputs are not done: corrupt-sr2@photos" in done.stderr
    hint = f"run {run.config} --set runtime.runs={run.folder.parent} --before pretrain"
    assert f"python -m launch {hint}" in done.stderr
    assert not run.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [("--cpu", "--num_processes", "1"), ("--use_deepspeed", "--num_processes", "2")],
    ids=["one process", "DeepSpeed, two processes"],
)
def test_accelerate_launch_pretrains(finished, tmp_path, launcher):
    run = Run(tmp_path)
    run("run", "--before", "pretrain")

    done = launched(run, *ACCELERATE, *launcher)

    assert done.returncode == 0, done.stderr
    (folder,) = run.folder.glob("pretrain/*")
    manifest = read_manifest(folder)
    assert manifest.summary["world_size"] == int(launcher[-1])
    trained, reference = run.weights("pretrain"), finished.weights("pretrain")
    assert trained.keys() == reference.keys()
    for name in reference:  # sums over two processes are rounded in another order
        assert abs(trained[name] - reference[name]).max() < 1e-4, name
