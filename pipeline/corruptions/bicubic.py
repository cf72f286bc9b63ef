"""MATLAB's `imresize` with its default kernel: bicubic (a = -0.5), antialiased when shrinking.

The weights of a rational scale are rational. They are kept as integers over one total per output
pixel, so that every sum over an 8-bit image is exact: the bits depend neither on the linear algebra
library nor on which region is computed, and a patch equals the same region of the whole image
resized.
"""

# H W height and width, C channels; images are (H, W) or (H, W, C), axis 0 is resized first.

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Pixel = TypeVar("Pixel", np.uint8, np.float32, np.float64)
Border = Literal["symmetric", "replicate"]

# Keeps the integer weights and the rounding of their sums exact in float64.
LARGEST_TERM = 500
# Output pixels that one matrix makes: dense enough for BLAS, and few zeros.
BLOCK = 24


@dataclass(frozen=True, kw_only=True)
class Block:
    """The weights of consecutive output pixels, which repeat along the axis."""

    sums: np.ndarray  # (outputs, sources), integers in float32 or float64
    totals: np.ndarray  # (outputs, 1), what a row of `sums` adds up to
    weights: np.ndarray  # (outputs, sources), float64, rows that add up to 1
    ends: np.ndarray  # (outputs,), the source after the last one that any output so far reads
    first: int  # source pixel of column 0 when output 0 is the image's first, often negative
    step: int  # source pixels from this block to the next


def imresize(
    image: NDArray[Pixel], scale: Fraction | float, *, border: Border = "symmetric"
) -> NDArray[Pixel]:
    """Resize as MATLAB's `imresize(image, scale)`, to ceil(scale · size) pixels.

    uint8 is rounded half up and clipped after each of the two passes (rows first), as MATLAB does;
    floats are never rounded nor clipped and keep their dtype. `border` is how pixels beyond the
    edge are made: mirrored by newer MATLAB, repeated by older MATLAB.
    """
    _check_image(image)
    exact = _exact(scale)
    height, width = (math.ceil(size * exact) for size in image.shape[:2])
    return resize_region(image, exact, rows=(0, height), columns=(0, width), border=border)


def resize_region(
    image: NDArray[Pixel],
    scale: Fraction | float,
    *,
    rows: tuple[int, int],
    columns: tuple[int, int],
    border: Border = "symmetric",
) -> NDArray[Pixel]:
    """`imresize(image, scale)[rows, columns]`, reading only the pixels that it needs.

    `rows` and `columns` are (start, stop) in the resized image. When enlarging, or at a scale that
    is not 1/s, both starts are multiples of the scale's numerator.
    """
    _check_image(image)
    exact = _exact(scale)
    for start, stop in (rows, columns):
        if not 0 <= start < stop or start % exact.numerator:
            raise ValueError(
                f"rows {rows}, columns {columns}: each is a non-empty (start, stop) whose start "
                f"is a multiple of {exact.numerator}, at scale {exact}"
            )
    region = cut(image, _sources(rows, exact), axis=0, border=border)
    region = cut(region, _sources(columns, exact), axis=1, border=border)
    region = _resize_rows(region, exact, rows[1] - rows[0])
    region = _resize_rows(region.swapaxes(0, 1), exact, columns[1] - columns[0])
    return np.ascontiguousarray(region.swapaxes(0, 1))


def downscale_patch(
    clean: NDArray[np.uint8],
    *,
    scale: int,
    top: int,
    left: int,
    patch_size: int,
    border: Border = "symmetric",
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut a square of `clean` and the same square of `imresize(clean, 1/scale)`, bit for bit.

    `clean` is a whole image whose sides are multiples of `scale` (see `modcrop`); `top` and `left`
    are its pixels, multiples of `scale`; `patch_size` is in pixels of the small image.
    Returns (clean crop, corrupted patch), sides `scale · patch_size` and `patch_size`.
    """
    height, width = clean.shape[:2]
    size = scale * patch_size
    if height % scale or width % scale:
        raise ValueError(f"{height}×{width} is not a multiple of the scale {scale}; modcrop first")
    if top % scale or left % scale:
        raise ValueError(f"position ({top}, {left}) is not a multiple of the scale {scale}")
    if patch_size < 1 or min(top, left) < 0 or top + size > height or left + size > width:
        raise ValueError(
            f"a {size}×{size} crop at ({top}, {left}) does not lie inside {height}×{width}"
        )
    row, column = top // scale, left // scale
    corrupted = resize_region(
        clean,
        Fraction(1, scale),
        rows=(row, row + patch_size),
        columns=(column, column + patch_size),
        border=border,
    )
    return clean[top : top + size, left : left + size], corrupted


def modcrop(image: NDArray[Pixel], scale: int) -> NDArray[Pixel]:
    """Drop rows and columns at the bottom and right until both sides are multiples of `scale`."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def _check_image(image: np.ndarray) -> None:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image is (H, W) or (H, W, C) and not empty; got shape {image.shape}")
    if image.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"imresize takes uint8, float32 or float64; got {image.dtype}")


@lru_cache(maxsize=32)
def _exact(scale: Fraction | float) -> Fraction:
    """`scale` as the fraction that a float such as 1/3 stands for."""
    if not 0 < scale < math.inf:
        raise ValueError(f"scale {scale} is not a positive number")
    exact = Fraction(scale).limit_denominator(LARGEST_TERM)
    if exact.numerator not in range(1, LARGEST_TERM + 1) or abs(exact / Fraction(scale) - 1) > 1e-9:
        raise ValueError(
            f"scale {scale} is not a fraction of integers up to {LARGEST_TERM}; pass a Fraction"
        )
    return exact


@lru_cache(maxsize=32)
def _block(scale: Fraction) -> Block:
    """The weights of the first outputs of an axis.

    Output k = 1, 2, … is centred at u = k/s + (1 - 1/s)/2. With s = p/q, every distance to a source
    pixel is a multiple of 1/2p, so that twice the cube of 2·max(p, q) clears all denominators.
    """
    p, q = scale.numerator, scale.denominator
    unit = 2 * max(p, q)  # one unit of the kernel's argument
    repeats = math.ceil(BLOCK / p)
    centres = 2 * q * np.arange(1, repeats * p + 1) + p - q  # of outputs, in 1/2p of a source pixel
    lowest = (centres - 2 * unit) // (2 * p)
    sources = np.arange(lowest[0], lowest[-1] + math.ceil(2 * unit / p) + 3)  # 1-based
    distance = np.abs(centres[:, None] - 2 * p * sources)
    near = 3 * distance**3 - 5 * unit * distance**2 + 2 * unit**3
    far = -(distance**3) + 5 * unit * distance**2 - 8 * unit**2 * distance + 4 * unit**3
    sums = np.where(distance <= unit, near, np.where(distance < 2 * unit, far, 0))
    sums //= np.gcd.reduce(sums, axis=None)
    read = np.flatnonzero(sums.any(axis=0))
    sums, first = sums[:, read[0] : read[-1] + 1], int(sources[read[0]]) - 1
    ends = np.maximum.accumulate([np.flatnonzero(row)[-1] + 1 for row in sums])
    totals = sums.sum(axis=1, keepdims=True)
    # Below 2**21, a sum is exact in float32 and its quotient rounds as the exact quotient does.
    is_small = np.abs(sums).sum(axis=1).max() * 255 < 2**21
    dtype = np.float32 if is_small else np.float64
    return Block(
        sums=sums.astype(dtype),
        totals=totals.astype(dtype),
        weights=sums / totals,
        ends=ends,
        first=first,
        step=repeats * q,
    )


def _sources(outputs: tuple[int, int], scale: Fraction) -> tuple[int, int]:
    """The source pixels (start, stop) that the outputs read; may lie beyond the image."""
    block = _block(scale)
    start = outputs[0] // scale.numerator * scale.denominator + block.first
    whole, last = divmod(outputs[1] - outputs[0] - 1, len(block.sums))
    return start, start + whole * block.step + int(block.ends[last])


def cut(
    image: NDArray[Pixel], span: tuple[int, int], *, axis: int, border: Border
) -> NDArray[Pixel]:
    """`image[start:stop]` along `axis`, going on beyond the border."""
    start, stop = span
    size = image.shape[axis]
    if start >= 0 and stop <= size:
        return image[start:stop] if axis == 0 else image[:, start:stop]
    indices = np.arange(start, stop)
    if border == "replicate":
        return image.take(indices.clip(0, size - 1), axis=axis)
    indices %= 2 * size
    return image.take(np.minimum(indices, 2 * size - 1 - indices), axis=axis)


def _resize_rows(region: NDArray[Pixel], scale: Fraction, outputs: int) -> NDArray[Pixel]:
    """(sources, …) to (outputs, …); `region` begins at the first source that output 0 reads."""
    block = _block(scale)
    is_rounded = region.dtype == np.uint8
    matrix = block.sums if is_rounded else block.weights
    flat = region.reshape(len(region), -1).astype(matrix.dtype)
    resized = np.empty((outputs, flat.shape[1]), matrix.dtype)
    for number, start in enumerate(range(0, outputs, len(matrix))):
        count = min(len(matrix), outputs - start)
        begin, end = number * block.step, int(block.ends[count - 1])
        part = resized[start : start + count]
        np.matmul(matrix[:count, :end], flat[begin : begin + end], out=part)
        if is_rounded:
            part /= block.totals[:count]
            part += 0.5
            np.floor(part, out=part)
            np.clip(part, 0, 255, out=part)
    return resized.astype(region.dtype).reshape(outputs, *region.shape[1:])
