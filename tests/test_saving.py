"""Checkpoints are written beside the training, one at a time, and nothing of it gets lost."""

import threading
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import CheckpointError, CheckpointRefused, TrainState
from pipeline.training.checkpoint_folder import CheckpointFolder, Snapshot, checkpoint_bytes
from pipeline.training.saving import CheckpointWriter
from tests.training_toys import FINAL, everything, logged_rows, toy_config, toy_fit, toy_model

NOTHING = Snapshot(state=TrainState(), files={})


def test_training_goes_on_while_a_checkpoint_is_written() -> None:
    writes, may_end = [], threading.Event()

    def slow(snapshot: Snapshot) -> Path:
        may_end.wait(30)
        writes.append(snapshot)
        return Path("step-00000001")

    writer = CheckpointWriter(slow)
    writer.start(NOTHING, paused=0.0)
    writer.check()
    assert writes == []  # and we are here

    may_end.set()
    writer.finish()
    assert writes == [NOTHING]
    writer.close()


def test_what_fails_beside_the_training_stops_it() -> None:
    def full(snapshot: Snapshot) -> Path:
        raise CheckpointError("the disk is full")

    writer = CheckpointWriter(full)
    writer.start(NOTHING, paused=0.0)
    with pytest.raises(CheckpointError, match="the disk is full"):
        writer.finish()
    writer.finish()  # said once
    writer.close()


def test_closing_waits_for_what_is_under_way() -> None:
    may_end, ended = threading.Event(), []

    def slow(snapshot: Snapshot) -> Path:
        may_end.wait(30)
        ended.append(True)
        return Path("step-00000001")

    writer = CheckpointWriter(slow)
    writer.start(NOTHING, paused=0.0)
    threading.Timer(0.2, may_end.set).start()
    writer.close()
    assert ended == [True]


def test_a_checkpoint_holds_its_own_step_whatever_follows(tmp_path: Path) -> None:
    """The copy is not touched by the steps that are taken while it is written."""
    toy_fit(tmp_path / "often", checkpoint_every_steps=1, keep_checkpoints=12)

    for step in (1, 5, 11):
        short = toy_config(samples=12 * step, drop_at=min(1, 8 / step))
        toy_fit(tmp_path / f"until {step}", config=short)
        name = Path("checkpoints") / f"step-{step:08d}"
        found, expected = (
            everything(tmp_path / "often" / name),
            everything(tmp_path / f"until {step}" / name),
        )
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_pause_is_logged(tmp_path: Path) -> None:
    toy_fit(tmp_path)

    pauses = [row["checkpoint_pause"] for row in logged_rows(tmp_path)]
    assert pauses[0] == 0  # steps 1 to 3
    assert pauses[1] > 0  # step 4


def test_those_of_every_so_many_steps_stay(tmp_path: Path) -> None:
    toy_fit(tmp_path, checkpoint_every_steps=1, keep_checkpoints=2, keep_every_steps=5)

    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (5, 10, 11, 12)]


def test_no_room_for_checkpoints_is_said_before_the_first_step(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", fingerprint="f" * 64, keep=3)
    checkpoints.check_space(1000, saves=100)

    with pytest.raises(CheckpointRefused, match=r"room for 4 is needed"):
        checkpoints.check_space(2**50, saves=100)
    with pytest.raises(CheckpointRefused, match=r"of 1048576\.00 GiB are to come, room for 1 is"):
        checkpoints.check_space(2**50, saves=1)


def test_the_room_that_is_asked_for_is_what_a_checkpoint_takes(tmp_path: Path) -> None:
    toy_fit(tmp_path, config=toy_config(ema_decay=0.9), normalises=True)

    written = sum(each.stat().st_size for each in (tmp_path / FINAL).glob("*.safetensors"))
    expected = checkpoint_bytes(toy_model(normalises=True), averages=True)
    headers = 4 * 2000
    assert expected < written < expected + headers
