"""`ipt export`: the bits of a checkpoint in a model folder, whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_run import Run
from PIL import Image
from safetensors.torch import load_file
from training_toys import toy_batches, toy_config, toy_runtime

from launch.__main__ import main
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.ipt import IPT
from pipeline.training.loop import fit
from pipeline.training.model_facts import ModelFacts
from pipeline.training.objectives import RestorationObjective

ROOT = Path(__file__).parents[1]
TASKS = ("denoise30", "denoise50")
SIZE = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=6)
FINGERPRINT = "f0e1" * 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with checkpoints at steps 8 and 12, with an average of the weights."""
    folder = tmp_path_factory.mktemp("run") / "pretrain" / FINGERPRINT[:12]
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = IPT(IPTConfig(size=SIZE, scales=dict.fromkeys(TASKS, 1)))
    config = toy_config(tasks=TASKS, ema_decay=0.5)
    fit(
        RestorationObjective(model),
        config=config,
        runtime=toy_runtime(keep_checkpoints=2),
        folder=folder,
        fingerprint=FINGERPRINT,
        batches=lambda place, device: toy_batches(config, place),
        groups=model.parameter_groups(),
        facts=ModelFacts(config=model.config_text()),
    )
    return folder


@pytest.fixture
def training(trained: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(trained, tmp_path / "runs" / "pretrain" / trained.name)


def export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], path: Path, out: Path, code: int) -> str:
    """The one sentence of an export that must fail, and that it wrote nothing."""
    before = sorted(out.parent.rglob("*"))

    assert export(path, "--out", out) == code

    assert sorted(out.parent.rglob("*")) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("step", [8, 12])
def test_a_checkpoint_becomes_a_model_folder_with_the_same_bits(
    step: int, trained: Path, tmp_path: Path
) -> None:
    checkpoint = trained / "checkpoints" / f"step-{step:08d}"
    out = tmp_path / "models" / "ipt"

    assert export(checkpoint, "--out", out, "--raw") == 0

    assert sorted(os.listdir(out)) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(out.parent) == ["ipt"]
    assert_same(weights_of(out), load_file(checkpoint / "weights.safetensors"))
    assert (out / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert IPT.from_pretrained(out).tasks == TASKS
    card = (out / "README.md").read_text()
    for part in (FINGERPRINT, f"step {step}, {step * 12} samples\n", ", ".join(TASKS)):
        assert part in card
    assert "Trained on" not in card


def test_the_average_is_exported_where_there_is_one(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "step-00000012"

    assert export(checkpoint, "--out", tmp_path / "out") == 0

    average = load_file(checkpoint / "average.safetensors")
    raw = load_file(checkpoint / "weights.safetensors")
    assert not torch.equal(average["body.queries.denoise30"], raw["body.queries.denoise30"])
    assert_same(weights_of(tmp_path / "out"), raw | average)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "step 12, 144 samples, exponential average of the weights\n" in card


def test_without_an_average_the_trained_weights_are_exported(
    training: Path, tmp_path: Path
) -> None:
    checkpoint = training / "checkpoints" / "step-00000012"
    (checkpoint / "average.safetensors").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = [each for each in manifest["files"] if "average" not in each["path"]]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))

    assert export(checkpoint, "--out", tmp_path / "out") == 0

    assert_same(weights_of(tmp_path / "out"), load_file(checkpoint / "weights.safetensors"))


@pytest.mark.parametrize("given", ["", "checkpoints"])
def test_the_newest_that_verifies_is_taken(
    given: str, training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (training / "checkpoints" / ".unfinished-step-00000016").mkdir()
    assert export(training / given, "--out", tmp_path / "newest") == 0
    _flip_a_byte(training / "checkpoints" / "step-00000012" / "exp_avg.safetensors")
    assert export(training / given, "--out", tmp_path / "before") == 0

    assert "step 12, 144 samples" in (tmp_path / "newest" / "README.md").read_text()
    assert "step 8, 96 samples" in (tmp_path / "before" / "README.md").read_text()
    assert "checkpoints/step-00000008: step 8, 96 samples" in capsys.readouterr().out


def test_what_is_exported_restores_photographs(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(photo)

    assert export(trained, "--out", tmp_path / "model") == 0
    printed = capsys.readouterr().out.splitlines()[-1].split()
    command = printed[printed.index("restore") :]
    assert command[1:] == [
        *("photo.png", "--weights", str(tmp_path / "model"), "--task", "denoise30"),
        *("--out", "restored"),
    ]
    command[1], command[-1] = str(photo), str(tmp_path / "restored")

    assert main([*command, "--device", "cpu", "--tile-overlap", "2"]) == 0

    with Image.open(tmp_path / "restored" / "photo.png") as restored:
        assert restored.size == (11, 9)


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("weights.safetensors", "altered since it was sealed"),
        ("config.json", "altered since it was sealed"),
        ("manifest.json", "it has no manifest"),
        ("exp_avg_sq.safetensors", "exp_avg_sq.safetensors: missing"),
    ],
)
def test_a_damaged_checkpoint_is_not_exported(
    file: str, message: str, training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = training / "checkpoints" / "step-00000012"
    if "altered" in message:
        _flip_a_byte(checkpoint / file)
    else:
        (checkpoint / file).unlink()

    said = refused(capsys, checkpoint, tmp_path / "out", 1)

    assert f"{checkpoint}: damaged (" in said
    assert message in said
    assert "has 1 more" in said


def test_where_all_are_damaged_nothing_is_exported(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in (training / "checkpoints").iterdir():
        _flip_a_byte(each / "weights.safetensors")

    assert export(training, "--out", tmp_path / "out") == 1

    assert "all 2 checkpoints are damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_of_usage(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, checkpoint = tmp_path / "out", training / "checkpoints" / "step-00000012"
    (tmp_path / "empty").mkdir()
    assert export(checkpoint, "--out", tmp_path / "model") == 0
    capsys.readouterr()
    old = checkpoint.with_name("step-00000008")
    (old / "config.json").unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["files"] = [each for each in manifest["files"] if each["path"] != "config.json"]
    (old / "manifest.json").write_text(json.dumps(manifest))

    for path, message in {
        tmp_path / "absent": "no such folder",
        checkpoint / "config.json": "is a file, not the folder of a checkpoint",
        tmp_path / "empty": "no checkpoint is there; give a folder such as runs/",
        training.parent: f"is not the folder of one training; give {training}",
        tmp_path / "model": "is a model folder already",
        old: "has no config.json, as checkpoints of earlier versions",
    }.items():
        assert message in refused(capsys, path, out, 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    said = refused(capsys, checkpoint, tmp_path / "full", 2)
    assert "exists and is not an empty folder; choose another --out" in said


@pytest.mark.parametrize("stage", ["pretrain", "finetune-sr2", "dncnn-denoise30"])
def test_the_last_checkpoint_gives_the_model_of_the_stage(
    stage: str, finished: Run, tmp_path: Path
) -> None:
    folder = next(finished.folder.glob(f"{stage}/*"))  # or of a test that made it once more

    assert export(folder, "--out", tmp_path / "out") == 0

    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "model" / name).read_bytes()
    tasks = [line for line in _lines(folder / "model" / "README.md") if "Tasks: " in line]
    assert tasks == [line for line in _lines(tmp_path / "out" / "README.md") if "Tasks: " in line]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


KILLED = """
import os, signal, sys
from launch.__main__ import main
at, seen, rename = int(sys.argv[1]), 0, os.rename
def counted(*arguments, **named):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*arguments, **named)
os.rename = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "rename",  # of the weights, of config.json, of the folder
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3],
)
def test_killed_in_the_middle_it_leaves_no_half_a_folder(
    rename: int, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(trained), "--out", str(out)]

    killed = subprocess.run([sys.executable, "-c", KILLED, str(rename), *arguments], cwd=ROOT)

    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert main(arguments) == 0
    assert os.listdir(tmp_path) == ["out"]
    assert IPT.from_pretrained(out).tasks == TASKS
