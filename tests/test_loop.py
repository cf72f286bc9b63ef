"""The training loop: its steps, skipped ones, what it writes."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.graph import StageError
from pipeline.training.objectives import Batch, RestorationObjective
from pipeline.training.placement import Place
from tests.training_toys import (
    FINAL,
    everything,
    logged_rows,
    toy_batches,
    toy_config,
    toy_fit,
    toy_model,
)


def test_it_is_plain_adam_on_the_mean_of_the_batch(tmp_path: Path) -> None:
    config = toy_config()
    model, trained = toy_fit(tmp_path)

    reference = toy_model()
    groups = reference.parameter_groups()
    optimizers = {name: torch.optim.Adam(each) for name, each in groups.items()}
    objective = RestorationObjective(reference)
    place = Place(rank=0, world_size=1, micro_batch=12, accumulation=1, start_step=0, steps=12)
    for step, batch in enumerate(toy_batches(config, place)):
        for name in ("body", *batch):
            optimizers[name].param_groups[0]["lr"] = 1e-2 if step < 8 else 1e-3
        reference.zero_grad()
        objective(batch)["loss"].backward()
        for name in ("body", *batch):
            optimizers[name].step()

    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert trained.checkpoint.state.step == 12
    assert trained.checkpoint.state.samples == 144


def test_accumulation_gives_the_same_step_up_to_rounding(tmp_path: Path) -> None:
    whole, _ = toy_fit(tmp_path / "whole")
    parts, _ = toy_fit(tmp_path / "parts", micro_batch=3)

    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        # Sums of float32 in another order; Adam divides small gradients by small roots.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_task_that_a_step_does_not_train_keeps_its_bits(tmp_path: Path) -> None:
    start = {name: each.clone() for name, each in toy_model().state_dict().items()}

    model, _ = toy_fit(tmp_path, config=toy_config(samples=24))  # steps on sr2 and denoise30

    end = model.state_dict()
    idle = {name for name in start if "denoise50" in name}
    assert len(idle) == 4
    assert {name for name in start if torch.equal(start[name], end[name])} == idle
    moments = everything(tmp_path / "checkpoints" / "step-00000002")
    assert all(moments[f"exp_avg/{name}"].abs().max() == 0 for name in idle)


def test_a_step_with_nan_is_skipped_counted_and_leaves_nothing_behind(tmp_path: Path) -> None:
    _, trained = toy_fit(tmp_path, normalises=True, poisoned_steps=(0, 3, 4))

    weights = everything(tmp_path / FINAL)
    assert trained.checkpoint.state.skipped == 3
    assert trained.checkpoint.state.skipped_in_a_row == 0
    assert trained.checkpoint.state.adam_steps["body"] == 9
    assert trained.checkpoint.state.adam_steps["sr2"] == 2
    assert weights["weights/body.1.num_batches_tracked"] == 9
    assert all(bool(each.isfinite().all()) for each in weights.values())
    rows = logged_rows(tmp_path)
    assert [row["skipped"] for row in rows] == [1, 3, 3, 3]
    assert all(row["loss"] > 0 for row in rows)


def test_a_skipped_step_is_as_if_its_update_had_not_been(tmp_path: Path) -> None:
    toy_fit(tmp_path / "one", config=toy_config(samples=12))
    toy_fit(tmp_path / "two", config=toy_config(samples=24), poisoned_steps=(1,))

    one = everything(tmp_path / "one" / "checkpoints" / "step-00000001")
    two = everything(tmp_path / "two" / "checkpoints" / "step-00000002")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_too_many_skipped_steps_stop_the_training_and_name_step_and_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = tuple(range(5, 12))
    complaint = "step 8, task denoise30: the loss or the gradient was not finite for 3 steps"

    with caplog.at_level(logging.WARNING), pytest.raises(StageError, match=complaint):
        toy_fit(tmp_path, config=toy_config(max_skipped_in_a_row=3), poisoned_steps=poisoned)

    assert caplog.text.count("skipped, its loss or gradient is not finite") == 3
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()


def test_a_stop_for_nan_names_the_samples_behind_it(tmp_path: Path) -> None:
    config = toy_config(max_skipped_in_a_row=1)

    def too_large_once(place: Place, _: torch.device) -> Iterator[Batch]:
        """In step 2 (of 4 micro-batches) the third one's loss is too large for a number."""
        for number, batch in enumerate(toy_batches(config, place)):
            large = 1e38 if number == 6 else 1.0
            yield {task: (x.float() * large, y) for task, (x, y) in batch.items()}

    with pytest.raises(StageError, match="step 2, task denoise30: ") as caught:
        toy_fit(
            tmp_path,
            config=config,
            given={
                "batches": too_large_once,
                "keys": lambda place, number: [f"denoise30:{number}-{k}" for k in range(10)],
            },
            micro_batch=3,
        )

    assert (
        "In micro-batches with such a loss: denoise30:6-0, denoise30:6-1, denoise30:6-2, "
        "denoise30:6-3, denoise30:6-4, denoise30:6-5, denoise30:6-6, denoise30:6-7 and 2 more. "
    ) in str(caught.value)


def test_a_run_of_skipped_steps_goes_on_over_a_resume(tmp_path: Path) -> None:
    config = toy_config(max_skipped_in_a_row=3)
    poisoned = tuple(range(2, 12))
    with pytest.raises(StageError, match="step 5,"):
        toy_fit(tmp_path, config=config, poisoned_steps=poisoned)

    with pytest.raises(StageError, match="step 5,"):  # from the checkpoint of step 4, two skipped
        toy_fit(tmp_path, config=config, poisoned_steps=poisoned)


def test_clipping_bounds_the_gradient_and_logs_its_norm_before(tmp_path: Path) -> None:
    toy_fit(tmp_path / "free")
    toy_fit(tmp_path / "bound", config=toy_config(clip_norm=1e-9))

    free, bound = (everything(tmp_path / name / FINAL) for name in ("free", "bound"))
    assert bound["exp_avg/body.0.weight"].norm() < 1.01e-9
    assert free["exp_avg/body.0.weight"].norm() > 1
    assert logged_rows(tmp_path / "bound")[0]["gradient_norm"] > 1


def test_a_finished_training_run_again_only_returns(tmp_path: Path) -> None:
    _, first = toy_fit(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    _, again = toy_fit(tmp_path, given={"batches": lambda place, device: pytest.fail("read data")})

    assert again.checkpoint.state == first.checkpoint.state
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_data_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the data ended after step 0 of 12"):
        toy_fit(tmp_path, given={"batches": lambda place, device: []})


def test_metrics_hold_one_row_per_interval_and_none_twice_after_a_kill(tmp_path: Path) -> None:
    toy_fit(tmp_path)
    whole = logged_rows(tmp_path)
    assert [row["step"] for row in whole] == [3, 6, 9, 12]
    assert [row["samples"] for row in whole] == [36, 72, 108, 144]
    assert [row["learning_rate"] for row in whole] == [1e-2, 1e-2, 1e-3, 1e-3]
    assert whole[0]["loss"] == pytest.approx(
        sum(whole[0][f"l1/{task}"] for task in ("sr2", "denoise30", "denoise50")) / 3, rel=1e-6
    )

    # As after a kill between steps 10 and 12: the row of step 9 has no checkpoint, one is torn.
    for step in (12,):
        for path in (tmp_path / "checkpoints" / f"step-{step:08d}").iterdir():
            path.unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    toy_fit(tmp_path)

    rows = logged_rows(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert [row["l1/sr2"] for row in rows[:2]] == [row["l1/sr2"] for row in whole[:2]]


def test_losses_and_images_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def pictures(shown: nn.Module) -> dict[str, Tensor]:
        assert not shown.training
        return {"sr2/restored": torch.full((2, 3, 4, 4), 0.5)}

    given = {"images": pictures}
    toy_fit(tmp_path, given=given, trackers=("tensorboard",), images_every_steps=5)

    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    logged = [event.step for event in events.Scalars("l1/sr2")]
    assert logged == [3, 6, 9, 12]
    values = [event.value for event in events.Scalars("loss")]
    assert values == pytest.approx([row["loss"] for row in logged_rows(tmp_path)], rel=1e-6)
    assert [event.step for event in events.Images("sr2/restored")] == [5, 10, 12]


def test_progress_and_the_plain_line_tell_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []

    with caplog.at_level(logging.INFO, logger="pipeline"):
        toy_fit(
            tmp_path,
            config=toy_config(tasks_per_step="all"),
            given={"progress": lambda done, total, note="": seen.append((done, total))},
        )

    assert seen == [(step, 12) for step in range(1, 13)]
    line = next(record.message for record in caplog.records if record.message.startswith("step 3"))
    assert "samples 36  3 tasks  loss" in line
    assert re.search(r"samples/s  data wait \d+%  \d\.\d GiB  [\d.]+ s left$", line)
