"""Adam that leaves out idle groups, and the learning rate."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.config import TrainingConfig
from pipeline.training.optimizer import GroupedAdam, learning_rate


def _parameters() -> dict[str, list[nn.Parameter]]:
    torch.manual_seed(0)
    return {name: [nn.Parameter(torch.randn(3, 2))] for name in ("body", "sr2", "sr3")}


def _give_gradients(groups: dict[str, list[nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameters in groups.values():
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def _adam(groups: dict[str, list[nn.Parameter]]) -> GroupedAdam:
    adam = GroupedAdam(groups, learning_rate=0.1, betas=(0.9, 0.999))
    adam.create_state(each for parameters in groups.values() for each in parameters)
    return adam


def test_with_all_groups_active_it_is_pytorch_adam_bit_by_bit() -> None:
    ours, theirs = _parameters(), _parameters()
    adam = _adam(ours)
    reference = torch.optim.Adam([each for group in theirs.values() for each in group], lr=0.1)

    for step in range(5):
        _give_gradients(ours, step)
        _give_gradients(theirs, step)
        adam.step()
        reference.step()

    for name in ours:
        assert torch.equal(ours[name][0], theirs[name][0])


def test_an_idle_group_does_not_move_though_its_gradient_is_zero_as_deepspeed_has_it() -> None:
    groups = _parameters()
    adam = _adam(groups)
    _give_gradients(groups, 0)
    adam.step()
    weight = groups["sr3"][0].detach().clone()
    state = {name: value.clone() for name, value in adam.state[groups["sr3"][0]].items()}

    _give_gradients(groups, 1)
    groups["sr3"][0].grad = torch.zeros(3, 2)
    adam.active = frozenset({"body", "sr2"})
    adam.step()

    assert torch.equal(groups["sr3"][0], weight)
    assert all(torch.equal(adam.state[groups["sr3"][0]][name], state[name]) for name in state)
    assert adam.state[groups["body"][0]]["step"] == 2
    assert [group["name"] for group in adam.param_groups] == ["body", "sr2", "sr3"]


def test_a_skipped_step_moves_nothing_and_is_not_counted() -> None:
    groups = _parameters()
    adam = _adam(groups)
    weights = {name: parameters[0].detach().clone() for name, parameters in groups.items()}
    _give_gradients(groups, 0)
    groups["body"][0].grad = torch.full((3, 2), torch.nan)

    adam.skips_step = True
    adam.step()

    for name, parameters in groups.items():
        assert torch.equal(parameters[0], weights[name])
        assert adam.state[parameters[0]]["step"] == 0


def _config(**values: object) -> TrainingConfig:
    chosen = {"samples": 1200, "batch": 10, "learning_rate": 5e-5, "final_learning_rate": 2e-5}
    return TrainingConfig.model_validate(chosen | values)


def test_betas_that_adam_does_not_take_are_refused_by_the_config() -> None:
    with pytest.raises(ValidationError, match=r"betas\.1"):
        _config(betas=(0.9, 1.0))


def test_step_schedule_falls_after_two_thirds_of_the_samples() -> None:
    config = _config()

    assert learning_rate(config, 0) == 5e-5
    assert learning_rate(config, 790) == 5e-5
    assert learning_rate(config, 800) == 2e-5
    assert learning_rate(config, 1190) == 2e-5


def test_warmup_rises_linearly_to_the_full_rate() -> None:
    config = _config(warmup_samples=100)

    rates = [learning_rate(config, samples) for samples in range(0, 110, 10)]

    assert rates[0] == pytest.approx(5e-6, rel=1e-12)
    assert rates[4] == pytest.approx(2.5e-5, rel=1e-12)
    assert rates[9] == rates[10] == 5e-5


def test_cosine_goes_from_the_first_to_the_final_rate_half_way_at_the_middle() -> None:
    config = _config(schedule="cosine", warmup_samples=200)

    assert learning_rate(config, 200) == 5e-5
    assert learning_rate(config, 700) == pytest.approx(3.5e-5, rel=1e-12)
    assert learning_rate(config, 1200) == pytest.approx(2e-5, rel=1e-12)
    assert learning_rate(config, 5000) == pytest.approx(2e-5, rel=1e-12)


def test_warmup_longer_than_the_training_is_no_division_by_zero() -> None:
    for schedule in ("step", "cosine"):
        config = _config(schedule=schedule, warmup_samples=1200)
        assert all(math.isfinite(learning_rate(config, samples)) for samples in (0, 600, 1200))
