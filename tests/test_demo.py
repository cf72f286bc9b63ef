"""The whole graph, at a size that takes seconds: what make demo does, and what can befall it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pipeline.artifacts import holder, read_manifest

ROOT = Path(__file__).parents[1]
TINY = """
sources:
  photos: {path: "package:assets/photos", held_out: [chelsea.png]}
corrupt: {crops_per_image: 8, samples_per_shard: 8}
rain_layers: {layers: 2, size: 128}
ipt: {features: 4, encoder_layers: 1, decoder_layers: 1, attention_heads: 4}
pretrain:
  tasks_per_step: all
  samples: 144
  batch: 24
  precision: float32
  contrastive: {images: 2}
finetune:
  denoise30: {samples: 24, batch: 4, precision: float32}
  sr2: {samples: 24, batch: 4, precision: float32}
dncnn:
  denoise30: {model: {depth: 3, features: 4}, samples: 80, batch: 8, statistics_batch: 4}
evaluate:
  test_sets: {held-out: {source: photos}}
runtime: {workers: 0, log_every_steps: 1, checkpoint_every_steps: 2, images_every_steps: 3}
"""
STAGES = {
    "source@photos",
    "rain-layers",
    *(
        f"corrupt-{task}@photos"
        for task in ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")
    ),
    "pretrain",
    "finetune-denoise30",
    "finetune-sr2",
    "dncnn-denoise30",
    "evaluate-finetune-denoise30",
    "evaluate-finetune-sr2",
    "evaluate-dncnn-denoise30",
    "report",
}


def stages_made(output: str) -> set[str]:
    return {line.split()[1] for line in output.splitlines() if " made in " in line}


class Run:
    """A run in a folder of its own, driven as a person drives it: by the command line."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY)
        self.folder = folder / "runs" / "tiny"

    def command(self, command: str, *arguments: str) -> list[str]:
        runs = f"runtime.runs={self.folder.parent}"
        return [
            sys.executable,
            "-m",
            "launch",
            command,
            str(self.config),
            "--set",
            runs,
            *arguments,
        ]

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(command, *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        with self.start(command, *arguments) as process:
            output, _ = process.communicate(timeout=240)
        assert process.returncode == code, output
        return output

    def made(self, *arguments: str) -> set[str]:
        return stages_made(self("run", *arguments))

    def weights(self, stage: str) -> dict:
        (path,) = self.folder.glob(f"{stage}/*/model/model.safetensors")
        return load_file(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("finished"))
    run.output = run("run")
    return run


def test_graph_runs_from_photographs_to_the_report(finished):
    (report,) = finished.folder.glob("report/*/report.html")

    assert {
        line.split()[1] for line in finished.output.splitlines() if " made in " in line
    } == STAGES
    assert str(report) in finished.output
    assert "smoke test" in report.read_text()
    for words in ("denoise30", "DnCNN", "IPT", "PSNR RGB", "SSIM Y", "sbatch"):
        assert words in finished.output


def test_second_run_makes_nothing(finished):
    assert finished.made() == set()


def test_one_changed_fine_tuning_value_remakes_its_stage_its_scores_and_the_report(finished):
    made = finished.made("--set", "finetune.sr2.learning_rate=1e-5")

    assert made == {"finetune-sr2", "evaluate-finetune-sr2", "report"}


def test_runtime_values_remake_nothing(finished):
    assert (
        finished.made("--set", "runtime.log_every_steps=7", "--set", "runtime.workers=1") == set()
    )


def test_plan_and_status_show_every_stage(finished):
    for command in ("plan", "status"):
        output = finished(command)
        assert all(stage in output for stage in STAGES)
    assert "0 of 16 stages to make" in finished("plan")


def test_plan_of_the_papers_recipe_says_what_it_costs():
    command = [sys.executable, "-m", "launch", "plan", "imagenet"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert "118,892,370 parameters, 384,000,000 samples" in done.stdout
    assert "7.7e+19 FLOP" in done.stdout


def test_output_that_nobody_reads_is_no_traceback():
    command = f"{sys.executable} -m launch plan imagenet | head -1"

    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.stdout.startswith("imagenet")
    assert done.stderr == ""


def test_verify_names_the_file_that_was_altered(finished):
    assert "every file is as it was sealed" in finished("verify")
    shard = next(finished.folder.glob("corrupt-sr2@photos/*/shards/*.tar"))
    content = shard.read_bytes()

    shard.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    try:
        output = finished("verify", code=1)
        assert f"{shard}: altered" in output
        assert "✗ corrupt-sr2@photos" in output
    finally:
        shard.write_bytes(content)


def wait_for(run: Run, pattern: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not list(run.folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)


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


def test_source_that_is_not_there_leaves_what_is_done_as_it_is(finished):
    before = sorted(finished.folder.glob("*/*/manifest.json"))

    refused = finished("run", "--set", "sources.photos.path=/nowhere", code=2)

    assert "sources.photos.path: /nowhere: no such folder" in refused
    assert sorted(finished.folder.glob("*/*/manifest.json")) == before


def test_test_set_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    run = Run(tmp_path)

    refused = run("run", "--set", "evaluate.test_sets.Set5={path: nowhere}", code=2)

    assert "evaluate.test_sets.Set5.path: nowhere: no such folder" in refused
    assert not run.folder.exists()


@pytest.mark.slow
def test_run_killed_again_and_again_ends_as_if_untouched(finished, tmp_path):
    """Eight SIGKILLs, wherever they hit: in a stage, in a save, between two stages."""
    run = Run(tmp_path)
    moments = random.Random(0)
    for _ in range(8):
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
@pytest.mark.parametrize(("engine", "processes"), [("ddp", 2), ("zero2", 2), ("zero1", 1)])
def test_run_starts_the_processes_of_a_training(finished, tmp_path, engine, processes):
    run = Run(tmp_path)
    values = [f"runtime.engine={engine}", f"runtime.processes={processes}"]

    run("run", "--until", "pretrain", *(part for value in values for part in ("--set", value)))

    (folder,) = run.folder.glob("pretrain/*")
    assert read_manifest(folder).summary["world_size"] == processes
    assert "step 6/6" in (folder / "logs" / "log.txt").read_text()
    trained, reference = run.weights("pretrain"), finished.weights("pretrain")
    assert all(abs(trained[name] - reference[name]).max() < 1e-4 for name in reference)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_a_run_of_two_processes_is_a_stop_with_a_checkpoint(tmp_path, sent):
    run = Run(tmp_path)
    longer = ("--set", "runtime.processes=2", "--set", "pretrain.samples=48000")
    process = run.start("run", "--until", "pretrain", *longer)
    wait_for(run, "pretrain/*/checkpoints/step-*2", process)

    os.killpg(process.pid, sent)  # as a terminal's Ctrl-C does
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


def test_two_runs_at_once_do_the_work_once(tmp_path):
    run = Run(tmp_path)
    first = run.start("run", "--until", "pretrain")
    wait_for(run, "pretrain/*/logs/log.txt", first)

    refused = run("run", "--until", "pretrain", code=1)
    output, _ = first.communicate(timeout=200)

    assert "another run is writing here" in refused
    assert f'"pid": {first.pid}' in refused
    assert first.returncode == 0, output


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
