"""What trains where: the engine that config and launcher agree on, and each process's share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config import DnCNNTrainingConfig, PretrainConfig, Runtime, TrainingConfig
from pipeline.division import divisors, one_of

EngineName = Literal["ddp", "zero0", "zero1", "zero2", "zero3"]
# ZeRO 1 keeps one gradient exchange per step, whatever the accumulation. ZeRO 2 and 3 save memory
# that a model of 118 M parameters does not lack.
DEFAULT_ZERO: EngineName = "zero1"


class LaunchError(Exception):
    """Config and launcher contradict each other, or the batch does not divide: a usage error."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process's share of a training: which micro-batches it reads."""

    rank: int
    world_size: int
    micro_batch: int  # samples per forward pass of one process
    accumulation: int  # micro-batches per step and process
    steps: int  # of the whole training
    start_step: int = 0  # where this execution takes it up


def choose_engine(runtime: Runtime, environment: Mapping[str, str]) -> EngineName:
    """The engine that `runtime` asks for and the launcher, seen in its environment, can run."""
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"):
        if _is_true(environment, variable):
            raise LaunchError(
                f"the launcher set {variable}; this pipeline trains with ddp or DeepSpeed: "
                "launch without it"
            )
    by_deepspeed = _is_true(environment, "ACCELERATE_USE_DEEPSPEED")
    if not by_deepspeed:
        if runtime.engine in ("launcher", "ddp"):
            return "ddp"
        raise LaunchError(
            f"runtime.engine: {runtime.engine} needs DeepSpeed, and the launcher did not ask for "
            "it; start with `accelerate launch --use_deepspeed`, or set runtime.engine: launcher"
        )
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        raise LaunchError(
            "the launcher names a DeepSpeed config file; ours is derived from the run's config: "
            "launch without --deepspeed_config_file"
        )
    if runtime.engine == "ddp":
        raise LaunchError(
            "runtime.engine: ddp, but the launcher asked for DeepSpeed; launch without "
            "--use_deepspeed, or set runtime.engine: launcher"
        )
    stages: dict[str, EngineName] = {"0": "zero0", "1": "zero1", "2": "zero2", "3": "zero3"}
    asked = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    launched = stages.get(asked) if asked is not None else None
    if asked is not None and launched is None:
        raise LaunchError(f"the launcher asks for ZeRO stage {asked!r}; allowed: 0, 1, 2, 3")
    if runtime.engine == "launcher":
        return launched or DEFAULT_ZERO
    if launched not in (None, runtime.engine):
        raise LaunchError(
            f"runtime.engine: {runtime.engine}, but the launcher asked for ZeRO stage {asked}; "
            "leave out --zero_stage, or set runtime.engine: launcher"
        )
    return runtime.engine


def _is_true(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes")


def check_engine(engine: EngineName, config: TrainingConfig) -> None:
    """Refuse what would train a wrong model without any error."""
    if engine == "zero3" and leaves_heads_idle(config):
        raise LaunchError(
            "pretrain.tasks_per_step: one does not work with ZeRO stage 3, which gives a head "
            "that a step does not use its last gradient once more; use stage 0 to 2, or "
            "tasks_per_step: all"
        )
    if engine in ("zero1", "zero2", "zero3") and config.clip == "tensor":
        raise LaunchError(
            f"clip: tensor does not work with ZeRO stage {engine[-1]}, where each process holds "
            "parts of many gradients; use engine ddp or zero0, or clip: global"
        )


def check_sharing(config: TrainingConfig, runtime: Runtime, *, world_size: int) -> None:
    """Refuse, before anything is launched, what `runtime` asks of so many processes."""
    check_engine("ddp" if runtime.engine == "launcher" else runtime.engine, config)
    share_out(config, runtime, rank=0, world_size=world_size)


def leaves_heads_idle(config: TrainingConfig) -> bool:
    """Whether there are parameters that some steps don't use."""
    return isinstance(config, PretrainConfig) and tasks_at_once(config) < len(config.tasks)


def share_out(config: TrainingConfig, runtime: Runtime, *, rank: int, world_size: int) -> Place:
    """Divide a step's batch over processes and accumulation; LaunchError where it leaves a rest.

    The micro-batch is the largest that `runtime.micro_batch` allows: it changes memory and speed,
    never what is trained.
    """
    together, why = samples_together(config)
    fit = [each for each in divisors(config.batch) if config.batch // each % together == 0]
    remedy = f"start {one_of(fit)} of them" if fit else "change the numbers"
    if config.batch % world_size:
        raise LaunchError(
            f"batch: {config.batch} does not divide over {world_size} processes; {remedy}, or "
            "use another batch"
        )
    lanes, samples_of_task = config.data.lanes, config.batch // tasks_at_once(config)
    if samples_of_task % lanes:
        raise LaunchError(
            f"data.lanes: {lanes} lanes do not divide the {samples_of_task} samples that a task "
            f"has in a step; use {one_of(divisors(samples_of_task))} lanes, or another batch"
        )
    share = config.batch // world_size
    if share % together:
        raise LaunchError(
            f"batch: {config.batch} gives each of {world_size} processes {share} samples, which "
            f"are not whole groups of {together} ({why}); {remedy}"
        )
    most = min(runtime.micro_batch or share, share)
    if most < together:
        raise LaunchError(
            f"runtime.micro_batch: {most} is less than the {together} samples that are needed in "
            f"memory together ({why})"
        )
    micro_batch = max(size for size in range(together, most + 1, together) if share % size == 0)
    return Place(
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        accumulation=share // micro_batch,
        steps=-(-config.samples // config.batch),
    )


def tasks_at_once(config: TrainingConfig) -> int:
    """How many tasks a step trains."""
    if isinstance(config, PretrainConfig) and config.tasks_per_step == "all":
        return len(config.tasks)
    return 1


def samples_together(config: TrainingConfig) -> tuple[int, str]:
    """How many samples a micro-batch must hold whole groups of, and the config keys behind it."""
    if isinstance(config, PretrainConfig):
        tasks = tasks_at_once(config)
        images = config.contrastive.images if config.contrastive.weight > 0 else 1
        return tasks * images, f"{tasks} tasks at once × {images} pretrain.contrastive.images"
    if isinstance(config, DnCNNTrainingConfig):
        return config.statistics_batch, "dncnn's statistics_batch"
    return 1, "a sample"


def out_of_memory(
    config: TrainingConfig, place: Place, *, bytes_here: int | None, bytes_each: float | None
) -> str:
    """What to say when a micro-batch is too large for a device of `bytes_here`, where a sample
    takes `bytes_each`; either may be unknown."""
    share, together = place.micro_batch * place.accumulation, samples_together(config)[0]
    most = place.micro_batch / 2
    if bytes_here and bytes_each:
        # 0.8: the estimate is of the forward pass alone, and the allocator needs room.
        most = min(place.micro_batch - 1, 0.8 * bytes_here / bytes_each)
    sizes = [each for each in range(together, int(most) + 1, together) if share % each == 0]
    memory = f" in {bytes_here / 2**30:.1f} GiB" if bytes_here else ""
    remedy = (
        f"runtime.micro_batch: {sizes[-1]} should; or set runtime.activation_checkpointing: true"
        if sizes
        else "set runtime.activation_checkpointing: true, or train a smaller model"
    )
    return f"a micro-batch of {place.micro_batch} samples does not fit{memory}; {remedy}"


def deepspeed_config(
    engine: EngineName, config: TrainingConfig, place: Place, *, on_gpu: bool
) -> dict[str, object]:
    """DeepSpeed's own config, complete: what it is not told it would choose by itself.

    No `bf16` and no `torch_autocast`: both would reduce gradients in bfloat16.
    """
    # Elements of a communication buffer; DeepSpeed allocates it in every step, which on a CPU
    # takes ten times longer than a step of a small model.
    bucket = 50_000_000 if on_gpu else 500_000
    zero: dict[str, object] = {"stage": int(engine.removeprefix("zero"))}
    if engine != "zero0":
        zero |= {
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        }
    if engine == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    clips_whole = config.clip_norm if config.clip == "global" else None
    return {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": place.micro_batch,
        "gradient_accumulation_steps": place.accumulation,
        # 0 is off; left out, accelerate and DeepSpeed would clip at 1.0.
        "gradient_clipping": clips_whole or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
