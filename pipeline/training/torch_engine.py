"""The engine of plain PyTorch: one process, or several under DistributedDataParallel."""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config import TrainingConfig
from pipeline.training.averaging import WeightAverage
from pipeline.training.objectives import Batch, Objective
from pipeline.training.optimizer import GroupedAdam
from pipeline.training.placement import Place


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What all ranks know after a step; the parts stay on the device until they are logged."""

    parts: dict[str, Tensor]  # loss and its parts, averaged over ranks and micro-batches
    gradient_norm: float  # of the whole gradient, before clipping
    was_skipped: bool  # loss or gradient was not finite on some rank
    stop_requested: bool  # by a signal, on some rank


class TorchEngine:
    """PyTorch in one process, or its DistributedDataParallel in several."""

    forward_is_collective = False

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        *,
        groups: Mapping[str, Sequence[nn.Parameter]],
        config: TrainingConfig,
        place: Place,
    ) -> None:
        self.device = accelerator.device
        self.groups = groups
        self.config = config
        self.place = place
        self.objective = objective
        self.wrapped: Any = self._wrap(accelerator)
        self.average: WeightAverage | None = None
        if config.ema_decay is not None:
            held = {each: self._held(each) for group in groups.values() for each in group}
            self.average = WeightAverage(held, decay=config.ema_decay)

    def _wrap(self, accelerator: Accelerator) -> nn.Module:
        with warnings.catch_warnings():
            # Its successor would not keep ddp from making rank 0's statistics everybody's.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            wrapped = accelerator.prepare(self.objective)
        self.adam = self._adam()
        self.adam.create_state(parameter for group in self.groups.values() for parameter in group)
        return wrapped

    def _adam(self) -> GroupedAdam:
        return GroupedAdam(
            self.groups, learning_rate=self.config.learning_rate, betas=self.config.betas
        )

    def accumulate(self, batch: Batch, *, is_last: bool) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch to the step's; the last one exchanges them."""
        with self._exchange(is_last=is_last):
            parts = self.wrapped(batch)
            loss: Tensor = parts["loss"]
            self._backward(loss / self.place.accumulation)
        return parts | {"loss": loss.detach()}

    def _exchange(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Within, gradients are summed over ranks only for the last micro-batch."""
        if is_last or self.place.world_size == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self.wrapped.no_sync()
        return context

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(
        self, parts: Mapping[str, Tensor], *, active: frozenset[str], rate: float, stop: bool
    ) -> StepOutcome:
        """End a step: average what is logged, agree on what happens, move the weights or don't."""
        flag = torch.tensor(float(stop), device=self.device)
        values = torch.stack([*(part.float() for part in parts.values()), flag])
        averaged = self.mean_over_ranks(values)
        self.adam.active = active
        self.adam.set_learning_rate(rate)
        loss, stopping = averaged[[list(parts).index("loss"), -1]].tolist()
        norm, was_skipped = self._step(loss_is_finite=math.isfinite(loss))
        if self.average is not None and not was_skipped:
            self.average.update()
        return StepOutcome(
            parts=dict(zip(parts, averaged, strict=False)),
            gradient_norm=norm,
            was_skipped=was_skipped,
            stop_requested=stopping > 0,
        )

    def _step(self, *, loss_is_finite: bool) -> tuple[float, bool]:
        """The gradient's norm before clipping, and whether the step was skipped."""
        norm = self._gradient_norm()
        value = norm.item()
        self.adam.skips_step = not loss_is_finite or not math.isfinite(value)
        self._clip(norm)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return value, self.adam.skips_step

    def _clip(self, norm: Tensor) -> None:
        """Make gradients shorter; `norm` is that of all of them together."""
        most = self.config.clip_norm
        if most is None:
            return
        parameters = self._active_parameters()
        if self.config.clip == "global":
            nn.utils.clip_grads_with_norm_(parameters, most, norm)
            return
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, most)

    def _active_parameters(self) -> list[nn.Parameter]:
        active = [group for name, group in self.groups.items() if name in self.adam.active]
        return [parameter for group in active for parameter in group]

    def _gradient_norm(self) -> Tensor:
        gradients = []
        for parameter in self._active_parameters():
            if parameter.grad is None:  # as DeepSpeed has it
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return nn.utils.get_total_norm(gradients)

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        if self.place.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.place.world_size
        return values

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The float32 weight, whole; under ZeRO every rank must ask, in the same order."""
        return parameter.detach()

    def _held(self, parameter: nn.Parameter) -> Tensor:
        """What this process holds of a weight; it stays the same tensor."""
        return parameter

    def averaged_weight(self, parameter: nn.Parameter) -> Tensor:
        """As `weight`, of the exponential average."""
        assert self.average is not None
        return self.average.values[parameter]

    def set_averaged_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        assert self.average is not None
        self.average.values[parameter].copy_(value)

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        moment: Tensor = self.adam.state[parameter][name]
        return moment

    def set_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        self.moment(parameter, name).copy_(value)

    def _updated_tensors(self) -> dict[str, Sequence[Tensor]]:
        """What Adam updates, by group: its keys of the optimizer's state."""
        return dict(self.groups)

    def adam_steps(self) -> dict[str, float]:
        """How often each group was updated."""
        return {
            group: self.adam.state[tensors[0]]["step"].item()
            for group, tensors in self._updated_tensors().items()
        }

    def set_adam_steps(self, steps: Mapping[str, float]) -> None:
        for group, tensors in self._updated_tensors().items():
            for tensor in tensors:
                self.adam.state[tensor]["step"].fill_(steps[group])

    def close(self) -> None:
        """Let go of what outlives this object."""
