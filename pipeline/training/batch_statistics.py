"""The running statistics of batch normalisation: each process gathers them from its images."""

import torch
from torch import Tensor, nn


class BatchStatistics:
    """Keeps the running statistics of a model the same on all ranks, and free of skipped steps."""

    def __init__(self, model: nn.Module) -> None:
        kind = nn.modules.batchnorm._BatchNorm
        norms = [each for each in model.modules() if isinstance(each, kind)]
        self.means_and_variances: list[Tensor] = [
            buffer
            for norm in norms
            for buffer in (norm.running_mean, norm.running_var)
            if buffer is not None
        ]
        counters = [norm.num_batches_tracked for norm in norms]
        self.buffers = [*self.means_and_variances, *(each for each in counters if each is not None)]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Before a step: a skipped one may have seen NaN, which would stay for ever."""
        self._before = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        for buffer, before in zip(self.buffers, self._before, strict=True):
            buffer.copy_(before)

    def average_over_ranks(self, world_size: int) -> None:
        """After every step, so that a checkpoint at any step holds the state that goes on."""
        if world_size == 1 or not self.means_and_variances:
            return
        flat = torch.cat([buffer.flatten() for buffer in self.means_and_variances])
        torch.distributed.all_reduce(flat)
        flat /= world_size
        sizes = [buffer.numel() for buffer in self.means_and_variances]
        for buffer, mean in zip(self.means_and_variances, flat.split(sizes), strict=True):
            buffer.copy_(mean.view_as(buffer))
