"""Checkpoints: whole or absent, verified, rotated, by name."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts import open_artifact, verify
from pipeline.training.checkpoint import CheckpointError
from pipeline.training.checkpoint_folder import CheckpointFolder
from tests.training_toys import everything, toy_config, toy_fit, toy_model

STEPS = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy training with checkpoints at steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("trained")
    toy_fit(folder, keep_checkpoints=3)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The checkpoints of that training, to be damaged."""
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def _open(folder: Path, keep: int = 3) -> CheckpointFolder:
    return CheckpointFolder(folder, fingerprint="f" * 64, keep=keep)


def _latest_step(folder: Path) -> int | None:
    checkpoint = _open(folder).latest()
    return checkpoint.state.step if checkpoint else None


def test_a_checkpoint_holds_weights_moments_and_counters_by_name(trained: Path) -> None:
    folder = trained / "checkpoints" / "step-00000012"

    weights, first, second = (
        load_file(folder / f"{name}.safetensors") for name in ("weights", "exp_avg", "exp_avg_sq")
    )
    checkpoint = _open(trained / "checkpoints").latest()

    model = toy_model()
    assert weights.keys() == model.state_dict().keys()
    assert first.keys() == second.keys() == dict(model.named_parameters()).keys()
    assert all(each.dtype == torch.float32 for each in weights.values())
    assert checkpoint is not None
    assert checkpoint.state.samples_by_task == {"sr2": 48, "denoise30": 48, "denoise50": 48}
    assert checkpoint.state.adam_steps == {
        "body": 12.0,
        "sr2": 4.0,
        "denoise30": 4.0,
        "denoise50": 4.0,
    }
    artifact = open_artifact(folder)
    assert artifact is not None
    assert verify(artifact) == []
    assert not list(folder.parent.glob("**/*.pt"))


def _truncate(folder: Path) -> None:
    path = folder / "exp_avg.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _flip_a_byte(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:50])


def _empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema": 1, "files": []}')


def _empty_record(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema": 1}')


def _other_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"samples": 144', '"samples": 145'))


def _remove_file(folder: Path) -> None:
    (folder / "exp_avg_sq.safetensors").unlink()


DAMAGES = [
    _truncate,
    _flip_a_byte,
    _remove_manifest,
    _cut_manifest,
    _empty_manifest,
    _empty_record,
    _other_state,
    _remove_file,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    folder: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / "step-00000012")

    with caplog.at_level(logging.WARNING):
        step = _latest_step(folder)

    assert step == 8
    assert "step-00000012: damaged" in caplog.text


def test_without_any_good_checkpoint_there_is_none(folder: Path) -> None:
    for each in folder.iterdir():
        _flip_a_byte(each)

    assert _latest_step(folder) is None
    assert _latest_step(folder / "absent") is None


def test_training_goes_on_before_a_damaged_checkpoint_and_replaces_it(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "again")
    final = tmp_path / "again" / "checkpoints" / "step-00000012"
    _flip_a_byte(final)

    toy_fit(tmp_path / "again", keep_checkpoints=3)

    expected = everything(trained / "checkpoints" / "step-00000012")
    found = everything(final)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_a_kill_left_half_written_is_no_checkpoint_and_is_removed(folder: Path) -> None:
    (folder / ".unfinished-step-00000016").mkdir()
    (folder / ".unfinished-step-00000016" / "weights.safetensors").write_bytes(b"half")
    (folder / ".trash-step-00000004").mkdir()
    checkpoints = _open(folder)

    checkpoints.clean()

    assert _latest_step(folder) == 12
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000012"]


def test_rotation_keeps_the_last(tmp_path: Path) -> None:
    toy_fit(tmp_path, keep_checkpoints=2, checkpoint_every_steps=2)

    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]


def test_a_checkpoint_of_another_training_is_refused(folder: Path) -> None:
    checkpoints = CheckpointFolder(folder, fingerprint="e" * 64, keep=2)

    with pytest.raises(CheckpointError, match="belongs to the training ffffffffffff"):
        checkpoints.latest()


def test_a_checkpoint_that_another_machine_does_not_see_is_an_error(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"99: not visible from this machine; runtime\.runs"):
        _open(folder).at(99)


def test_weights_of_another_model_are_refused_by_name(folder: Path) -> None:
    checkpoint = _open(folder).latest()
    assert checkpoint is not None
    path = checkpoint.folder / "weights.safetensors"
    weights = load_file(path)
    weights["stranger"] = weights.pop("body.0.weight")
    save_file(weights, path)

    with pytest.raises(CheckpointError, match=r"lacks \['body.0.weight'\], has \['stranger'\]"):
        checkpoint.load_weights(toy_model())


def test_a_full_disk_stops_the_training_with_a_sentence_and_keeps_what_was(
    trained: Path, tmp_path: Path
) -> None:
    # A limit on the size of files fails a write as a full disk does, and needs no root.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(trained, tmp_path / "full")
    checkpoints = tmp_path / "full" / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000012")

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="this checkpoint can't be written"):
            toy_fit(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert sorted(each.name for each in checkpoints.iterdir()) == ["step-00000004", "step-00000008"]
    assert _latest_step(checkpoints) == 8


@pytest.mark.slow
def test_killed_at_any_moment_of_saving_the_same_command_ends_in_the_same_bits(
    tmp_path: Path,
) -> None:
    request = {"toy": {"folder": str(tmp_path / "killed")}}
    request["toy"]["config"] = {"samples": 2400}
    request["toy"]["normalises"] = True
    request["toy"]["runtime"] = {"checkpoint_every_steps": 1, "keep_checkpoints": 2}
    (tmp_path / "request.json").write_text(json.dumps(request))
    worker = Path(__file__).with_name("distributed_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    checkpoints = tmp_path / "killed" / "checkpoints"

    killed = 0
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, worker, tmp_path / "request.json"],
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        before = _names(checkpoints)
        while process.poll() is None and _names(checkpoints) == before:
            time.sleep(0.005)
        time.sleep(0.03 + 0.037 * attempt)
        if process.poll() is None and attempt < 5:
            process.send_signal(signal.SIGKILL)
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break

    assert killed > 0
    config = toy_config(samples=2400)
    toy_fit(tmp_path / "whole", config=config, normalises=True, checkpoint_every_steps=1000)
    expected = everything(tmp_path / "whole" / "checkpoints" / "step-00000200")
    found = everything(checkpoints / "step-00000200")
    assert "weights/body.1.running_mean" in expected
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
