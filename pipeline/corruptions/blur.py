"""Blur by a known kernel, mirrored beyond the border as MATLAB's `imfilter(…, 'symmetric')`.

The weights of a kernel are whole numbers, of sum 2**20, so that every sum over an 8-bit image is
exact: the bits depend neither on the machine, nor on the order of the sum, nor on which region is
computed.
"""

# H W height and width, C channels; images are (H, W, C) uint8. Kernels are int32, have odd sides
# and weights of at least 0, and are symmetric in their middle.

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.corruptions.bicubic import cut

BITS = 20
UNIT = 2**BITS
GAUSSIAN_RADIUS = 10  # Real-ESRGAN's kernels are at most 21 pixels wide
KERNELS_KEPT = 4096  # of motion, about 1 kB each: whole pixels and degrees have fewer
FLOAT32_BITS = 24
AT_ONCE = 2**14  # values, of each weight: more than a patch of 48 pixels has
BLOCK = 24  # outputs of one matrix: dense enough for BLAS, and few zeros


def gaussian_kernel(sigma: float) -> NDArray[np.int32]:
    """The 21 weights whose outer product with themselves is the kernel: exp(-r² / 2σ²).

    `sigma` is in pixels.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma {sigma} of a Gaussian blur is not a number above 0")
    # By Python's numbers: for so few, NumPy takes twice as long.
    ratios = [distance / sigma for distance in range(1, GAUSSIAN_RADIUS + 1)]
    weights = [math.exp(-0.5 * ratio * ratio) for ratio in ratios]
    unit = UNIT / (1 + 2 * sum(weights))
    beside = [round(unit * weight) for weight in weights]
    return np.array([*reversed(beside), UNIT - 2 * sum(beside), *beside], np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """The weights of a square kernel that are not 0, as `blur_once` takes them.

    A float32 holds whole numbers of 24 bits, and sums have 28: `weights` are each weight's upper
    and lower bits, whose sums are exact, whatever the order.
    """

    reach: tuple[int, int]  # pixels down and right
    # (n // 2,) of the n weights: how far below and right of the first row and column they are. That
    # opposite to each is equal to it; the odd one is in the middle.
    downs: NDArray[np.int64]
    rights: NDArray[np.int64]
    # (2, n // 2 + 1) in units of UNIT, and in units of `lower_unit` of that.
    weights: NDArray[np.float32]
    lower_unit: float

    @staticmethod
    def of(kernel: NDArray[np.int32]) -> "Weights":
        """Those of a kernel of at most 4111 weights, the middle one above 0; else ValueError."""
        downs, rights = kernel.nonzero()
        first_down, first_right = int(downs[0]), int(rights.min())
        half = len(downs) // 2
        lower_bits = FLOAT32_BITS - (255 * len(downs)).bit_length()
        middle = kernel[len(kernel) // 2, kernel.shape[1] // 2]
        if lower_bits < BITS + 8 - FLOAT32_BITS or middle <= 0:
            raise ValueError(
                f"a kernel of {len(downs)} weights, {middle} in the middle, has no exact sums; a "
                "shorter motion has fewer"
            )
        upper, lower = np.divmod(kernel[downs, rights][: half + 1], 2**lower_bits)
        weights = np.array([upper * (2**lower_bits / UNIT), lower / 2**lower_bits], np.float32)
        downs, rights = downs[:half] - first_down, rights[:half] - first_right
        for shared in (downs, rights, weights):  # by all who ask for the same motion
            shared.flags.writeable = False
        return Weights(
            reach=(len(kernel) // 2 - first_down, kernel.shape[1] // 2 - first_right),
            downs=downs,
            rights=rights,
            weights=weights,
            lower_unit=2**lower_bits / UNIT,
        )


@lru_cache(maxsize=KERNELS_KEPT)
def motion_weights(length: float, angle: float) -> Weights:
    """Those of `motion_kernel`."""
    return Weights.of(motion_kernel(length, angle))


def motion_kernel(length: float, angle: float) -> NDArray[np.int32]:
    """MATLAB's `fspecial('motion', length, angle)`, padded to an odd square; antialiased.

    A pixel's weight is 1 - its distance to a segment of `length` - 1 pixels, the path from the
    first pixel's centre to the last one's, and 0 from a distance of 1 on. As in MATLAB, whatever is
    as far from the middle as the segment's end is measured from that end, even where it lies
    beside the segment. `angle` is in degrees from the horizontal, counterclockwise.
    """
    if not 1 <= length < math.inf or not math.isfinite(angle):
        raise ValueError(f"motion of length {length}, angle {angle}: at least 1 pixel, any angle")
    half = (length - 1) / 2
    radius = math.ceil(half + 1) - 1
    sides, from_middle = _grid(radius)
    turn = math.radians(angle)
    right, down = sides * math.cos(turn), sides * math.sin(turn)
    distance = right[:, None] + down
    np.abs(distance, distance)
    # Farther than 1 from the line, a weight is 0 wherever the segment ends.
    # 1e-9: at multiples of 90° a pixel at the segment's end lies at it.
    is_at_end = (from_middle >= half - 1e-9) & (distance < 1)
    along = right - down[:, None]
    np.abs(along, along)
    np.subtract(half, along, along)
    np.hypot(distance, along, out=distance, where=is_at_end)
    np.subtract(1, distance, distance)
    return _normalised(np.maximum(distance, 0, out=distance))


def blur_both_ways(
    image: NDArray[np.uint8],
    kernel: NDArray[np.int32],
    *,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> NDArray[np.uint8]:
    """`rows`, `columns` (start, stop) of the whole image, convolved with the weights `kernel` down
    every column, then along every row. The result is rounded half up, once.

    Both passes are products with a banded matrix. No sum is above 255 · 2**40: 48 of a float64's
    53 bits hold it.
    """
    first = int((kernel > 0).argmax())  # a narrow Gaussian's outer weights are 0
    matrix = _band(kernel[first : len(kernel) - first])
    beyond = len(kernel) - 1 - 2 * first
    region = _cut(image, rows, columns, reach=(beyond // 2, beyond // 2))
    height, width, channels = rows[1] - rows[0], columns[1] - columns[0], image.shape[2]
    levels = region.swapaxes(1, 2).astype(np.float64, order="C").reshape(len(region), -1)
    down = np.empty((height, levels.shape[1]))
    for start in range(0, height, BLOCK):
        part = down[start : start + BLOCK]
        end = len(part) + beyond
        np.matmul(matrix[: len(part), :end], levels[start : start + end], out=part)
    down = down.reshape(height * channels, -1)
    both = np.empty((height * channels, width))
    for start in range(0, width, BLOCK):
        part = both[:, start : start + BLOCK]
        end = part.shape[1] + beyond
        np.matmul(down[:, start : start + end], matrix[: part.shape[1], :end].T, out=part)
    both *= 1 / UNIT**2
    both += 0.5
    blurred = np.empty((height, width, channels), np.uint8)
    for channel in range(channels):  # in half the time that NumPy takes for all of them at once
        blurred[:, :, channel] = both[channel::channels]
    return blurred


def blur_once(
    image: NDArray[np.uint8],
    kernel: Weights,
    *,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> NDArray[np.uint8]:
    """`rows`, `columns` (start, stop) of the whole image, convolved with the kernel. The result is
    rounded half up."""
    down, right = kernel.reach
    region = _cut(image, rows, columns, reach=kernel.reach)
    height, width, channels = rows[1] - rows[0], columns[1] - columns[0], image.shape[2]
    # All rows as one, so that moving the image is starting elsewhere. What lies beyond the columns
    # is summed too, which costs less than to end each row.
    stride = region.shape[1] * channels
    levels = region.astype(np.float32).reshape(-1)
    count, last = (height - 1) * stride + width * channels, 2 * (down * stride + right * channels)
    starts = (kernel.downs * stride + kernel.rights * channels).tolist()
    blurred = np.empty(height * stride, np.uint8)
    for first in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - first)
        # Row k: the levels from `first + k` on.
        moved = np.ndarray((last + 1, size), np.float32, levels, 4 * first, strides=(4, 4))
        pairs = np.empty((len(starts) + 1, size), np.float32)
        for pair, start in zip(pairs, starts, strict=False):
            np.add(moved[start], moved[last - start], pair)
        pairs[-1] = moved[last // 2]
        upper, lower = np.matmul(kernel.weights, pairs)
        np.floor(lower, lower)
        lower *= kernel.lower_unit
        upper += lower
        upper += 0.5
        blurred[first : first + size] = upper
    return blurred.reshape(height, stride)[:, : width * channels].reshape(height, width, channels)


def _cut(
    image: NDArray[np.uint8],
    rows: tuple[int, int],
    columns: tuple[int, int],
    *,
    reach: tuple[int, int],
) -> NDArray[np.uint8]:
    """The region and what lies up to `reach` (down, right) pixels around it."""
    region = cut(image, (rows[0] - reach[0], rows[1] + reach[0]), axis=0, border="symmetric")
    return cut(region, (columns[0] - reach[1], columns[1] + reach[1]), axis=1, border="symmetric")


def _band(weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """(BLOCK, BLOCK + taps - 1): row k has the weights from column k on."""
    sources = BLOCK + len(weights) - 1
    rows = np.zeros((BLOCK, sources + 1))
    rows[:, : len(weights)] = weights
    return rows.reshape(-1)[: BLOCK * sources].reshape(BLOCK, sources)


@lru_cache(maxsize=64)
def _grid(radius: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """-radius to radius, and the distances of such a square's pixels from its middle."""
    sides = np.arange(-radius, radius + 1.0)
    return sides, np.hypot(sides, sides[:, None])


def _normalised(weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """The weights as whole numbers of sum UNIT."""
    kernel = weights / np.add.reduce(weights, axis=None)
    kernel *= UNIT
    whole = np.rint(kernel, kernel).astype(np.int32)
    whole.reshape(-1)[whole.size // 2] += UNIT - int(np.add.reduce(kernel, axis=None))
    return whole
