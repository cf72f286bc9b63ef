"""The four numbers that every image gets: PSNR and SSIM, each on RGB and on luma (Y).

Deraining gets two more: its literature scores luma rounded to 8 bits, IPT luma as it is.
"""

# N batch, C channels (3, or 1 of a grey task), H W height and width

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.corruptions.bicubic import imresize
from pipeline.metrics import luma, psnr, quantise, ssim
from pipeline.model_configs import COLOURS
from pipeline.tasks import Bicubic, Corruption, RainStreaks

ROUNDED = ("psnr_y_rounded", "ssim_y_rounded")


class RestorationError(ValueError):
    """A model whose output can't be scored."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One restored image: the scores before and after, and the pictures, (H, W, 3) uint8."""

    corrupted: dict[str, float | None]
    restored: dict[str, float | None]
    pictures: dict[str, np.ndarray]  # corrupted, restored, clean


def score_restoration(
    corrupted: np.ndarray,
    clean: np.ndarray,
    *,
    corruption: Corruption,
    restore: Callable[[Tensor], Tensor],
) -> Scored:
    """Restore one image and score it before and after, against `clean`, (H, W, C) uint8.

    `corrupted` is uint8, or float32 in [0, 1] for drawn noise: the model gets its float values
    and it is scored as drawn. For super-resolution the corrupted image is scored, and shown,
    upscaled bicubically in 8 bits. The restored image is rounded to 8 bits.
    """
    shown, crop_border = corrupted, 0
    if isinstance(corruption, Bicubic):
        shown = imresize(corrupted, corruption.scale, border=corruption.border)
        crop_border = corruption.scale
    target = as_tensor(clean)
    output = restore(as_tensor(corrupted))
    if output.shape != target.shape:
        raise RestorationError(f"restored to {tuple(output.shape)}, not {tuple(target.shape)}")
    if not output.isfinite().all():  # its PSNR would read as that of equal images
        raise RestorationError(
            "the model restores to values that are not numbers: its training diverged; see its "
            "metrics.jsonl, lower its learning rate and train it again"
        )
    restored = quantise(output)
    scores = []
    for image in (as_tensor(shown), restored):
        each = score(image, target, crop_border=crop_border)
        if isinstance(corruption, RainStreaks):
            rounded = score(image, target, crop_border=crop_border, rounded_luma=True)
            each |= dict(zip(ROUNDED, (rounded["psnr_y"], rounded["ssim_y"]), strict=True))
        scores.append(each)
    return Scored(
        corrupted=scores[0],
        restored=scores[1],
        pictures={
            "corrupted": as_picture(as_tensor(shown)),
            "restored": as_picture(restored),
            "clean": as_picture(target),
        },
    )


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C), uint8 or float in [0, 1], as (1, C, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return pixels.float() / 255 if image.dtype == np.uint8 else pixels.float()


def as_picture(image: Tensor) -> np.ndarray:
    """(1, C, H, W) in [0, 1], possibly beyond, as (H, W, 3) uint8."""
    pixels = (image[0].clamp(0, 1) * 255).round().to(torch.uint8).expand(COLOURS, -1, -1)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def score(
    image: Tensor, clean: Tensor, *, crop_border: int, rounded_luma: bool = False
) -> dict[str, float | None]:
    """PSNR in dB and SSIM of one image; None for the infinite PSNR of equal images.

    Both are (1, C, H, W) in [0, 1], as they are: whoever calls has rounded what is to be rounded.
    SSIM on RGB is the mean over the channels. Grey images are their own luma, so that both scores
    are of their one channel. `rounded_luma` is the convention of deraining papers.
    """
    image_y, clean_y = image, clean
    if image.shape[1] == COLOURS:
        image_y, clean_y = (luma(each, rounded=rounded_luma) for each in (image, clean))
    return {
        "psnr_rgb": _finite(psnr(image, clean, crop_border)),
        "psnr_y": _finite(psnr(image_y, clean_y, crop_border)),
        "ssim_rgb": _finite(ssim(image, clean, crop_border)),
        "ssim_y": _finite(ssim(image_y, clean_y, crop_border)),
    }


def mean_scores(images: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of per-image scores, which is how the literature averages PSNR."""
    means: dict[str, float | None] = {}
    for name in images[0]:
        values = [image[name] for image in images]
        finite = [value for value in values if value is not None]
        means[name] = math.fsum(finite) / len(values) if len(finite) == len(values) else None
    return means


def _finite(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None
