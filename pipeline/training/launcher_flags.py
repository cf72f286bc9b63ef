"""What `accelerate launch` was told that this pipeline decides by its config: a contradiction is
refused, where accelerate would go on with one of the two and say nothing."""

from collections.abc import Mapping

from pipeline.config import Runtime, TrainingConfig
from pipeline.training.placement import LaunchError, Place

NOTHING = ("", "none", "no")


def check_launcher_flags(
    config: TrainingConfig, runtime: Runtime, place: Place, environment: Mapping[str, str]
) -> None:
    """Raise LaunchError for a flag that says otherwise, as the launcher's environment shows it."""

    def refuse(flag: str, value: str, ours: str) -> None:
        raise LaunchError(
            f"the launcher was told {flag} {value}, and {ours}; launch without {flag}, or make "
            "them agree"
        )

    def told(variable: str) -> str | None:
        value = environment.get(f"ACCELERATE_{variable}", "").lower()
        return None if value in NOTHING else value

    precision = told("MIXED_PRECISION")
    if precision is not None and (precision, config.precision) != ("bf16", "bfloat16"):
        refuse("--mixed_precision", precision, f"this training's precision is {config.precision}")
    accumulation = told("GRADIENT_ACCUMULATION_STEPS")
    if accumulation not in (None, "1", str(place.accumulation)):
        assert accumulation is not None
        refuse(
            "--gradient_accumulation_steps",
            accumulation,
            f"batch and micro-batch make {place.accumulation} of it",
        )
    clipping = told("GRADIENT_CLIPPING")
    if clipping is not None and float(clipping) not in (0, config.clip_norm):
        refuse("--gradient_clipping", clipping, f"this training's clip_norm is {config.clip_norm}")
    backend = told("DYNAMO_BACKEND")
    if backend is not None and not runtime.compile:
        refuse("--dynamo_backend", backend, "runtime.compile is false")
    for what in ("OPTIMIZER", "PARAM"):
        offloaded = told(f"DEEPSPEED_OFFLOAD_{what}_DEVICE")
        if offloaded is not None:
            flag = f"--offload_{what.lower()}_device"
            refuse(flag, offloaded, "this pipeline keeps everything on the device")
