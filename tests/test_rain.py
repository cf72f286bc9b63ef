import itertools
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates
from shared_data import BENCHMARKS, needs_data

from pipeline.corruptions.keyed import generator
from pipeline.corruptions.rain import (
    Streaks,
    add_rain,
    cut_layer,
    draw_layer,
    draw_streaks,
    render_layer,
)
from pipeline.metrics import luma, psnr, ssim

RAIN100L = BENCHMARKS / "Rain100L"


@cache
def benchmark_images(folder: str) -> list[np.ndarray]:
    paths = sorted((RAIN100L / folder).glob("*.png"))
    assert len(paths) == 20
    return [np.array(Image.open(path).convert("RGB")) for path in paths]


@cache
def rain_on_benchmark(preset: str, layers: int) -> tuple[dict[str, float], list[np.ndarray]]:
    """Rain of ours on the clean images of Rain100L, as `measured` has it."""
    pairs = []
    for number, clean in zip(range(layers), itertools.cycle(benchmark_images("clean"))):
        rng = generator("test", preset, number)
        layer = cut_layer(render_layer(rng, 512, preset), *clean.shape[:2], rng=rng)
        pairs.append((clean, add_rain(clean, layer)))
    return measured(pairs)


@cache
def real_rain() -> tuple[dict[str, float], list[np.ndarray]]:
    return measured(zip(benchmark_images("clean"), benchmark_images("rainy"), strict=True))


def measured(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Of (clean, rainy) images: what the benchmark was measured in, and the rain of each alone."""
    torch.set_num_threads(1)
    scores, residuals = [], []
    for clean, rainy in pairs:
        images = [
            luma(torch.from_numpy(image.transpose(2, 0, 1).copy())[None] / 255, rounded=True)
            for image in (rainy, clean)
        ]
        scores.append((psnr(*images).item(), ssim(*images).item()))
        residuals.append((rainy.astype(np.float32) - clean).mean(axis=2))
    levels = np.concatenate([each.reshape(-1) for each in residuals])
    decibel, similarity = np.mean(scores, axis=0)
    statistics = {
        "psnr": decibel,
        "ssim": similarity,
        "coverage": (levels > 5).mean(),
        "mean": levels.mean(),
        **{f"percentile_{p}": np.percentile(levels, p) for p in (90, 99, 99.9)},
    }
    return statistics, residuals


def tilt_and_lengths(residual: np.ndarray) -> tuple[float, ...]:
    """Degrees from the vertical along which the rain resembles itself most, then the pixels until
    its autocorrelation is below .5 and .1, along the streaks and across them."""
    rain = residual - residual.mean()
    twice = [2 * side for side in rain.shape]
    power = abs(np.fft.fft2(rain, s=twice)) ** 2
    overlap = abs(np.fft.fft2(np.ones_like(rain), s=twice)) ** 2
    products, pixels = (np.fft.fftshift(np.fft.ifft2(each).real) for each in (power, overlap))
    resemblance = products / pixels.clip(1)
    lags = np.arange(0, 150, 0.25)

    def along(degrees: float) -> np.ndarray:
        turn = np.radians(degrees)
        places = [
            side + lags * part
            for side, part in zip(rain.shape, (np.cos(turn), np.sin(turn)), strict=True)
        ]
        # Relative to no lag: at the largest lags, of which few pixels tell, there may be more.
        return map_coordinates(resemblance, places, order=1) / resemblance[rain.shape]

    tilt = max(np.arange(-45, 45.5, 0.5), key=lambda degrees: along(degrees)[:160].sum())
    lengths = [
        lags[np.argmax(along(direction) < level)]
        for direction in (tilt, tilt + 90)
        for level in (0.5, 0.1)
    ]
    return (tilt, *lengths)


def test_lengths_are_those_of_the_streaks_that_were_drawn():
    look = streaks(tilts=(0.0,), median_length=60.0, widths=(1.0, 1.0), peak_shape=1000.0)
    layer = draw_layer(generator("lengths"), 512, look).astype(float)

    tilt, half, tenth, half_across, tenth_across = tilt_and_lengths(layer)

    # A line of 60 pixels resembles itself as a triangle of 60 does, a Gaussian of deviation 1
    # across it as one of sqrt(2).
    assert tilt == pytest.approx(0, abs=0.5)
    assert (half, tenth) == pytest.approx((30, 54), rel=0.1)
    assert (half_across, tenth_across) == pytest.approx((1.67, 3.03), abs=0.3)


@needs_data
def test_light_rain_is_like_rain100l():
    ours, _ = rain_on_benchmark("light", 80)
    real, _ = real_rain()

    # Tolerances are about two deviations of a mean over 80 layers.
    assert ours["psnr"] == pytest.approx(real["psnr"], abs=0.8)
    assert ours["ssim"] == pytest.approx(real["ssim"], abs=0.02)
    for name in ("coverage", "mean", "percentile_90", "percentile_99", "percentile_99.9"):
        assert ours[name] == pytest.approx(real[name], rel=0.12), name


@pytest.mark.slow
@needs_data
def test_light_rain_falls_as_steeply_and_its_streaks_are_as_long_as_in_rain100l():
    (_, drawn), (_, photographed) = rain_on_benchmark("light", 80), real_rain()

    tilts, *ours = np.array([tilt_and_lengths(each) for each in drawn]).T
    _, *real = np.array([tilt_and_lengths(each) for each in photographed]).T

    # The 20 real pairs have tilts of mean -2.5°, 5 % below -23°, 5 % above 16°; all 100 have 0°,
    # -21° and 21°.
    assert tilts.mean() == pytest.approx(0, abs=4)
    assert np.percentile(tilts, [5, 95]) == pytest.approx([-21, 21], abs=5)
    # Theirs are 15.4 and 52 pixels along, 1.46 and 3.05 across.
    for length, expected in zip(ours, real, strict=True):
        assert length.mean() == pytest.approx(expected.mean(), rel=0.12)


@needs_data
def test_heavy_rain_is_like_rain100h():
    ours, _ = rain_on_benchmark("heavy", 20)

    # All 100 real pairs: 13.55 dB, 0.379, coverage .88, mean 58, percentiles 112 and 157.
    assert ours["psnr"] == pytest.approx(13.55, abs=1.2)
    assert ours["ssim"] == pytest.approx(0.379, abs=0.06)
    assert ours["coverage"] == pytest.approx(0.88, abs=0.06)
    assert ours["mean"] == pytest.approx(58, abs=12)
    assert ours["percentile_90"] == pytest.approx(112, abs=20)
    assert ours["percentile_99"] == pytest.approx(157, abs=30)


@pytest.mark.parametrize("preset", ["light", "heavy"])
def test_same_generator_gives_same_layer(preset):
    first = render_layer(generator(3, "rain-layers", 5), 128, preset)

    np.testing.assert_array_equal(first, render_layer(generator(3, "rain-layers", 5), 128, preset))
    assert (first != render_layer(generator(3, "rain-layers", 6), 128, preset)).any()
    assert first.dtype == np.uint8
    assert first.shape == (128, 128)


@pytest.mark.parametrize("size", [1, 16, 64, 300])
def test_layers_of_any_size_even_smaller_than_a_streak(size):
    assert render_layer(generator(0), size, "heavy").shape == (size, size)


def streaks(**changes: float) -> Streaks:
    values = {
        "tilts": (20.0,),
        "tilt_spread": 0.0,
        "median_length": 40.0,
        "length_spread": 0.0,
        "widths": (0.8, 0.8),
        "largest_taper": 0.0,
        "coverage": 0.1,
        "peak": 100.0,
        "peak_shape": 1000.0,
    }
    return Streaks(**(values | changes))


def test_streaks_cover_what_they_are_asked_to():
    layer = draw_layer(generator(0), 512, streaks())

    # `coverage` counts 2.5 deviations across. Level 5 of 100 is reached over 2 sqrt(2 ln 20) = 4.9,
    # and streaks overlap: 1 - exp(-0.1 * 4.9 / 2.5) = 0.178, and their ends.
    assert (layer > 5).mean() == pytest.approx(0.19, abs=0.02)
    assert np.percentile(layer[layer > 5], 75) == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("tilt", [-25.0, 0.0, 20.0])
def test_streaks_point_where_they_are_asked_to(tilt):
    layer = draw_layer(generator(1), 256, streaks(tilts=(tilt,))).astype(float)

    # The layer is most like itself moved along its streaks.
    down = 20
    moved = [(layer * np.roll(layer, (down, right), axis=(0, 1))).sum() for right in range(-20, 21)]
    right = np.argmax(moved) - 20
    assert np.rad2deg(np.arctan2(right, down)) == pytest.approx(tilt, abs=3)


def test_layers_go_on_over_their_borders():
    layers = [draw_layer(generator("torus", n), 128, streaks(coverage=0.3)) for n in range(20)]
    stack = np.stack(layers).astype(float)

    across_border = abs(stack[:, 0] - stack[:, -1]).mean()
    inside = abs(stack[:, 64] - stack[:, 63]).mean()

    assert across_border == pytest.approx(inside, rel=0.25)
    # As dense at the border as inside.
    assert stack[:, :8].mean() == pytest.approx(stack[:, 60:68].mean(), rel=0.25)


def test_looks_of_the_presets_stay_in_their_ranges():
    for number in range(200):
        light = draw_streaks(generator("light", number), "light")
        heavy = draw_streaks(generator("heavy", number), "heavy")

        assert len(light.tilts) == 1
        assert abs(light.tilts[0]) <= 25
        assert len(heavy.tilts) in range(1, 6)
        assert light.coverage < 0.3 < 0.8 <= heavy.coverage


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"'drizzle'.*light, heavy"):
        render_layer(generator(0), 64, "drizzle")


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), channels=st.sampled_from([None, 1, 3]))
def test_rain_is_the_clipped_sum_and_leaves_its_inputs(seed, channels):
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 256, (9, 7) if channels is None else (9, 7, channels), dtype=np.uint8)
    layer = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    before = clean.copy(), layer.copy()

    rainy = add_rain(clean, layer)

    shaped = layer if channels is None else layer[..., None]
    expected = np.clip(clean.astype(int) + shaped, 0, 255)
    np.testing.assert_array_equal(rainy, expected)
    assert rainy.dtype == np.uint8
    np.testing.assert_array_equal(clean, before[0])
    np.testing.assert_array_equal(layer, before[1])


def test_rain_is_achromatic():
    clean = np.random.default_rng(0).integers(0, 100, (64, 64, 3), dtype=np.uint8)

    difference = add_rain(clean, render_layer(generator(0), 64, "light") // 2) - clean

    assert (difference == difference[..., :1]).all()


@pytest.mark.parametrize("shape", [(8, 9), (9, 8, 1), (8, 8, 3)])
def test_layer_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="same size"):
        add_rain(np.zeros((8, 8, 3), np.uint8), np.zeros(shape, np.uint8))


def test_float_layer_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        add_rain(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32))


def test_cuts_come_from_every_position():
    layer = np.arange(16, dtype=np.uint8).reshape(4, 4)

    corners = {int(cut_layer(layer, 2, 3, rng=generator(n))[0, 0]) for n in range(100)}

    assert corners == {0, 1, 4, 5, 8, 9}


def test_cut_of_the_whole_layer_is_the_layer():
    layer = np.arange(16, dtype=np.uint8).reshape(4, 4)

    np.testing.assert_array_equal(cut_layer(layer, 4, 4, rng=generator(0)), layer)


def test_cut_larger_than_the_layer_is_tiled():
    layer = np.arange(16, dtype=np.uint8).reshape(4, 4)

    cut = cut_layer(layer, 10, 4, rng=generator(0))

    assert cut.shape == (10, 4)
    np.testing.assert_array_equal(cut[4:8], cut[:4])
