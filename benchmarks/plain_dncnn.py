"""DnCNN-S at σ 25 trained as one would write it down, by torch and numpy alone."""
# N batch, H W height and width; images have one channel and are in [0, 1]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIGMA_255, PATCH_SIZE = 25, 40
FIRST_RATE, FINAL_RATE, DROP_AT = 1e-3, 1e-4, 0.6
GAIN, EPSILON, MOMENTUM = 0.2, 1e-4, 0.1  # of the initial weights; of batch normalisation
PARTS = 4  # of a training; after each, its mean loss is told and the model measured

Photograph = NDArray[np.uint8]  # (H, W)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is shortened, of a training and of the model for tests."""

    steps: int
    batch: int
    depth: int
    features: int

    @property
    def ends(self) -> list[int]:
        """The step that ends each part."""
        return [self.steps // PARTS * part for part in range(1, PARTS + 1)]


class PlainLoop:
    """The recipe as one would write it down, from torch alone."""

    def __init__(self, recipe: Recipe, seed: int, *, photographs: Sequence[Photograph]) -> None:
        torch.manual_seed(seed)
        self.recipe = recipe
        self.photographs = photographs
        self.draws = np.random.default_rng(seed)
        self.network = plain_network(recipe.depth, recipe.features)
        self.adam = torch.optim.Adam(self.network.parameters(), lr=FIRST_RATE)

    def patches(self) -> Tensor:
        """(N, 1, H, W) in [0, 1], each in one of the eight orientations."""
        found = []
        for _ in range(self.recipe.batch):
            photograph = self.photographs[int(self.draws.integers(len(self.photographs)))]
            top, left = (int(self.draws.integers(n - PATCH_SIZE + 1)) for n in photograph.shape)
            window = photograph[top : top + PATCH_SIZE, left : left + PATCH_SIZE]
            patch = np.rot90(window, int(self.draws.integers(4)))
            found.append(patch[:, ::-1] if self.draws.integers(2) else patch)
        return torch.from_numpy(np.stack(found)[:, None] / np.float32(255))

    def step(self, number: int) -> float:
        """Train on a batch of its own drawing; its loss."""
        clean = self.patches()
        return self.step_on(clean, torch.randn_like(clean) * (SIGMA_255 / 255), number)

    def step_on(self, clean: Tensor, noise: Tensor, number: int) -> float:
        """Train on a given batch; its loss."""
        if number >= DROP_AT * self.recipe.steps:
            self.adam.param_groups[0]["lr"] = FINAL_RATE
        loss = (self.network(clean + noise) - noise).square().sum() / (2 * len(clean))
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.item()

    def restore(self, noisy: Tensor) -> Tensor:
        self.network.eval()
        restored = noisy - self.network(noisy)
        self.network.train()
        return restored


def plain_network(depth: int, features: int) -> nn.Sequential:
    """What predicts the noise."""
    layers: list[nn.Module] = [nn.Conv2d(1, features, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features, eps=EPSILON, momentum=MOMENTUM),
            nn.ReLU(),
        ]
    layers.append(nn.Conv2d(features, 1, 3, padding=1, bias=False))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain=GAIN)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
