"""Which engine runs, what DeepSpeed is told, and how a batch is divided."""

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.config import DnCNNTrainingConfig, FinetuneConfig, TrainingConfig
from pipeline.training.engine import build_engine, started
from pipeline.training.objectives import RestorationObjective
from pipeline.training.placement import (
    LaunchError,
    check_engine,
    choose_engine,
    deepspeed_config,
    share_out,
)
from tests.training_toys import toy_config, toy_fit, toy_model, toy_runtime

BY_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("engine", "environment", "chosen"),
    [
        ("launcher", {}, "ddp"),
        ("launcher", {"ACCELERATE_USE_DEEPSPEED": "false"}, "ddp"),
        ("launcher", BY_DEEPSPEED, "zero1"),
        ("launcher", BY_DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ("ddp", {}, "ddp"),
        ("zero0", BY_DEEPSPEED, "zero0"),
        ("zero2", BY_DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero2"),
    ],
)
def test_the_engine_is_what_config_and_launcher_agree_on(engine, environment, chosen) -> None:
    assert choose_engine(toy_runtime(engine=engine), environment) == chosen


@pytest.mark.parametrize(
    ("engine", "environment", "complaint"),
    [
        ("zero1", {}, "runtime.engine: zero1 needs DeepSpeed"),
        ("ddp", BY_DEEPSPEED, "runtime.engine: ddp, but the launcher asked for DeepSpeed"),
        ("zero1", BY_DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "ZeRO stage 2"),
        ("launcher", BY_DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "7"}, "'7'; allowed"),
        ("launcher", BY_DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "z.json"}, "config file"),
        ("launcher", {"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP"),
    ],
)
def test_a_contradiction_with_the_launcher_is_refused(engine, environment, complaint) -> None:
    with pytest.raises(LaunchError, match=complaint):
        choose_engine(toy_runtime(engine=engine), environment)


def test_zero3_is_refused_where_heads_idle_and_allowed_elsewhere() -> None:
    with pytest.raises(LaunchError, match="tasks_per_step: one does not work with ZeRO stage 3"):
        check_engine("zero3", toy_config())

    check_engine("zero3", toy_config(tasks_per_step="all"))
    check_engine("zero3", toy_config(tasks=("sr2",)))
    check_engine("zero3", FinetuneConfig())
    check_engine("zero2", toy_config())


def test_deepspeed_is_told_everything_it_would_else_choose() -> None:
    config = TrainingConfig(samples=480, batch=24)
    place = share_out(config, toy_runtime(micro_batch=3), rank=1, world_size=2)

    told = deepspeed_config("zero2", config, place, on_gpu=False)

    assert (place.micro_batch, place.accumulation, place.steps) == (3, 4, 20)
    assert told["gradient_clipping"] == 0.0
    assert told["train_batch_size"] == 24
    assert told["train_micro_batch_size_per_gpu"] == 3
    assert told["gradient_accumulation_steps"] == 4
    assert told["zero_optimization"]["stage"] == 2
    assert told["zero_optimization"]["reduce_bucket_size"] == 500_000
    assert "auto" not in json.dumps(told)
    assert not {"bf16", "fp16", "torch_autocast"} & told.keys()
    clipped = TrainingConfig(samples=480, batch=24, clip_norm=0.5)
    assert deepspeed_config("zero0", clipped, place, on_gpu=True)["gradient_clipping"] == 0.5


def test_samples_that_are_no_whole_batches_take_one_more_step() -> None:
    config = TrainingConfig(samples=481, batch=24)

    assert share_out(config, toy_runtime(), rank=0, world_size=1).steps == 21


@pytest.mark.parametrize(
    ("config", "micro_batch", "world_size", "complaint"),
    [
        (
            TrainingConfig(batch=10),
            None,
            3,
            "10 does not .* 3 processes; start 1, 2, 5 or 10 of them",
        ),
        (toy_config(tasks_per_step="all"), 2, 1, "micro_batch: 2 is less than the 3 samples"),
        (
            toy_config(contrastive={"images": 8}, batch=20),
            None,
            1,
            "20 samples, .* groups of 8 .*; change the",
        ),
        (
            TrainingConfig(batch=24, data={"lanes": 5}),
            None,
            1,
            "5 lanes do not divide the 24 .*; use 1, 2, 3, 4, 6, 8, 12 or 24 lanes",
        ),
        (
            toy_config(tasks_per_step="all", data={"lanes": 12}),
            None,
            1,
            "lanes do not divide the 4 ",
        ),
        (
            DnCNNTrainingConfig(),
            None,
            2,
            "64 samples, .* groups of 128 .*statistics_batch.*; start 1 of them",
        ),
    ],
)
def test_a_batch_that_leaves_a_rest_is_refused(config, micro_batch, world_size, complaint) -> None:
    runtime = toy_runtime(micro_batch=micro_batch)

    with pytest.raises(LaunchError, match=complaint):
        share_out(config, runtime, rank=0, world_size=world_size)


@pytest.mark.parametrize(
    ("config", "most", "world_size", "micro_batch"),
    [
        (TrainingConfig(batch=24), 5, 2, 4),
        (TrainingConfig(batch=24), None, 2, 12),
        (TrainingConfig(batch=24), 100, 2, 12),
        (TrainingConfig(batch=26), 12, 2, 1),
        (DnCNNTrainingConfig(statistics_batch=16), 32, 8, 16),
        (DnCNNTrainingConfig(statistics_batch=16), 100, 1, 64),
        (toy_config(contrastive={"images": 4}, batch=48), 20, 1, 16),
    ],
)
def test_micro_batch_is_the_largest_that_fits(config, most, world_size, micro_batch) -> None:
    place = share_out(config, toy_runtime(micro_batch=most), rank=0, world_size=world_size)

    assert place.micro_batch == micro_batch
    assert place.micro_batch * place.accumulation * world_size == config.batch


def test_a_training_takes_the_threads_of_the_runtime_on_which_its_bits_depend(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(2)

    toy_fit(tmp_path, threads_per_process=1)

    assert torch.get_num_threads() == 1


def test_an_unknown_or_missing_tracker_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"runtime\.trackers: .*nonsense"):
        toy_fit(tmp_path, trackers=("nonsense",))
    with pytest.raises(LaunchError, match="aim is not installed"):
        toy_fit(tmp_path, trackers=("aim",))


def test_a_world_size_that_no_process_group_stands_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for variable, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    with pytest.raises(LaunchError, match="LOCAL_RANK"):
        toy_fit(tmp_path)


def test_a_parameter_in_no_group_is_refused() -> None:
    model = toy_model()
    groups = model.parameter_groups()
    del groups["sr2"]
    config, runtime = toy_config(), toy_runtime()

    with (
        started(config, runtime, log_folder="") as (accelerator, name, place),
        pytest.raises(ValueError, match=r"model\.heads\.sr2\.weight is in no group"),
    ):
        build_engine(
            accelerator,
            name,
            RestorationObjective(model),
            groups=groups,
            config=config,
            place=place,
        )


def test_what_the_launcher_says_as_well_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = toy_fit(tmp_path / "a", micro_batch=3)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")  # of 3 are the batch of 12

    model, _ = toy_fit(tmp_path / "b", micro_batch=3)

    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
