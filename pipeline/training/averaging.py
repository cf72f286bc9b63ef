"""An exponential moving average of the weights, in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows weights: after each update, average ← decay · average + (1 − decay) · weight.

    `held` is what this process holds of each parameter: all of it, or under ZeRO 3 its part.
    """

    def __init__(self, held: Mapping[nn.Parameter, Tensor], *, decay: float) -> None:
        self.decay = decay
        self.held = held
        self.values = {parameter: each.detach().clone() for parameter, each in held.items()}

    @torch.no_grad()
    def update(self) -> None:
        weights = [each.detach() for each in self.held.values()]
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - self.decay)
