"""From the spec of a corruption, in `tasks.py`, to the function that does it."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.corruptions.bicubic import downscale_patch, imresize
from pipeline.corruptions.blur import blur_both_ways, blur_once, gaussian_kernel, motion_weights
from pipeline.corruptions.jpeg import compress_region
from pipeline.corruptions.noise import add_gaussian_noise
from pipeline.corruptions.rain import add_rain, cut_layer
from pipeline.tasks import (
    Bicubic,
    Corruption,
    GaussianBlur,
    GaussianNoise,
    JpegCompression,
    MotionBlur,
    RainStreaks,
    ranges,
)


def drawn(corruption: Corruption, rng: np.random.Generator) -> Corruption:
    """The spec for one sample: every range is replaced by a value drawn from it, uniformly.

    A range of whole numbers gives one of them, its ends included. Where there is no range, nothing
    is drawn.
    """
    values: dict[str, int | float] = {}
    for name, (low, high) in ranges(corruption).items():
        if isinstance(low, int) and isinstance(high, int):
            values[name] = int(rng.integers(low, high + 1))
        else:
            # As Generator.uniform does, in a third of the time; rounded as records show it.
            values[name] = round(low + (high - low) * rng.random(), 4)
    # As dataclasses.replace does, at half the time.
    return type(corruption)(**(vars(corruption) | values)) if values else corruption


def corrupt(
    clean: NDArray[np.uint8],
    corruption: Corruption,
    rng: np.random.Generator,
    *,
    rain_layers: NDArray[np.uint8] | None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The corrupted version of a whole clean image, (H, W, C) uint8.

    Noise gives float32 on the scale of [0, 1], not rounded, and beyond [0, 1] unless the spec
    clips; every other corruption gives uint8. `rain_layers` is the bank of the rain-layers stage,
    (n, S, S); `rng` decides whatever is random.
    """
    height, width = clean.shape[:2]
    if isinstance(corruption, Bicubic):
        scale = corruption.scale
        if height % scale or width % scale:
            raise ValueError(
                f"{height}×{width} is not a multiple of the scale {scale}; modcrop first"
            )
        return imresize(clean, Fraction(1, scale), border=corruption.border)
    whole = {"rows": (0, height), "columns": (0, width)}
    return _corrupt_region(clean, corruption, rng, **whole, rain_layers=rain_layers)


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

    Resizing, blur and compression reach beyond the crop: the patch equals the same region of the
    whole image corrupted. For bicubic, `top` and `left` are multiples of the scale in the
    modcropped image.
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
    bottom, right = top + patch_size, left + patch_size
    if min(top, left) < 0 or bottom > height or right > width:
        raise ValueError(
            f"a {patch_size}×{patch_size} crop at ({top}, {left}) does not lie inside "
            f"{height}×{width}"
        )
    patch = _corrupt_region(
        clean,
        corruption,
        rng,
        rows=(top, bottom),
        columns=(left, right),
        rain_layers=rain_layers,
    )
    return clean[top:bottom, left:right], patch


def _corrupt_region(
    clean: NDArray[np.uint8],
    corruption: Corruption,
    rng: np.random.Generator,
    *,
    rows: tuple[int, int],
    columns: tuple[int, int],
    rain_layers: NDArray[np.uint8] | None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The part `rows`, `columns` (start, stop) of the corrupted image, as large as the clean."""
    region = clean[slice(*rows), slice(*columns)]
    match drawn(corruption, rng):
        case GaussianNoise(sigma_255=float() | int() as sigma_255, clip=clip):
            return add_gaussian_noise(region, sigma_255, clip=clip, rng=rng)
        case RainStreaks():
            if rain_layers is None or len(rain_layers) == 0:
                raise ValueError("rain needs the layers of the rain-layers stage; got none")
            layer = rain_layers[rng.integers(len(rain_layers))]
            return add_rain(region, cut_layer(layer, *region.shape[:2], rng=rng))
        case JpegCompression(quality=int() as quality):
            return compress_region(clean, quality, rows=rows, columns=columns)
        case GaussianBlur(sigma=float() | int() as sigma):
            return blur_both_ways(clean, gaussian_kernel(sigma), rows=rows, columns=columns)
        case MotionBlur(length=float() | int() as length, angle=float() | int() as angle):
            return blur_once(clean, motion_weights(length, angle), rows=rows, columns=columns)
    raise AssertionError(f"no function for {corruption}")
