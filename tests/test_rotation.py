"""Which checkpoints stay: the last good ones, whatever lies beside them."""

import errno
import shutil
from itertools import islice
from pathlib import Path

import pytest

from pipeline.graph import StageError
from tests.training_toys import toy_batches, toy_config, toy_fit


@pytest.mark.parametrize("good", [None, 4])
def test_damaged_checkpoints_are_not_among_those_that_are_kept(
    tmp_path: Path, good: int | None
) -> None:
    toy_fit(tmp_path / "again", keep_checkpoints=3)
    checkpoints = tmp_path / "again" / "checkpoints"
    for step in (4, 8, 12):
        if step != good:
            (checkpoints / f"step-{step:08d}" / "exp_avg.safetensors").unlink()

    begun_at = []

    def batches(place, device):
        """Ends in the step after the next checkpoint."""
        begun_at.append(place.start_step)
        yield from islice(toy_batches(toy_config(), place), 3)

    for _ in range(2):  # each gets two steps further
        with pytest.raises(StageError, match="the data ended"):
            toy_fit(
                tmp_path / "again",
                given={"batches": batches},
                checkpoint_every_steps=2,
                keep_checkpoints=2,
            )

    assert begun_at == [good or 0, (good or 0) + 2]
    damaged = {path.name for path in checkpoints.iterdir() if path.name.startswith("damaged-")}
    assert damaged == {f"damaged-step-{step:08d}" for step in (4, 8, 12) if step != good}


def test_a_checkpoint_that_cannot_be_deleted_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remove = shutil.rmtree

    def busy(path: Path, **options: bool) -> None:
        """As on NFS, where somebody reads the oldest one."""
        if path.name == ".trash-step-00000004" and path.exists():
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path, **options)

    monkeypatch.setattr("pipeline.training.checkpoint_folder.shutil.rmtree", busy)
    toy_fit(tmp_path, keep_checkpoints=2)
    toy_fit(tmp_path, keep_checkpoints=2)

    assert "step-00000004: can't be deleted now" in caplog.text
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [".trash-step-00000004", "step-00000008", "step-00000012"]
