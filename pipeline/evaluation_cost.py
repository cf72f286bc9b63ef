"""What restoring costs: by arithmetic, and as measured while benchmarks were scored."""

import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.artifacts import JSON
from pipeline.model_configs import DnCNNConfig, IPTConfig
from pipeline.tiling import OVERLAP, Tiling, tiled_axis

PATCH = 48  # pixels per side: the published FLOPs are of one such input
ENSEMBLE = 8


@dataclass
class Meter:
    """Wraps a restoration and adds up what it takes."""

    restore: Callable[[Tensor], Tensor]
    seconds: float = 0.0
    pixels: int = 0  # of the restored images

    def __call__(self, image: Tensor) -> Tensor:
        began = time.perf_counter()
        restored = self.restore(image)  # on the CPU: what a GPU has queued is done
        self.seconds += time.perf_counter() - began
        self.pixels += restored.shape[-2] * restored.shape[-1]
        return restored


def peak_memory(device: torch.device) -> dict[str, JSON]:
    """The most memory that was taken so far, and of what."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "tensors on the GPU"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": peak, "of": "the whole process, with its libraries"}


def parameters(config: IPTConfig | DnCNNConfig, task: str | None) -> int:
    """Of the model that restores one task: its head, body, tail and query."""
    if isinstance(config, IPTConfig) and task is not None:
        config = IPTConfig(size=config.size, scales={task: config.scales[task]})
    return config.parameters


def patch_flops(config: IPTConfig | DnCNNConfig, task: str | None) -> int:
    """Of one input of the model: an IPT's patch, or 48×48 pixels."""
    if isinstance(config, DnCNNConfig):
        return config.flops(height=PATCH, width=PATCH)
    assert task is not None
    return config.flops(task).total


def image_flops(
    config: IPTConfig | DnCNNConfig,
    task: str | None,
    sizes: Iterable[tuple[int, int]],
    *,
    tiling: Tiling | None,
    self_ensemble: bool,
) -> int:
    """Of restoring images of these sizes (height, width), which are the restored ones.

    An IPT's overlapping tiles are counted, a DnCNN's margins of windows are not.
    """
    total = 0
    for height, width in sizes:
        if isinstance(config, DnCNNConfig):
            total += config.flops(height=height, width=width)
            continue
        assert task is not None
        assert tiling is not None
        scale, patch = config.scales[task], config.size.patch_size
        tiles = 1
        for side in (height, width):
            axis = tiled_axis(
                max(side // scale, patch),
                tiling=tiling,
                patch=patch,
                scale=scale,
                overlap=min(OVERLAP, patch - 1),
            )
            tiles *= len(axis.starts)
        total += tiles * config.flops(task).total
    return total * (ENSEMBLE if self_ensemble else 1)
