import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import BENCHMARKS, needs_data
from torch import Tensor

from pipeline.corruptions.keyed import generator
from pipeline.corruptions.noise import add_gaussian_noise
from pipeline.metrics import luma, psnr, quantise

CBSD68 = BENCHMARKS / "CBSD68"

# PSNR of noisy CBSD68, with the noise of np.random.seed(0) in every image:
# RGB, Y, both unclipped; RGB clipped and rounded, Y clipped.
PUBLISHED = {
    15: (24.62, 29.42, 24.84, 29.59),
    25: (20.18, 24.98, 20.54, 25.26),
    30: (18.60, 23.40, 19.04, 23.74),
    50: (14.16, 18.96, 15.00, 19.64),
}


def photographs() -> list[np.ndarray]:
    paths = sorted(CBSD68.glob("*.png"))
    assert len(paths) == 68
    return [np.array(Image.open(path).convert("RGB")) for path in paths]


def tensor(image: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return pixels / 255 if image.dtype == np.uint8 else pixels


@needs_data
def test_input_psnr_of_cbsd68_with_the_noise_of_seed_0():
    torch.set_num_threads(1)
    scores: dict[int, list[tuple[float, float]]] = {sigma: [] for sigma in PUBLISHED}
    normal = np.random.RandomState(0).randn(481 * 321 * 3)

    for clean in photographs():
        noise = normal.reshape(clean.shape)
        for sigma in PUBLISHED:
            noisy, target = tensor(clean / 255 + sigma / 255 * noise), tensor(clean).double()
            scores[sigma].append(
                (psnr(noisy, target).item(), psnr(luma(noisy), luma(target)).item())
            )

    for sigma, (rgb, y, _, _) in PUBLISHED.items():
        # Published with two decimals.
        assert np.mean(scores[sigma], axis=0) == pytest.approx((rgb, y), abs=0.0051)


@needs_data
@pytest.mark.parametrize("sigma", PUBLISHED)
def test_our_noise_gives_the_input_psnr_of_cbsd68(sigma):
    torch.set_num_threads(1)
    scores = []

    for number, clean in enumerate(photographs()[::4]):
        rng = generator("cbsd68", sigma, number)
        unclipped = tensor(add_gaussian_noise(clean, sigma, clip=False, rng=rng))
        rng = generator("cbsd68", sigma, number)
        clipped = tensor(add_gaussian_noise(clean, sigma, clip=True, rng=rng))
        target = tensor(clean)
        scores.append(
            (
                psnr(unclipped, target).item(),
                psnr(luma(unclipped), luma(target)).item(),
                psnr(quantise(clipped), target).item(),
                psnr(luma(clipped), luma(target)).item(),
            )
        )

    # Unclipped: 20 log10(255 / sigma) does not depend on the picture; the fixtures' one draw of
    # noise is 0.01 dB from it. Clipped: it does, and every fourth picture is not all of them.
    unclipped_scores, clipped_scores = np.split(np.mean(scores, axis=0), 2)
    assert unclipped_scores == pytest.approx(PUBLISHED[sigma][:2], abs=0.02)
    assert clipped_scores == pytest.approx(PUBLISHED[sigma][2:], abs=0.15)


def test_noise_has_the_stated_deviation_and_no_mean():
    clean = np.full((400, 400, 3), 128, np.uint8)

    noise = add_gaussian_noise(clean, 30, clip=False, rng=generator(0)) * 255.0 - 128

    # 480,000 draws: deviations of the estimates are 0.043 and 0.031.
    assert noise.mean() == pytest.approx(0, abs=0.2)
    assert noise.std() == pytest.approx(30, abs=0.15)
    assert abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.01


def test_noise_is_float32_and_not_rounded():
    noisy = add_gaussian_noise(np.full((8, 8, 3), 99, np.uint8), 15, clip=True, rng=generator(0))

    assert noisy.dtype == np.float32
    assert (abs(noisy * 255 - np.round(noisy * 255)) > 1e-3).any()


def test_clipping_is_all_that_the_conventions_differ_in():
    clean = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    unclipped = add_gaussian_noise(clean, 50, clip=False, rng=generator(1))
    clipped = add_gaussian_noise(clean, 50, clip=True, rng=generator(1))

    assert unclipped.min() < 0
    assert unclipped.max() > 1
    np.testing.assert_array_equal(clipped, unclipped.clip(0, 1))


def test_same_generator_gives_same_noise_and_clean_is_untouched():
    clean = np.full((16, 16), 7, np.uint8)

    first = add_gaussian_noise(clean, 25, clip=False, rng=generator("key", 1))
    second = add_gaussian_noise(clean, 25, clip=False, rng=generator("key", 1))
    other = add_gaussian_noise(clean, 25, clip=False, rng=generator("key", 2))

    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert (clean == 7).all()


def test_sigma_0_gives_the_clean_image():
    clean = np.arange(256, dtype=np.uint8).reshape(16, 16)

    noisy = add_gaussian_noise(clean, 0, clip=True, rng=generator(0))

    np.testing.assert_array_equal(noisy, clean.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("sigma", [-1, float("nan"), float("inf")])
def test_impossible_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma_255"):
        add_gaussian_noise(np.zeros((4, 4), np.uint8), sigma, clip=True, rng=generator(0))


def test_float_image_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        add_gaussian_noise(np.zeros((4, 4), np.float32), 25, clip=True, rng=generator(0))
