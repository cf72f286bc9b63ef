"""Joins the processes and builds the engine: PyTorch's own, or DeepSpeed's ZeRO 0 to 3.

The only module that builds an Accelerator or imports deepspeed, and that only where DeepSpeed runs.
"""

import atexit
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
)
from torch import Tensor, nn

from pipeline.config import Runtime, TrainingConfig
from pipeline.training.launcher_flags import check_launcher_flags
from pipeline.training.objectives import Objective
from pipeline.training.placement import (
    EngineName,
    LaunchError,
    Place,
    check_engine,
    choose_engine,
    deepspeed_config,
    leaves_heads_idle,
    share_out,
)
from pipeline.training.torch_engine import TorchEngine

# How long a rank waits for another one before it gives up.
TIMEOUT = timedelta(minutes=30)


@contextmanager
def started(
    config: TrainingConfig, runtime: Runtime, *, log_folder: str
) -> Iterator[tuple[Accelerator, EngineName, Place]]:
    """Join the other processes. Afterwards another training may start in this process."""
    name = choose_engine(runtime, os.environ)
    check_engine(name, config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if world_size > 1 and "LOCAL_RANK" not in os.environ:
        raise LaunchError(
            f"WORLD_SIZE is {world_size}, but LOCAL_RANK is not set; start the processes with "
            "torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    place = share_out(config, runtime, rank=rank, world_size=world_size)
    check_launcher_flags(config, runtime, place, os.environ)
    torch.set_num_threads(runtime.threads_per_process)  # the bits of a sum depend on it
    _reset_accelerate()
    if config.deterministic:
        _be_deterministic()
    try:
        accelerator = _accelerator(name, config, runtime, place, log_folder)
        atexit.register(_leave_process_group)
        # Without a process group of its own, every rank would take itself for the only one.
        if (accelerator.num_processes, accelerator.process_index) != (world_size, rank):
            raise LaunchError(
                f"the launcher says rank {rank} of {world_size}, accelerate says "
                f"{accelerator.process_index} of {accelerator.num_processes}; start the processes "
                "with torchrun or accelerate launch"
            )
        yield accelerator, name, place
    finally:
        _reset_accelerate()


def _be_deterministic() -> None:
    """From here on, in this process, only kernels that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Its backward pass sums in any order, and would be refused; attention in float32 then takes
    # the plain way.
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def _reset_accelerate() -> None:
    """Forget the last Accelerator; the process group, if any, stays for the next one."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def _leave_process_group() -> None:
    """Python must not end while a thread of gloo is at work, or that may abort it.

    Seen in 3 of 140 processes, four at a time on two cores; in none of 140 that left first, and
    once under ZeRO, whose groups outlive this: our own programs don't take Python apart at all.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _accelerator(
    name: EngineName, config: TrainingConfig, runtime: Runtime, place: Place, log_folder: str
) -> Accelerator:
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [tracker for tracker in runtime.trackers if tracker not in available]
    if missing:
        raise LaunchError(
            f"runtime.trackers: {', '.join(missing)} is not installed; install it, or choose among "
            f"{', '.join(available)}"
        )
    on_gpu = torch.cuda.is_available()
    group = InitProcessGroupKwargs(backend=None if on_gpu else "gloo", timeout=TIMEOUT)
    plugin = None
    if name != "ddp":
        if not on_gpu:
            _prepare_deepspeed_on_cpu()
        dictionary = deepspeed_config(name, config, place, on_gpu=on_gpu)
        plugin = _Plugin(hf_ds_config=dictionary, zero3_init_flag=False)
    # Looking for unused parameters also keeps ddp from regrouping its buckets after the first
    # step, by which a resumed run would sum over ranks in another order than an uninterrupted one.
    # The sum of two does not depend on the order.
    looks_for_unused = leaves_heads_idle(config) or place.world_size > 2
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=looks_for_unused, broadcast_buffers=False
    )
    return Accelerator(
        # DeepSpeed on CPUs must not hear of it: it would be turned off.
        cpu=name == "ddp" and not on_gpu,
        mixed_precision="no",
        deepspeed_plugin=plugin,
        # Both given here, or the launcher's environment would decide.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=place.accumulation),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
        # A launcher of a single process also makes accelerate wrap the model.
        kwargs_handlers=[group, ddp] if place.world_size > 1 or plugin else [ddp],
        log_with=list(runtime.trackers) or None,
        project_dir=log_folder,
    )


def _prepare_deepspeed_on_cpu() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    warnings.filterwarnings(
        "ignore", message=".*deprecated. Please use `torch.distributed", category=FutureWarning
    )
    # Only `inference_all_reduce` uses this operator, which takes minutes to compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class _Plugin(DeepSpeedPlugin):
    """accelerate's plugin with our dictionary left as it is, and without `transformers`."""

    def set_deepspeed_weakref(self) -> None:
        self.dschf = None

    def set_mixed_precision(self, mixed_precision: str) -> None:
        """The model enters autocast itself; DeepSpeed stays float32."""


def build_engine(
    accelerator: Accelerator,
    name: EngineName,
    objective: Objective,
    *,
    groups: Mapping[str, Sequence[nn.Parameter]],
    config: TrainingConfig,
    place: Place,
) -> TorchEngine:
    """Put a model under its engine. Its weights must be loaded by now: ZeRO copies them."""
    known = {id(each) for group in groups.values() for each in group}
    for parameter_name, parameter in objective.named_parameters():
        if id(parameter) not in known:
            raise ValueError(f"parameter {parameter_name} is in no group of the optimizer")
    kind = TorchEngine if name == "ddp" else DeepSpeedEngine
    engine = kind(accelerator, objective, groups=groups, config=config, place=place)
    if torch.distributed.is_initialized():
        # DeepSpeed makes groups without the timeout that it was given.
        for group in torch.distributed.distributed_c10d._world.pg_map:
            torch.distributed.distributed_c10d._set_pg_timeout(TIMEOUT, group)
    return engine


class DeepSpeedEngine(TorchEngine):
    """DeepSpeed's engine. Stage 0 keeps everything whole; 1 to 3 part the optimizer's state."""

    def _wrap(self, accelerator: Accelerator) -> nn.Module:
        import deepspeed.utils

        self.parted = deepspeed.utils
        self.adam = self._adam()
        wrapped, _ = accelerator.prepare(self.objective, self.adam)
        self.stage: int = wrapped.zero_optimization_stage()
        self.forward_is_collective = self.stage == 3
        self.zero = wrapped.optimizer  # our Adam itself under stage 0
        tensors = self._updated_tensors()
        self.adam.create_state(tensor for group in tensors.values() for tensor in group)
        if self.stage in (1, 2):
            # DeepSpeed would link parameters to their moments after the first step.
            self.zero._lazy_init_hp_params_optimizer_state()
        return wrapped

    def _updated_tensors(self) -> dict[str, Sequence[Tensor]]:
        groups = self.adam.param_groups
        if self.stage == 3:
            parted: dict[str, list[Tensor]] = {group["name"]: [] for group in groups}
            for number, tensor in enumerate(self.zero.fp32_partitioned_groups_flat):
                parted[groups[self.zero.sub_group_to_group_id[number]]["name"]].append(tensor)
            return dict(parted)
        return {group["name"]: list(group["params"]) for group in groups}

    def _exchange(self, *, is_last: bool) -> AbstractContextManager[None]:
        self.wrapped.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def _backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss, scale_wrt_gas=False)

    def _step(self, *, loss_is_finite: bool) -> tuple[float, bool]:
        if self.stage == 0:
            norm = self._gradient_norm()
            length = norm.item()
            self.adam.skips_step = not (loss_is_finite and math.isfinite(length))
            if self.config.clip == "tensor":  # the whole is clipped by DeepSpeed
                self._clip(norm)
            self.wrapped.step()
            return length, self.adam.skips_step
        self.adam.skips_step = not loss_is_finite
        self.wrapped.step()
        # DeepSpeed finds a non-finite norm itself, before it calls our Adam.
        if self.zero.overflow:
            return math.nan, True
        return float(self.wrapped.get_global_grad_norm()), self.adam.skips_step

    def weight(self, parameter: nn.Parameter) -> Tensor:
        if self.stage == 0:
            return super().weight(parameter)
        weight: Tensor = self.parted.safe_get_full_fp32_param(parameter)
        return weight.detach()

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        if self.stage == 0:
            return super().moment(parameter, name)
        moment: Tensor = self.parted.safe_get_full_optimizer_state(parameter, name)
        return moment

    def set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        if self.stage == 0:
            super().set_moment(parameter, name, value)
        elif self.stage == 3:
            # DeepSpeed's setter of the whole fails where a weight doesn't divide over the ranks.
            own = self._own_part(parameter, value)
            self.parted.safe_set_local_optimizer_state(parameter, own, name)
        else:
            self.parted.safe_set_full_optimizer_state(parameter, value, name)

    def _own_part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Of a whole tensor, what this rank holds under stage 3; the last part ends in zeros."""
        part = self._held(parameter).numel()
        padded = value.new_zeros(part * self.place.world_size)
        padded[: value.numel()] = value.flatten()
        return padded[part * self.place.rank : part * (self.place.rank + 1)]

    def _held(self, parameter: nn.Parameter) -> Tensor:
        if self.stage != 3:
            return super()._held(parameter)
        part: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        return part

    def averaged_weight(self, parameter: nn.Parameter) -> Tensor:
        part = super().averaged_weight(parameter)
        if self.stage != 3:
            return part
        whole = part.new_empty(part.numel() * self.place.world_size)
        torch.distributed.all_gather_into_tensor(whole, part)
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        return whole[: shape.numel()].view(shape)

    def set_averaged_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.stage == 3:
            value = self._own_part(parameter, value.to(self.device))
        super().set_averaged_weight(parameter, value)

    def close(self) -> None:
        self.wrapped.destroy()
