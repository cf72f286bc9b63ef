"""Costs that the loop is told, and what it says of them."""

import json
import logging
from pathlib import Path

import pytest
import torch

from pipeline.model_configs import IPTConfig
from pipeline.tasks import PUBLISHED_ORDER, TASKS
from pipeline.training.logs import Interval, plain_line
from pipeline.training.model_facts import ModelFacts, peak_flops
from pipeline.training.objectives import RestorationObjective
from pipeline.training.placement import LaunchError, out_of_memory, share_out
from tests.training_toys import toy_config, toy_fit, toy_runtime

IPT_BASE = IPTConfig(scales={task: TASKS[task].scale for task in PUBLISHED_ORDER})


def test_an_h200_at_two_thousand_samples_a_second_is_at_40_percent() -> None:
    """distributed.md, section 6: 0.2 TFLOP for each crop of a step, 989 TFLOP/s at most."""
    facts = ModelFacts(forward_flops={t: IPT_BASE.flops(t).total for t in PUBLISHED_ORDER})

    flops = facts.training_flops(dict.fromkeys(PUBLISHED_ORDER, 1))
    peak = peak_flops("NVIDIA H200", "bfloat16")

    assert flops is not None
    assert peak == 989e12
    assert flops / 6 == pytest.approx(0.2e12, rel=0.05)
    assert 2000 * flops / 6 / peak == pytest.approx(0.40, abs=0.02)


def test_a_peak_is_named_by_device_and_precision_or_unknown() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 66.9e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32", tf32=True) == 156e12
    assert peak_flops("CPU", "bfloat16") is None


def test_utilisation_is_of_all_steps_since_the_last_row() -> None:
    interval = Interval()
    interval._began -= 10  # seconds ago
    for _ in range(5):
        interval.add({"sr2": 4}, samples=8, flops=2e12)

    row = interval.row(peak_flops=4e12)

    assert row["model_tflops"] == pytest.approx(1.0, rel=0.01)
    assert row["mfu"] == pytest.approx(0.25, rel=0.01)
    assert row["step_seconds"] == pytest.approx(2.0, rel=0.01)
    assert row["samples_per_second"] == pytest.approx(4.0, rel=0.01)
    line = plain_line(
        row
        | {"step": 5, "samples": 40, "skipped": 2, "learning_rate": 5e-5, "memory_gib": 3.21}
        | {"seconds_left": 36_000.0},
        tasks=["sr2"],
        total_steps=20,
    )
    assert line == (
        "step 5/20  samples 40  task sr2  loss none  lr 5.0e-05  4 samples/s  25% MFU  "
        "data wait 0%  3.2 GiB  skipped 2  10 h 00 min left"
    )


def test_the_log_begins_with_how_a_batch_is_shared_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pipeline"):
        toy_fit(tmp_path, micro_batch=6)

    said = "ddp: 1 process × 2 micro-batches × 6 samples in float32 on CPU, its peak is not known"
    assert said in caplog.text


def test_flops_that_nobody_knows_are_not_guessed() -> None:
    interval = Interval()
    interval.add({"sr2": 4}, samples=4, flops=ModelFacts().training_flops({"sr2": 4}))

    row = interval.row(peak_flops=1e12)

    assert row["model_tflops"] is None
    assert row["mfu"] is None


def test_a_micro_batch_that_would_fit_is_named() -> None:
    config = toy_config(batch=48, contrastive={"images": 4})
    place = share_out(config, toy_runtime(), rank=0, world_size=2)
    assert place.micro_batch == 24

    def remedy(**known: float | None) -> str:
        return out_of_memory(config, place, **known)

    gib = 2**30
    assert "runtime.micro_batch: 12 should" in remedy(bytes_here=None, bytes_each=None)
    # 0.8 · 80 GiB hold 8 of 7 GiB, and 24 is divided by 8.
    assert remedy(bytes_here=80 * gib, bytes_each=7 * gib).startswith(
        "a micro-batch of 24 samples does not fit in 80.0 GiB; runtime.micro_batch: 8 should"
    )
    # Not even whole groups of 4 fit.
    assert "or train a smaller model" in remedy(bytes_here=80 * gib, bytes_each=30 * gib)


def test_running_out_of_memory_is_a_usage_error_that_names_a_smaller_one(tmp_path: Path) -> None:
    class TooLarge(RestorationObjective):
        def forward(self, batch):
            if next(iter(batch.values()))[0].shape[0] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(batch)

    with pytest.raises(LaunchError, match=r"12 samples does not fit; runtime\.micro_batch: 6 "):
        toy_fit(tmp_path, objective=TooLarge, micro_batch=12)
    with pytest.raises(LaunchError, match=r"6 samples does not fit; runtime\.micro_batch: 3 "):
        toy_fit(tmp_path, objective=TooLarge, micro_batch=6)
    toy_fit(tmp_path, objective=TooLarge, micro_batch=3)


def test_the_largest_tasks_of_a_step_count() -> None:
    facts = ModelFacts(activation_bytes={"sr2": 10, "sr4": 30, "derain": 20})

    assert facts.bytes_per_sample(("sr2", "sr4", "derain"), at_once=1) == 30
    assert facts.bytes_per_sample(("sr2", "sr4", "derain"), at_once=3) == 20
    assert facts.bytes_per_sample(("sr2", "sr3"), at_once=1) is None


def test_a_checkpoint_has_the_config_of_its_model(tmp_path: Path) -> None:
    facts = ModelFacts(config='{"architecture": "Toy", "z": 1, "a": 2}')

    _, trained = toy_fit(tmp_path, given={"facts": facts})

    record = json.loads((trained.checkpoint.folder / "config.json").read_text())
    assert list(record) == ["architecture", "z", "a"]  # the order of tasks is part of a model
