"""From the spec of a corruption, in `tasks.py`, to the function that does it."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.corruptions.bicubic import downscale_patch, imresize
from pipeline.corruptions.noise import add_gaussian_noise
from pipeline.corruptions.rain import add_rain, cut_layer
from pipeline.tasks import Bicubic, Corruption, GaussianNoise, RainStreaks


def corrupt(
    clean: NDArray[np.uint8],
    corruption: Corruption,
    rng: np.random.Generator,
    *,
    rain_layers: NDArray[np.uint8] | None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The corrupted version of a whole clean image, (H, W, C) uint8.

    Bicubic and rain give uint8; noise gives float32 on the scale of [0, 1], not rounded, and beyond
    [0, 1] unless the spec clips. `rain_layers` is the bank of the rain-layers stage, (n, S, S);
    `rng` decides the noise, or which layer and which piece of it.
    """
    match corruption:
        case Bicubic(scale=scale, border=border):
            if any(side % scale for side in clean.shape[:2]):
                raise ValueError(
                    f"{clean.shape[0]}×{clean.shape[1]} is not a multiple of the scale {scale}; "
                    "modcrop first"
                )
            return imresize(clean, Fraction(1, scale), border=border)
        case GaussianNoise(sigma_255=sigma_255, clip=clip):
            return add_gaussian_noise(clean, sigma_255, clip=clip, rng=rng)
        case RainStreaks():
            if rain_layers is None or len(rain_layers) == 0:
                raise ValueError("rain needs the layers of the rain-layers stage; got none")
            layer = rain_layers[rng.integers(len(rain_layers))]
            return add_rain(clean, cut_layer(layer, *clean.shape[:2], rng=rng))


def corrupt_crop(
    clean: NDArray[np.uint8],
    corruption: Corruption,
    rng: np.random.Generator,
    *,
    top: int,
    left: int,
    patch_size: int,
    rain_layers: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | NDArray[np.float32]]:
    """(clean crop, corrupted patch) of a whole image, the patch `patch_size` pixels wide.

    For bicubic, `top` and `left` are multiples of the scale in the modcropped image, and the patch
    equals the same region of the whole image resized.
    """
    if isinstance(corruption, Bicubic):
        return downscale_patch(
            clean,
            scale=corruption.scale,
            top=top,
            left=left,
            patch_size=patch_size,
            border=corruption.border,
        )
    height, width = clean.shape[:2]
    if min(top, left) < 0 or top + patch_size > height or left + patch_size > width:
        raise ValueError(
            f"a {patch_size}×{patch_size} crop at ({top}, {left}) does not lie inside "
            f"{height}×{width}"
        )
    crop = clean[top : top + patch_size, left : left + patch_size]
    return crop, corrupt(crop, corruption, rng, rain_layers=rain_layers)
