"""What is minimised: a module that turns a micro-batch into a loss and its parts."""

# N batch, C channels, H W height and width, L tokens, D embedding

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.config import ContrastiveConfig
from pipeline.losses import half_squared_error, l1, patch_contrast, supcon

Batch = Mapping[str, tuple[Tensor, Tensor]]  # task: corrupted and clean, each (N, C, H, W)
CONTRASTS = {"supcon": supcon, "paper": patch_contrast}


class MultiTaskModel(Protocol):
    """What pretraining and fine-tuning need of a model."""

    def forward_tasks(self, images: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per task the restored images (N, C, H, W) in [0, 1] and their tokens (N, L, D)."""
        ...


class Objective(nn.Module):
    """A model and what it is trained for.

    `forward` returns the mean "loss" over the images of a micro-batch, with its graph, and the
    named parts that are logged, without.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def as_images(pixels: Tensor) -> Tensor:
    """uint8 (0..255) or float (already [0, 1]) as float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


class RestorationObjective(Objective):
    """mean over tasks of L1 on 0..255, plus weight × the contrastive loss of the tokens.

    The contrastive loss compares fixed groups of consecutive images of one task, so it does not
    depend on how a batch is cut into micro-batches and processes. None, or a weight of 0, leaves
    it out.
    """

    def __init__(self, model: nn.Module, *, contrastive: ContrastiveConfig | None = None) -> None:
        super().__init__(model)
        self.contrastive = contrastive if contrastive and contrastive.weight > 0 else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model: MultiTaskModel = self.model  # type: ignore[assignment] # a protocol of a module
        results = model.forward_tasks({task: as_images(pair[0]) for task, pair in batch.items()})
        parts: dict[str, Tensor] = {}
        contrasts: list[Tensor] = []
        for task, (restored, tokens) in results.items():
            parts[f"l1/{task}"] = l1(restored.float(), as_images(batch[task][1]))
            if self.contrastive is not None:
                contrasts.append(_contrast(tokens, task, self.contrastive))
        loss = torch.stack(list(parts.values())).mean()
        if self.contrastive is not None:
            contrast = torch.stack(contrasts).mean()
            parts["contrastive"] = contrast
            loss = loss + self.contrastive.weight * contrast
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def _contrast(tokens: Tensor, task: str, config: ContrastiveConfig) -> Tensor:
    """The mean contrastive loss of the groups in tokens (N, L, D) of one task."""
    if len(tokens) % config.images:
        raise ValueError(
            f"{len(tokens)} images of {task} are not whole groups of {config.images} "
            "(contrastive.images)"
        )
    contrast = CONTRASTS[config.form]
    return torch.stack([contrast(group) for group in tokens.float().split(config.images)]).mean()


class DnCNNObjective(Objective):
    """½ Σ (restored − clean)² / N: DnCNN's loss on the residual, Σ over pixels and channels.

    The batch-norm statistics of a forward pass are those of `statistics_batch` images, whatever
    the micro-batch, because they change the result.
    """

    def __init__(self, model: nn.Module, *, statistics_batch: int) -> None:
        super().__init__(model)
        self.statistics_batch = statistics_batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        parts = {}
        for task, (corrupted, clean) in batch.items():
            if len(corrupted) % self.statistics_batch:
                raise ValueError(
                    f"{len(corrupted)} images of {task} are not whole batches of "
                    f"{self.statistics_batch} (statistics_batch)"
                )
            chunks = as_images(corrupted).split(self.statistics_batch)
            restored = torch.cat([self.model(chunk) for chunk in chunks])  # (N, C, H, W)
            parts[f"l2/{task}"] = half_squared_error(restored.float(), as_images(clean))
        loss = torch.stack(list(parts.values())).mean()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}
