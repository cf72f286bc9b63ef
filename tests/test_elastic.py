"""A training that goes on in another number of processes trains on the same samples."""

import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from data_samples import corrupted
from launching import launch, launcher

from pipeline.config import CorruptConfig
from tests.ledger import (
    BATCH,
    LANES,
    NAMES,
    STEPS,
    Sample,
    read_ledgers,
    train_accounted,
    write_numbered_photographs,
)
from tests.training_toys import FINAL, everything, logged_rows

MODES = ("one", "all")
CROPS = CorruptConfig(crops_per_image=3, patch_size=8, samples_per_shard=9)
# How each execution ends, by mode: after a step by a signal, or killed within one.
STOPPED = {"ends_by": int(signal.SIGUSR2)}
KILLED = {"ends_by": int(signal.SIGKILL)}
EXECUTIONS: list[tuple[list[str], dict[str, dict]]] = [
    (launcher("zero1", 4), {"one": STOPPED | {"ends_in": 3}, "all": STOPPED | {"ends_in": 3}}),
    # From step 3 on, with checkpoints of 4 and 6: step 7 is lost, all that was read for 8, and
    # more where the checkpoint of 6 is still being written.
    (launcher("ddp", 2), {"one": STOPPED | {"ends_in": 6}, "all": KILLED | {"ends_in": 8}}),
    ([sys.executable], {"one": STOPPED | {"ends_in": 9}, "all": STOPPED | {"ends_in": 9}}),
    (launcher("ddp", 4), {"one": {}, "all": {}}),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training samples a task, in 4 shards."""
    folder = tmp_path_factory.mktemp("numbered")
    photographs = write_numbered_photographs(folder / "in", 14)
    for name in NAMES:
        corrupted(name, photographs, folder, config=CROPS)
    return folder


def _train_alone(folder: Path, shards: Path, mode: str) -> dict[int, dict[str, list[Sample]]]:
    train_accounted(
        str(folder / mode), shards=str(shards), ledger=str(folder / f"ledger-{mode}"), mode=mode
    )
    return read_ledgers(folder / f"ledger-{mode}")


@pytest.mark.parametrize("mode", MODES)
def test_a_training_is_given_every_sample_once_in_a_pass(
    tmp_path: Path, shards: Path, mode: str
) -> None:
    steps = _train_alone(tmp_path, shards, mode)

    assert list(steps) == list(range(1, STEPS + 1))
    for task in NAMES:
        given = [step[task] for step in steps.values() if task in step]
        each = len(given[0]) // LANES
        lanes = [
            [sample for share in given for sample in share[lane * each : (lane + 1) * each]]
            for lane in range(LANES)
        ]
        first, second = (
            Counter(sample for lane in lanes for sample in lane[9 * n : 9 * (n + 1)])
            for n in (0, 1)
        )
        assert sum(map(len, lanes)) == STEPS * BATCH / 2
        assert first == second
        assert list(first.values()) == [1] * 36


@pytest.mark.slow
def test_four_two_one_and_four_processes_train_on_the_same_samples_in_the_same_steps(
    tmp_path: Path, shards: Path
) -> None:
    whole = {mode: _train_alone(tmp_path / "whole", shards, mode) for mode in MODES}

    parts: dict[str, list[dict]] = {mode: [] for mode in MODES}
    for number, (starts, modes) in enumerate(EXECUTIONS):
        ledgers = tmp_path / f"ledgers-{number}"
        common = {"shards": str(shards), "workers": number % 2}
        trainings = {
            mode: common | ends | {"ledger": str(ledgers / mode), "mode": mode}
            for mode, ends in modes.items()
        }
        done = launch(starts, tmp_path / "elastic", trainings)
        assert (done.returncode != 0) == (KILLED["ends_by"] in _signals(modes)), done.stderr
        for mode in MODES:
            parts[mode].append(read_ledgers(ledgers / mode))

    assert [list(part) for part in parts["one"]] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    assert [(min(part), max(part)) for part in parts["all"]] in (
        [(1, 3), (4, 8), (again, 9), (10, 12)] for again in (5, 7)
    )
    for mode in MODES:
        for part in parts[mode]:
            for step, samples in part.items():
                if not (mode == "all" and part is parts["all"][1] and step == 8):
                    assert samples == whole[mode][step]
        _assert_close(tmp_path / "elastic" / mode, tmp_path / "whole" / mode)


def _signals(modes: dict[str, dict]) -> set[int]:
    return {ends.get("ends_by", 0) for ends in modes.values()}


def _assert_close(found: Path, expected: Path) -> None:
    """Losses and final state but for the rounding of sums in another order."""
    rows, others = logged_rows(found), logged_rows(expected)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
    state, reference = everything(found / FINAL), everything(expected / FINAL)
    for name, value in reference.items():
        largest = value.abs().max().item()
        assert (state[name] - value).abs().max().item() <= 1e-3 * largest, name
