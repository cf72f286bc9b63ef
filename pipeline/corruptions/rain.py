"""Rain as the benchmarks have it: clip(clean + layer), the layer a grey image of streaks.

A layer is drawn on a torus: streaks that leave at one side enter at the other, so that layers are
as dense at their borders as inside, and tile without a seam. The presets follow what was measured
on Rain100L and Rain100H: tilt, length, width, coverage and brightness of the streaks.
"""

# Layers are (H, W) uint8, 0..255, black where there is no rain.

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Preset = Literal["light", "heavy"]

SUBLAYERS = 8  # each of one length, width and tilt
SHORTEST, LONGEST = 8.0, 140.0  # streaks, in pixels


@dataclass(frozen=True, kw_only=True)
class Streaks:
    """What the streaks of one layer have in common; pixels, and degrees from the vertical."""

    tilts: tuple[float, ...]  # every sublayer takes one of them
    tilt_spread: float  # standard deviation between sublayers
    median_length: float
    length_spread: float  # standard deviation of the length's logarithm, between sublayers
    widths: tuple[float, float]  # range of the Gaussian cross-section's standard deviation
    largest_taper: float  # how much darker than its middle a streak's ends may be, 0..1
    coverage: float  # share of the pixels under streaks, overlaps counted twice
    peak: float  # mean brightness in the middle of a streak
    peak_shape: float  # of the Gamma distribution of brightness: larger is more even


def draw_streaks(rng: np.random.Generator, preset: Preset) -> Streaks:
    """The look of one layer: light is like Rain100L, heavy like Rain100H."""
    if preset == "light":
        return Streaks(
            tilts=(float(np.clip(rng.normal(0, 13), -25, 25)),),
            tilt_spread=0.5,
            median_length=float(rng.lognormal(np.log(38), 0.3)),
            length_spread=0.9,
            widths=(0.38, 1.25),
            largest_taper=0.9,
            coverage=rng.uniform(0.08, 0.29),
            peak=float(rng.lognormal(np.log(40), 0.38)),
            peak_shape=1.5,
        )
    if preset == "heavy":
        tilt = rng.normal(-2, 5)
        # Rain100H mixes up to five directions in one image.
        offsets = rng.uniform(-15, 15, rng.integers(2, 6)) if rng.random() < 0.4 else np.zeros(1)
        return Streaks(
            tilts=tuple((tilt + offsets).tolist()),
            tilt_spread=0.5,
            median_length=float(rng.lognormal(np.log(70), 0.3)),
            length_spread=0.35,
            widths=(0.6, 1.1),
            largest_taper=0.0,
            coverage=rng.uniform(0.8, 1.8),
            peak=rng.uniform(30, 54),
            peak_shape=10.0,
        )
    raise ValueError(f"rain preset {preset!r} is unknown; known: light, heavy")


def draw_layer(rng: np.random.Generator, size: int, streaks: Streaks) -> NDArray[np.uint8]:
    """A layer of `size` × `size` pixels with such streaks."""
    margin = int(LONGEST / 2 + 4 * max(streaks.widths)) + 2
    canvas = np.zeros((size + 2 * margin, size + 2 * margin))
    for _ in range(SUBLAYERS):
        spread = streaks.length_spread * rng.standard_normal()
        length = float(np.clip(streaks.median_length * np.exp(spread), SHORTEST, LONGEST))
        width = rng.uniform(*streaks.widths)
        streak = _streak(
            length=length,
            width=width,
            tilt=rng.choice(streaks.tilts) + streaks.tilt_spread * rng.standard_normal(),
            taper=rng.uniform(0, streaks.largest_taper),
        )
        # A streak counts as 2.5 deviations wide: about where it is half as bright as in its middle.
        chance = streaks.coverage / (SUBLAYERS * length * 2.5 * width)
        count = rng.binomial(size * size, min(chance, 1.0))
        positions = rng.integers(0, size, (count, 2))
        peaks = streaks.peak * rng.gamma(streaks.peak_shape, 1 / streaks.peak_shape, count)
        height, breadth = streak.shape
        for (top, left), peak in zip(positions.tolist(), peaks.tolist(), strict=True):
            canvas[top : top + height, left : left + breadth] += peak * streak
    layer = _wrap(_wrap(canvas, size).T, size).T
    return (np.minimum(layer, 255) + 0.5).astype(np.uint8)


def render_layer(rng: np.random.Generator, size: int, preset: Preset) -> NDArray[np.uint8]:
    """A layer of `size` × `size` pixels with streaks of the preset's kind."""
    return draw_layer(rng, size, draw_streaks(rng, preset))


def cut_layer(
    layer: NDArray[np.uint8], height: int, width: int, *, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A piece of `layer` at a random position; a larger piece than the layer is tiled from it."""
    repeats = [
        -(-wanted // size) for wanted, size in zip((height, width), layer.shape, strict=True)
    ]
    tiled = np.tile(layer, repeats) if max(repeats) > 1 else layer
    top = rng.integers(0, tiled.shape[0] - height + 1)
    left = rng.integers(0, tiled.shape[1] - width + 1)
    return tiled[top : top + height, left : left + width]


def add_rain(clean: NDArray[np.uint8], layer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """clip(clean + layer), the same layer on every channel.

    `clean` is (H, W, C) or (H, W), `layer` is (H, W).
    """
    if clean.shape[:2] != layer.shape or clean.dtype != np.uint8 or layer.dtype != np.uint8:
        raise ValueError(
            f"rain adds a uint8 (H, W) layer to a uint8 image of the same size; got "
            f"{layer.dtype} {layer.shape} and {clean.dtype} {clean.shape}"
        )
    # Repeated, because broadcasting along so short an axis takes four times as long.
    streaks = layer if clean.ndim == 2 else np.repeat(layer[..., None], clean.shape[2], axis=2)
    # 255 - streaks does not overflow, clean + streaks would.
    return np.minimum(clean, 255 - streaks) + streaks


def _streak(*, length: float, width: float, tilt: float, taper: float) -> np.ndarray:
    """A line of `length` pixels, 1 in its middle, blurred by a Gaussian of deviation `width`."""
    angle = np.deg2rad(tilt)
    reach_down = int(np.ceil(length / 2 * abs(np.cos(angle)) + 3 * width))
    reach_right = int(np.ceil(length / 2 * abs(np.sin(angle)) + 3 * width))
    down, right = np.mgrid[-reach_down : reach_down + 1, -reach_right : reach_right + 1]
    along = np.abs(down * np.cos(angle) + right * np.sin(angle))
    across = right * np.cos(angle) - down * np.sin(angle)
    beyond = np.maximum(along - length / 2, 0)
    profile = np.exp(-(across**2 + beyond**2) / (2 * width**2))
    return profile * (1 - taper * np.minimum(along / (length / 2), 1))


def _wrap(canvas: np.ndarray, size: int) -> np.ndarray:
    """Fold axis 0 onto a circle of `size` pixels."""
    wrapped = np.zeros((size, *canvas.shape[1:]))
    for start in range(0, len(canvas), size):
        part = canvas[start : start + size]
        wrapped[: len(part)] += part
    return wrapped
