"""The losses of both recipes: L1 and contrast for IPT, half the squared error for DnCNN."""
# B images of one task, N tokens of each, D embedding, M = B × N, C rows of a chunk

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Similarities in one table, 16 MiB in float32: those of 8 images of 256 tokens. Larger groups are
# compared in chunks of rows, recomputed in the backward pass; at most three tables live at a time.
SIMILARITIES_AT_ONCE = 2**22
GREY_LEVELS = 255  # the published weight of the contrastive term, 0.1, belongs to this scale

Comparison = Callable[[Tensor, int, int, int], Tensor]


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference in grey levels; both images are in [0, 1]."""
    return F.l1_loss(restored, _same_shape(clean, restored)) * GREY_LEVELS


def half_squared_error(restored: Tensor, clean: Tensor) -> Tensor:
    """½ Σ (restored − clean)² / N over N images in [0, 1]: DnCNN's loss, summed over pixels."""
    return F.mse_loss(restored, _same_shape(clean, restored), reduction="sum") / (2 * len(clean))


def supcon(
    tokens: Tensor,
    temperature: float = 0.07,
    *,
    similarities_at_once: int = SIMILARITIES_AT_ONCE,
) -> Tensor:
    """Supervised contrast of tokens (B, N, D), as the authors' training code has it.

    The tokens of an image are each other's positives; the denominator holds every other token.
    Random tokens give ln(BN − 1); no tokens give less than ln(N − 1).
    """
    images, count, _ = tokens.shape
    if count < 2:
        raise ValueError("supcon: an image of one token has no positives")
    with torch.autocast(tokens.device.type, enabled=False):
        z = _unit(tokens)
        scaled = z / math.sqrt(temperature)
        # The mean over positives needs no table: Σⱼ zᵢ·zⱼ = zᵢ·(Σⱼ zⱼ).
        to_image = (z * z.sum(1, keepdim=True)).sum(-1) - (z * z).sum(-1)
        positives = to_image / (temperature * (count - 1))  # (B, N)
        denominators = _over_rows(
            _sum_to_all_others, scaled.flatten(0, 1), count, similarities_at_once
        )
        return (denominators - positives.sum()) / (images * count)


def patch_contrast(tokens: Tensor, *, similarities_at_once: int = SIMILARITIES_AT_ONCE) -> Tensor:
    """The paper's contrast of tokens (B, N, D): cosines without a temperature.

    A pair of tokens of image j stands against the tokens of the other images in the place of the
    second: −log(exp d(fᵢ₁ʲ, fᵢ₂ʲ) / Σ_{k≠j} exp d(fᵢ₁ʲ, fᵢ₂ᵏ)), averaged over j, i₁ and i₂.
    Random tokens give ln(B − 1); it can be negative.
    """
    images, count, _ = tokens.shape
    if images < 2:
        raise ValueError("patch_contrast: one image has no others to differ from; give two or more")
    with torch.autocast(tokens.device.type, enabled=False):
        z = _unit(tokens)
        positives = z.mean(1).square().sum(-1)  # (B,): the mean cosine of an image's pairs
        denominators = _over_rows(
            _sum_to_other_images, z.flatten(0, 1), count, similarities_at_once
        )
        return denominators / (images * count**2) - positives.mean()


def _unit(tokens: Tensor) -> Tensor:
    """Tokens of length one, at least in float32: bfloat16 would move similarities by 1%."""
    return F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)


def _sum_to_all_others(z: Tensor, start: int, stop: int, count: int) -> Tensor:
    """Σ over rows `start` to `stop` of log Σ over the other tokens of exp(similarity)."""
    similarity = z[start:stop] @ z.T  # (C, M)
    rows = torch.arange(stop - start, device=z.device)
    similarity[rows, rows + start] = -torch.inf
    return similarity.logsumexp(1).sum()


def _sum_to_other_images(z: Tensor, start: int, stop: int, count: int) -> Tensor:
    """Σ over rows and places of log Σ over the other images of exp(similarity)."""
    similarity = (z[start:stop] @ z.T).unflatten(1, (-1, count))  # (C, B, N)
    rows = torch.arange(stop - start, device=z.device)
    similarity[rows, (rows + start) // count] = -torch.inf
    return similarity.logsumexp(1).sum()


def _over_rows(compare: Comparison, z: Tensor, count: int, similarities_at_once: int) -> Tensor:
    """Sum `compare` over all rows of z (M, D), holding so many similarities at once."""
    rows = max(1, similarities_at_once // len(z))
    if rows >= len(z):
        return compare(z, 0, len(z), count)
    total = z.new_zeros(())
    for start in range(0, len(z), rows):
        stop = min(start + rows, len(z))
        total = total + checkpoint(compare, z, start, stop, count, use_reentrant=False)
    return total


def _same_shape(clean: Tensor, restored: Tensor) -> Tensor:
    if clean.shape != restored.shape:
        raise ValueError(
            f"restored {tuple(restored.shape)} and clean {tuple(clean.shape)} differ in shape"
        )
    return clean
