"""Flags of `accelerate launch` that contradict the config are refused."""

import pytest

from pipeline.config import TrainingConfig
from pipeline.training.launcher_flags import check_launcher_flags
from pipeline.training.placement import LaunchError, share_out
from tests.training_toys import toy_runtime


def check(environment: dict[str, str], *, compiles: bool = False, **values: object) -> None:
    config = TrainingConfig.model_validate({"batch": 24, "samples": 240} | values)
    runtime = toy_runtime(micro_batch=6, compile=compiles)
    place = share_out(config, runtime, rank=0, world_size=2)
    check_launcher_flags(config, runtime, place, environment)


@pytest.mark.parametrize(
    ("flag", "environment", "values"),
    [
        ("--mixed_precision fp16", {"MIXED_PRECISION": "fp16"}, {}),
        ("--mixed_precision bf16", {"MIXED_PRECISION": "bf16"}, {"precision": "float32"}),
        ("--gradient_accumulation_steps 4", {"GRADIENT_ACCUMULATION_STEPS": "4"}, {}),
        ("--gradient_clipping 1.0", {"GRADIENT_CLIPPING": "1.0"}, {}),
        ("--gradient_clipping 1.0", {"GRADIENT_CLIPPING": "1.0"}, {"clip_norm": 0.5}),
        ("--dynamo_backend inductor", {"DYNAMO_BACKEND": "INDUCTOR"}, {}),
        ("--offload_param_device cpu", {"DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, {}),
        ("--offload_optimizer_device nvme", {"DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, {}),
    ],
)
def test_what_the_config_decides_is_not_for_the_launcher(flag, environment, values) -> None:
    told = {f"ACCELERATE_{variable}": value for variable, value in environment.items()}

    with pytest.raises(LaunchError, match=f"the launcher was told {flag}, and"):
        check(told, **values)


def test_a_launcher_that_agrees_or_says_nothing_is_heard() -> None:
    defaults = {
        "MIXED_PRECISION": "no",
        "GRADIENT_ACCUMULATION_STEPS": "1",
        "GRADIENT_CLIPPING": "none",
        "DYNAMO_BACKEND": "NO",
        "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    }
    check({f"ACCELERATE_{variable}": value for variable, value in defaults.items()})
    check({"ACCELERATE_MIXED_PRECISION": "bf16"}, precision="bfloat16")
    check({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"})  # 24 over 2 processes by 6
    check({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, clip_norm=1.0)
    check({"ACCELERATE_GRADIENT_CLIPPING": "1"}, clip_norm=1.0)
    check({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, compiles=True)
