"""Adam that moves only the parts of a model that a step used, and its learning rate."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class GroupedAdam(torch.optim.Adam):
    """Adam whose step leaves out the parameter groups that the step did not use.

    PyTorch leaves a parameter without gradient alone. DeepSpeed gives it a gradient of zero, by
    which Adam's momentum would go on moving an idle head and shrink its next real step. With
    inactive groups left out both are the same, bit by bit. DeepSpeed calls `step` once for each
    group, on its flat partition of it; a group is known by its "name" there too.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[nn.Parameter]],
        *,
        learning_rate: float,
        betas: tuple[float, float],
    ) -> None:
        named = [{"params": list(parameters), "name": name} for name, parameters in groups.items()]
        super().__init__(named, lr=learning_rate, betas=betas)
        self.active: frozenset[str] = frozenset(groups)
        self.skips_step = False  # set when loss or gradient is not finite on any rank

    def step(  # type: ignore[override] # as every torch optimizer
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Update the active groups, or nothing where the step is to be skipped."""
        assert closure is None, "closures are not supported"
        if self.skips_step:
            return
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["name"] in self.active]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def set_learning_rate(self, rate: float) -> None:
        for group in self.param_groups:
            group["lr"] = rate

    def create_state(self, tensors: Iterable[Tensor]) -> None:
        """Give each updated tensor its moments, zero, now instead of at its first update.

        So a checkpoint can hold the state of a head before its first step.
        """
        for tensor in tensors:
            self.state[tensor] = {
                "step": torch.tensor(0.0),
                **{moment: torch.zeros_like(tensor.detach()) for moment in MOMENTS},
            }


def learning_rate(config: TrainingConfig, samples: int) -> float:
    """The rate of the step that begins after `samples` samples.

    Linear warm-up first. Then `step`: the first rate up to `drop_at` of all samples, the final one
    from there on; or `cosine`: half a wave from the first to the final rate.
    """
    first, final = config.learning_rate, config.final_learning_rate
    if samples < config.warmup_samples:
        return first * min(1.0, (samples + config.batch) / config.warmup_samples)
    if config.schedule == "step":
        return first if samples < config.drop_at * config.samples else final
    progress = (samples - config.warmup_samples) / max(1, config.samples - config.warmup_samples)
    return final + (first - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
