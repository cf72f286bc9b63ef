"""Gaussian noise from counters: the same bits on every device, for any number of workers.

A sample's key gives 64-bit numbers, these give 16-bit ones, and two entries of a table of the
normal distribution's quantiles give a sum that is normal again. All of that is arithmetic of
integers; the three float32 operations that follow are each rounded as IEEE 754 says.
"""

# N batch, C channels, H W height and width; keys are (N,) int64, of which every bit matters.

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from pipeline.tasks import GaussianNoise

GOLDEN, FIRST, SECOND = (  # of splitmix64, as int64: torch has no arithmetic of uint64
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
LEVELS = 2**16  # quantiles in the table
UNIT = 2**20  # of the table; the sum of two entries is exact in float32
LEVEL_BITS = 24  # of what a noise level is drawn from
LEVEL_KEY = 1 << 62  # a counter that no pixel reaches


def mix(values: Tensor) -> Tensor:
    """What `order.mix` computes, of int64 with the same bits."""
    mixed = values + GOLDEN
    for shift, factor in ((30, FIRST), (27, SECOND)):
        mixed ^= _shifted(mixed, shift)
        mixed *= factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(values: Tensor, places: int) -> Tensor:
    """To the right, as if the sign were a bit like any other."""
    return (values >> places).bitwise_and_((1 << (64 - places)) - 1)


def standard_normal(keys: Tensor, count: int) -> tuple[Tensor, float]:
    """(N, count) float32 whole numbers and their standard deviation.

    Each key's numbers are drawn by themselves, from N(0, 1) times that deviation.
    """
    table, deviation = _quantiles(keys.device)
    words = -(-count // 2)
    counters = torch.arange(words, device=keys.device) * GOLDEN
    lanes = mix(keys[:, None] + counters).view(torch.int16)  # (N, 4 · words)
    places = lanes.to(torch.int32).add_(LEVELS // 2)
    drawn = table.index_select(0, places.view(-1)).view(len(keys), 2, -1)
    return (drawn[:, 0, :count] + drawn[:, 1, :count]).float(), deviation


@lru_cache(maxsize=8)
def _quantiles(device: torch.device) -> tuple[Tensor, float]:
    """The normal distribution's quantiles in the middle of LEVELS equal parts, times UNIT, and the
    standard deviation of the sum of two."""
    normal = NormalDist()
    upper = [normal.inv_cdf(0.5 + (level + 0.5) / LEVELS) for level in range(LEVELS // 2)]
    halves = np.rint(np.array(upper) * UNIT).astype(np.int32)
    table = np.concatenate([-halves[::-1], halves])
    deviation = float(np.sqrt(2 * np.mean(table.astype(np.float64) ** 2)))
    return torch.from_numpy(table).to(device), deviation


def noise_levels(keys: Tensor, sigma_255: float | tuple[float, float]) -> Tensor:
    """(N,) float32: the level itself, or for each key one drawn uniformly from the range."""
    low, high = sigma_255 if isinstance(sigma_255, tuple) else (sigma_255, sigma_255)
    share = _shifted(mix(keys + LEVEL_KEY), 64 - LEVEL_BITS).float()  # whole numbers below 2**24
    return share * _scalar((high - low) / 2**LEVEL_BITS, keys) + _scalar(low, keys)


def _scalar(value: float, like: Tensor) -> Tensor:
    """A float32 on the device, made there: copying it would wait for the device. A number instead
    would let a GPU divide in another way."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def noisy(clean: Tensor, keys: Tensor, noise: GaussianNoise) -> Tensor:
    """clean + N(0, sigma_255²) on the scale of [0, 1], float32, not rounded.

    `clean` is (N, C, H, W) uint8, 0..255; the result is clipped to [0, 1] if `noise` says so.
    """
    normal, deviation = standard_normal(keys, clean[0].numel())
    scale = noise_levels(keys, noise.sigma_255) * _scalar(1 / deviation, keys)
    added = normal.mul_(scale[:, None]).view(clean.shape).add_(clean).div_(_scalar(255, keys))
    return added.clamp_(0, 1) if noise.clip else added
