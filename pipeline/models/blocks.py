"""What stands before and after the transformer: heads, tails, and where bfloat16 is used."""
# N batch, C channels, H W height and width, F features

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model_configs import COLOURS, Precision, upsampling


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The region in which convolutions and matrix products run in `precision`.

    float32 also switches off a region that the caller may have entered.
    """
    if precision == "float32" and not torch.amp.is_autocast_available(device.type):
        return nullcontext()  # the meta device, which counts and computes nothing
    # Each weight is used once in a pass: a cache of casts would only hold memory.
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), 5×5, without normalisation (EDSR's block)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 5, padding=2)
        self.second = nn.Conv2d(features, features, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Head(nn.Module):
    """(N, 3, H, W) to features (N, F, H, W)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(COLOURS, features, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(features), ResidualBlock(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.first(x))


class Tail(nn.Module):
    """Features (N, F, H, W) to an image (N, 3, sH, sW)."""

    def __init__(self, features: int, scale: int) -> None:
        super().__init__()
        self.steps = upsampling(scale)
        self.upsample = nn.ModuleList(
            nn.Conv2d(features, features * step**2, 3, padding=1) for step in self.steps
        )
        self.last = nn.Conv2d(features, COLOURS, 3, padding=1)

    def forward(self, x: Tensor, precision: Precision) -> Tensor:
        with computing_in(precision, x.device):
            for step, convolution in zip(self.steps, self.upsample, strict=True):
                x = F.pixel_shuffle(convolution(x), step)
        with computing_in("float32", x.device):
            # Features reach hundreds: in bfloat16 the result would move by half a grey level.
            return self.last(x.to(self.last.weight.dtype))
