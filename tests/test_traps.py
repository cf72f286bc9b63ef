"""What breaks silently between torch, accelerate and DeepSpeed, and is held here.

Traps that concern a part of the training are tested with it: see test_gradients, test_elastic,
test_engine, test_checkpoint and test_loader.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from launching import TRAININGS, Launched, launcher, run, trainings_of

from pipeline.training.placement import LaunchError
from tests.training_toys import everything, toy_config, toy_fit

Trains = Callable[[str, int], Launched]


def test_deepspeed_runs_without_transformers_and_every_rank_knows_its_number(
    launched: Trains,
) -> None:
    # The worker blocks `transformers`, which accelerate's own plugin imports for every stage.
    output = launched("zero1", 2).output

    assert output.count("imported: torch, deepspeed\n") == 2 * len(trainings_of("zero1"))
    for name in trainings_of("zero1"):
        for rank in (0, 1):
            assert output.count(f"{name} done as rank {rank} of 2,") == 1


def test_no_operator_is_compiled_on_a_cpu(launched: Trains) -> None:
    # deepspeed_shm_comm takes minutes, and a process killed meanwhile leaves a lock for ever.
    assert not list(launched("zero1", 2).compiled.rglob("*"))


@pytest.mark.parametrize("engine", ["ddp", "zero1"])
def test_no_group_waits_longer_than_it_was_told(launched: Trains, engine: str) -> None:
    """DeepSpeed makes some of its own, with torch's timeout."""
    found = re.findall(r"^(\d+) groups wait (.*)$", launched(engine, 2).output, re.M)

    assert [limits for _, limits in found] == ["0:07:00"] * 2
    assert all((int(count) > 1) == (engine == "zero1") for count, _ in found)


def test_a_rank_that_accelerate_takes_for_the_only_one_is_refused(tmp_path: Path) -> None:
    # accelerate believes the process group, not the launcher; left to itself with DeepSpeed on a
    # CPU it has none, and each rank would take itself for the one that writes.
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    environment["OMP_NUM_THREADS"] = "1"
    group = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)

    try:
        with (
            patch.dict(os.environ, environment),  # accelerate adds to it, for processes of its own
            pytest.raises(LaunchError, match="says rank 1 of 2, accelerate says 0 of 1"),
        ):
            toy_fit(tmp_path)
    finally:
        torch.distributed.destroy_process_group()


STALE_GRADIENTS = """
import json, torch, deepspeed, deepspeed.ops
from deepspeed.utils import safe_get_full_fp32_param
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(2))
    def forward(self, x, number):
        return self.heads[number](x).square().mean()
moved = {}
for stage in (1, 2, 3):
    torch.manual_seed(0)
    model = Heads()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 500_000},
        },
    )
    weight = lambda: safe_get_full_fp32_param(engine.module.heads[0].weight).clone()
    weights = [weight()]
    for number in (0, 1, 1):
        engine.backward(engine(torch.ones(1, 4), number))
        engine.step()
        weights.append(weight())
    moved[stage] = [(b - a).abs().max().item() for a, b in zip(weights, weights[1:])]
print(json.dumps(moved))
"""


@pytest.mark.slow
def test_zero3_still_applies_the_last_gradient_of_an_idle_head_again() -> None:
    """Where this fails, DeepSpeed has mended it: `check_engine` need not refuse stage 3 then."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}

    done = subprocess.run(
        [sys.executable, "-c", STALE_GRADIENTS],
        env=os.environ | ranks | place,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout.splitlines()[-1])
    for stage in ("1", "2"):
        assert moved[stage][0] > 0.1
        assert moved[stage][1:] == [0.0, 0.0]
    assert min(moved["3"]) > 0.1


@pytest.mark.slow
def test_flags_of_the_launcher_that_agree_are_not_applied_a_second_time(
    launched: Trains, tmp_path: Path
) -> None:
    name = "bfloat16 in all"
    flags = ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "2"]

    run([*launcher("zero2", 2), *flags], tmp_path, {name: TRAININGS[name]})

    first = Path("checkpoints") / "step-00000001"
    expected = everything(launched("zero2", 2).folder / name / first)
    found = everything(tmp_path / name / first)
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


@pytest.mark.parametrize(
    "engine",
    # Not ZeRO 3, which has a linear layer of its own: as exact, but rounded in other places.
    ["ddp", "zero1", *(pytest.param(f"zero{n}", marks=pytest.mark.slow) for n in (0, 2))],
)
def test_in_bfloat16_gradients_are_still_summed_in_float32(
    launched: Trains, tmp_path: Path, engine: str
) -> None:
    training = TRAININGS["bfloat16 in all"]
    config = toy_config(**training["config"])
    toy_fit(tmp_path, config=config, is_ipt=True, **training["runtime"])
    first = Path("checkpoints") / "step-00000001"
    expected = everything(tmp_path / first)

    found = everything(launched(engine, 2).folder / "bfloat16 in all" / first)

    # The micro-batches are the same, so are their gradients; in bfloat16, sums would be 4e-3 off.
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        if name.startswith("exp_avg/"):
            scale = value.abs().max().item()
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 * scale)
