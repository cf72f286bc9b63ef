"""Every engine takes the steps of plain PyTorch, which knows nothing of ours, to the last idle bit.

The trainings are those of launching.CONTRASTED, with a checkpoint after every step.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from launching import CONTRASTED, CUT_BATCHES, Launched
from torch import Tensor

from pipeline.losses import supcon
from tests.training_toys import (
    TASKS,
    everything,
    logged_rows,
    sample,
    tiny_ipt,
    toy_config,
    toy_fit,
    toy_model,
)

Trains = Callable[[str, int], Launched]
Snapshot = dict[str, Tensor]  # as `everything` has it: weights, exp_avg and exp_avg_sq by name
STEPS, BATCH, IMAGES, WEIGHT = 12, 24, 2, 0.1
# Of the largest value of each tensor: float32 sums in another order, through twelve steps of Adam.
# Ours differ by up to 2e-5.
TOLERANCE = 2e-4


@cache
def plain_training(mode: str, fault: str = "") -> list[Snapshot]:
    """State after each step of PyTorch's own Adam on the whole batch in one process.

    Its default is meant: no gradient, no update, for what a step doesn't use. A `fault` makes it
    wrong in a way that has been seen somewhere.
    """
    torch.set_num_threads(1)
    model = tiny_ipt()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    snapshots = []
    for step in range(STEPS):
        tasks = TASKS if mode == "all" else [TASKS[step % len(TASKS)]]
        share = BATCH // len(tasks)
        for name, parameter in model.named_parameters():
            is_idle = any(task in name for task in set(TASKS) - set(tasks))
            if not (is_idle and fault == "stale gradients"):
                parameter.grad = None
            if is_idle and fault == "zero gradients":
                parameter.grad = torch.zeros_like(parameter)
        adam.param_groups[0]["lr"] = 1e-3 if step < (4 if fault == "rate" else 8) else 1e-4
        pairs = {
            task: [sample(task, step * share + number) for number in range(share)] for task in tasks
        }
        images = {task: torch.stack([_unit(pair[0]) for pair in pairs[task]]) for task in tasks}
        losses = []
        for task, (restored, tokens) in model.forward_tasks(images).items():
            clean = torch.stack([pair[1] for pair in pairs[task]]).float()
            groups = tokens.split(IMAGES)
            if fault == "other groups":
                groups = [tokens[first :: share // IMAGES] for first in range(share // IMAGES)]
            weight = 0 if fault == "no contrast" else WEIGHT
            contrast = torch.stack([supcon(group) for group in groups]).mean()
            losses.append((restored * 255 - clean).abs().mean() + weight * contrast)
        (torch.stack(losses).mean() * (2 if fault == "twice the loss" else 1)).backward()
        if fault == "clipped":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        snapshots.append(_snapshot(model, adam))
    return snapshots


def _unit(image: Tensor) -> Tensor:
    return image / 255 if image.dtype == torch.uint8 else image


def _snapshot(model: torch.nn.Module, adam: torch.optim.Adam) -> Snapshot:
    found = {}
    for name, parameter in model.named_parameters():
        found[f"weights/{name}"] = parameter.detach().clone()
        for moment in ("exp_avg", "exp_avg_sq"):
            value = adam.state[parameter].get(moment, torch.zeros_like(parameter))
            found[f"{moment}/{name}"] = value.clone()
    return found


def _difference(found: Snapshot, expected: Snapshot, kind: str = "") -> tuple[float, str]:
    """The largest difference as a share of its tensor's largest value, and that tensor."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30), name)
        for name, value in expected.items()
        if name.startswith(kind)
    )


def _checkpoints(folder: Path) -> list[Snapshot]:
    return [everything(folder / "checkpoints" / f"step-{step:08d}") for step in range(1, STEPS + 1)]


def _assert_plain(folder: Path, mode: str) -> None:
    expected = plain_training(mode)
    for step, found in enumerate(_checkpoints(folder)):
        difference, name = _difference(found, expected[step])
        assert difference < TOLERANCE, f"step {step + 1}, {name}: {difference}"


@pytest.mark.parametrize(
    ("mode", "fault", "shown_by_weights"),
    [
        # What DeepSpeed's ZeRO 3 does, what its other stages would do, what its default would.
        ("one", "stale gradients", True),
        ("one", "zero gradients", True),
        ("one", "clipped", True),
        ("all", "clipped", True),
        ("one", "other groups", True),
        ("all", "other groups", True),
        ("one", "no contrast", True),
        ("one", "rate", True),
        # Adam's update hardly depends on the scale, its moments do.
        ("one", "twice the loss", False),
        ("all", "twice the loss", False),
    ],
)
def test_a_wrong_training_would_be_seen(mode: str, fault: str, shown_by_weights: bool) -> None:
    wrong, right = plain_training(mode, fault)[-1], plain_training(mode)[-1]

    for kind in ("exp_avg/", *(["weights/"] if shown_by_weights else [])):
        assert _difference(wrong, right, kind)[0] > 20 * TOLERANCE


@pytest.mark.parametrize(("mode", "micro_batch"), [("one", 24), ("all", 6)])
def test_one_process_is_plain_pytorch(tmp_path: Path, mode: str, micro_batch: int) -> None:
    config = toy_config(**CONTRASTED["config"], tasks_per_step=mode)
    runtime = CONTRASTED["runtime"] | {"micro_batch": micro_batch}
    toy_fit(tmp_path, config=config, is_ipt=True, **runtime)

    _assert_plain(tmp_path, mode)


def _engines(*fast: tuple[str, int]) -> list:
    """All engines in 1 and 2 processes, by hand also in 4."""
    found = []
    for processes in (1, 2, 4):
        for engine in ("ddp", "zero0", "zero1", "zero2", "zero3"):
            marks = () if (engine, processes) in fast else (pytest.mark.slow,)
            marks = (pytest.mark.chaos,) if processes == 4 else marks
            found.append(pytest.param(engine, processes, marks=marks, id=f"{engine}-{processes}"))
    return found


@pytest.mark.parametrize(("engine", "processes"), _engines(("ddp", 2), ("zero1", 2)))
def test_every_engine_is_plain_pytorch(launched: Trains, engine: str, processes: int) -> None:
    folder = launched(engine, processes).folder

    _assert_plain(folder / "contrasted all", "all")
    if engine != "zero3":
        _assert_plain(folder / "contrasted one", "one")


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        "zero1",
        pytest.param("zero0", marks=pytest.mark.slow),
        pytest.param("zero2", marks=pytest.mark.slow),
    ],
)
def test_what_a_step_does_not_train_keeps_every_bit(launched: Trains, engine: str) -> None:
    folder = launched(engine, 2).folder / "contrasted one"
    start = {f"weights/{name}": value for name, value in tiny_ipt().state_dict().items()}
    before = {name: torch.zeros_like(value) for name, value in _checkpoints(folder)[0].items()}
    before |= start

    for step, after in enumerate(_checkpoints(folder)):
        idle = {name for name in after for task in TASKS if task in name}
        idle -= {name for name in after if TASKS[step % len(TASKS)] in name}
        for part in ("heads", "tails", "body.queries"):
            assert any(name.startswith(f"exp_avg_sq/{part}.") for name in idle)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved == after.keys() - idle, f"step {step + 1}"
        before = after


def test_the_contrastive_loss_does_not_depend_on_how_a_batch_is_cut(
    launched: Trains, tmp_path: Path
) -> None:
    contrast, expected = _contrasted_gradients(images=8)
    _, other = _contrasted_gradients(images=16)
    folders = [launched("ddp", 2).folder / name for name in CUT_BATCHES]  # in 6, 3 and 1 a step
    for name, cut in CUT_BATCHES.items():
        toy_fit(tmp_path / name, config=toy_config(**cut["config"]), **cut["runtime"])
        folders.append(tmp_path / name)

    for folder in folders:
        (row,) = logged_rows(folder)
        assert row["contrastive"] == pytest.approx(contrast, rel=1e-6)
        moments = everything(folder / "checkpoints" / "step-00000001")
        # Adam's first moment after a step is a tenth of the gradient.
        found = {name: moments[f"exp_avg/{name}"] * 10 for name in expected}
        assert _difference(found, expected)[0] < TOLERANCE
        assert _difference(found, other)[0] > 20 * TOLERANCE


def _contrasted_gradients(*, images: int) -> tuple[float, Snapshot]:
    """The contrastive loss of the batch of CUT_BATCHES, and all gradients, in plain words."""
    model = toy_model()
    pairs = [sample(TASKS[0], number) for number in range(96)]
    corrupted, clean = (torch.stack(parts) / 255 for parts in zip(*pairs, strict=True))
    restored, tokens = model.forward_tasks({TASKS[0]: corrupted})[TASKS[0]]
    contrast = torch.stack([supcon(group) for group in tokens.split(images)]).mean()
    (255 * (restored - clean).abs().mean() + 100 * contrast).backward()
    gradients = {name: each.grad for name, each in model.named_parameters()}
    return contrast.item(), {name: each for name, each in gradients.items() if each is not None}


def test_losses_and_rates_are_those_of_one_process(launched: Trains, tmp_path: Path) -> None:
    toy_fit(
        tmp_path, config=toy_config(**CONTRASTED["config"]), is_ipt=True, **CONTRASTED["runtime"]
    )
    expected = logged_rows(tmp_path)

    for engine in ("ddp", "zero1"):
        rows = logged_rows(launched(engine, 2).folder / "contrasted one")
        # accelerate's own scheduler would step once for each process.
        assert [row["learning_rate"] for row in rows] == [1e-3] * 8 + [1e-4] * 4
        _assert_measured_alike(rows, expected)


def _assert_measured_alike(rows: list[dict], expected: list[dict]) -> None:
    kinds = ("loss", "contrastive", "gradient_norm", "l1/")
    for row, alone in zip(rows, expected, strict=True):
        assert row.keys() == alone.keys()
        measured = [name for name in alone if name.startswith(kinds)]
        assert len(measured) == 4
        for name in measured:
            assert row[name] == pytest.approx(alone[name], rel=1e-4), name
