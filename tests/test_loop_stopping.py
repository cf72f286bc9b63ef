"""The training loop: the same bits after a stop."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.graph import StoppedWithCheckpoint
from pipeline.training.objectives import Batch
from pipeline.training.placement import Place
from pipeline.training.preemption import stop_on_signals
from tests.training_toys import (
    FINAL,
    everything,
    logged_rows,
    toy_batches,
    toy_config,
    toy_fit,
)


def _fit_stopping(folder: Path, *, after: int | None, number: int = signal.SIGUSR2) -> None:
    """Train the toy with batch normalisation; a signal comes while step `after` + 1 is read."""

    def batches(place: Place, device: torch.device) -> Iterator[Batch]:
        for count, batch in enumerate(toy_batches(toy_config(), place)):
            if after is not None and place.start_step + count // place.accumulation == after:
                os.kill(os.getpid(), number)
            yield batch

    toy_fit(folder, normalises=True, given={"batches": batches}, micro_batch=6)


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGUSR2, 0), (signal.SIGTERM, 4), (signal.SIGINT, 10)]
)
def test_stopped_by_a_signal_and_resumed_gives_the_same_bits(
    tmp_path: Path, number: int, after: int
) -> None:
    _fit_stopping(tmp_path / "whole", after=None)

    with pytest.raises(StoppedWithCheckpoint, match=f"after step {after + 1} of 12"):
        _fit_stopping(tmp_path / "stopped", after=after, number=number)
    _fit_stopping(tmp_path / "stopped", after=None)

    expected = everything(tmp_path / "whole" / FINAL)
    found = everything(tmp_path / "stopped" / FINAL)
    assert "weights/body.1.running_mean" in expected
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    steps = [row["step"] for row in logged_rows(tmp_path / "stopped")]
    assert steps == sorted(set(steps))


def test_a_signal_during_the_last_step_is_not_forgotten(tmp_path: Path) -> None:
    # Else the stages after this one would run into what the signal announced.
    with pytest.raises(StoppedWithCheckpoint, match="after step 12 of 12"):
        _fit_stopping(tmp_path, after=11)

    _fit_stopping(tmp_path, after=None)

    assert (tmp_path / FINAL).is_dir()


def test_handlers_of_signals_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
