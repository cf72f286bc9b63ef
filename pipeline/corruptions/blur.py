"""Blur by a known kernel, mirrored beyond the border as MATLAB's `imfilter(…, 'symmetric')`.

The weights of a kernel are multiples of 2**-20, so that every sum over an 8-bit image is exact: the
bits depend neither on the machine nor on which region is computed.
"""

# H W height and width, C channels; images are (H, W, C) uint8, kernels (2r + 1, 2r + 1).

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.corruptions.bicubic import cut

UNIT = 2**20
GAUSSIAN_RADIUS = 10  # Real-ESRGAN's kernels are at most 21 pixels wide


def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """The column (21, 1) whose outer product with itself is the kernel: exp(-r² / 2σ²), of sum 1.

    `sigma` is in pixels.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma {sigma} of a Gaussian blur is not a number above 0")
    distances = np.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1)
    return _normalised(np.exp(-0.5 * (distances / sigma) ** 2)[:, None])


def motion_kernel(length: float, angle: float) -> NDArray[np.float64]:
    """MATLAB's `fspecial('motion', length, angle)`, padded to an odd square; antialiased, of sum 1.

    A pixel's weight is 1 - its distance to a segment of `length` - 1 pixels, the path from the
    first pixel's centre to the last one's, and 0 from a distance of 1 on. As in MATLAB, whatever is
    as far from the middle as the segment's end is measured from that end, even where it lies
    beside the segment. `angle` is in degrees from the horizontal, counterclockwise.
    """
    if not 1 <= length < math.inf or not math.isfinite(angle):
        raise ValueError(f"motion of length {length}, angle {angle}: at least 1 pixel, any angle")
    half = (length - 1) / 2
    radius = math.ceil(half + 1) - 1
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    along, across = columns * cosine - rows * sine, columns * sine + rows * cosine
    # 1e-9: at multiples of 90° a pixel at the segment's end lies at it.
    is_at_end = np.hypot(along, across) >= half - 1e-9
    distance = np.where(is_at_end, np.hypot(across, half - abs(along)), abs(across))
    return _normalised(np.clip(1 - distance, 0, None))


def blur_region(
    image: NDArray[np.uint8],
    *kernels: NDArray[np.float64],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> NDArray[np.uint8]:
    """`rows`, `columns` (start, stop) of the whole image, convolved with each kernel in turn.

    The kernels are symmetric in their middle. The result is rounded half up, once.
    """
    reach = [sum(kernel.shape[axis] // 2 for kernel in kernels) for axis in (0, 1)]
    region = cut(image, (rows[0] - reach[0], rows[1] + reach[0]), axis=0, border="symmetric")
    region = cut(region, (columns[0] - reach[1], columns[1] + reach[1]), axis=1, border="symmetric")
    sums = region.astype(np.float64)
    for kernel in kernels:
        height, width = (
            side - taps + 1 for side, taps in zip(sums.shape[:2], kernel.shape, strict=True)
        )
        total = np.zeros((height, width, image.shape[2]))
        for row, column in np.argwhere(kernel).tolist():
            total += kernel[row, column] * sums[row : row + height, column : column + width]
        sums = total
    return np.floor(sums + 0.5).astype(np.uint8)


def _normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights with a sum of 1, in multiples of 1 / UNIT."""
    kernel = np.rint(weights / weights.sum() * UNIT)
    kernel[tuple(side // 2 for side in kernel.shape)] += UNIT - kernel.sum()
    return kernel / UNIT
