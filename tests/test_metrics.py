import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_data import BENCHMARKS, needs_data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from pipeline.corruptions.bicubic import imresize, modcrop
from pipeline.metrics import drop_border, luma, psnr, quantise, ssim

SET5 = BENCHMARKS / "Set5" / "HR"
RAIN100L = BENCHMARKS / "Rain100L"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255


def noise_images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    clean = rng.random(shape)
    return torch.from_numpy(clean + rng.normal(0, 0.1, shape)).clamp(0, 1), torch.from_numpy(clean)


# Protocol (b), of SRCNN and VDSR: 8-bit Y, shrunk and enlarged without rounding, the result
# rounded. Protocol (a), of EDSR and after: 8-bit RGB at every step, and 8-bit Y of that.
SET5_BICUBIC_B = {2: (33.66, 0.9299), 3: (30.39, 0.8682), 4: (28.42, 0.8104)}
SET5_BICUBIC_A = {2: (33.64, 0.9292), 3: (30.39, 0.8678), 4: (28.42, 0.8101)}


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_of_set5_by_protocol_b_is_as_published(scale):
    scores = []

    for path in sorted(SET5.glob("*.png")):
        clean = luma(tensor(modcrop(read(path), scale)), rounded=True)
        small = imresize(clean[0, 0].numpy(), Fraction(1, scale))
        restored = quantise(torch.from_numpy(imresize(small, scale))[None, None])
        scores.append((psnr(restored, clean, scale).item(), ssim(restored, clean, scale).item()))

    decibel, similarity = np.mean(scores, axis=0)
    assert (round(decibel, 2), round(similarity, 4)) == SET5_BICUBIC_B[scale]


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_of_set5_by_protocol_a_is_as_published(scale):
    scores = []

    for path in sorted(SET5.glob("*.png")):
        clean = modcrop(read(path), scale)
        restored = imresize(imresize(clean, Fraction(1, scale)), scale)
        images = [luma(tensor(image), rounded=True) for image in (restored, clean)]
        scores.append((psnr(*images, scale).item(), ssim(*images, scale).item()))

    decibel, similarity = np.mean(scores, axis=0)
    assert (round(decibel, 2), round(similarity, 4)) == SET5_BICUBIC_A[scale]


@needs_data
def test_20_pairs_of_rain100l_read_as_published_on_rounded_luma():
    scores = []

    for path in sorted((RAIN100L / "clean").iterdir()):
        rainy, clean = (
            luma(tensor(read(RAIN100L / kind / path.name)), rounded=True)
            for kind in ("rainy", "clean")
        )
        scores.append((psnr(rainy, clean).item(), ssim(rainy, clean).item()))

    assert len(scores) == 20
    decibel, similarity = np.mean(scores, axis=0)
    assert (round(decibel, 3), round(similarity, 4)) == (26.175, 0.8136)


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(11, 60),
    width=st.integers(11, 60),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_psnr_and_ssim_equal_scikit_image(height, width, channels, seed):
    restored, clean = noise_images(2, channels, height, width, seed=seed)

    for number in range(2):
        images = (clean[number].numpy(), restored[number].numpy())
        assert psnr(restored, clean)[number].item() == pytest.approx(
            peak_signal_noise_ratio(*images, data_range=1), abs=1e-9
        )
        expected = structural_similarity(
            *images,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        assert ssim(restored, clean)[number].item() == pytest.approx(expected, abs=1e-9)


def test_identical_images_are_infinitely_close():
    _, clean = noise_images(2, 3, 16, 16)

    assert psnr(clean, clean).tolist() == [math.inf, math.inf]
    assert ssim(clean, clean).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_constant_difference_gives_the_psnr_of_its_size():
    clean = torch.zeros(3, 1, 4, 4)
    restored = torch.tensor([1.0, 0.1, 1 / 255]).view(3, 1, 1, 1).expand_as(clean)

    # The last is 20 log10(255); 0.1 and 1/255 are not exact in float32.
    assert psnr(restored, clean).tolist() == pytest.approx([0, 20, 48.1308], abs=1e-4)


def test_batch_is_scored_image_by_image():
    restored, clean = noise_images(4, 3, 20, 24)

    for metric in (psnr, ssim):
        one_by_one = [metric(restored[i : i + 1], clean[i : i + 1]).item() for i in range(4)]
        assert metric(restored, clean).tolist() == pytest.approx(one_by_one, abs=1e-12)


def test_flat_images_have_a_finite_similarity():
    black, grey = torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), 0.5)

    # Only the luminance term is left: C1 / (0.25 + C1).
    assert ssim(grey, black).item() == pytest.approx(1e-4 / (0.25 + 1e-4), abs=1e-12)


def test_border_is_dropped_before_scoring():
    restored, clean = noise_images(1, 3, 32, 40)
    restored[..., :4, :] = restored[..., -4:, :] = 0
    restored[..., :, :4] = restored[..., :, -4:] = 0

    for metric in (psnr, ssim):
        inside = metric(restored[..., 4:-4, 4:-4], clean[..., 4:-4, 4:-4])
        assert metric(restored, clean, 4).item() == inside.item()
        assert metric(restored, clean).item() < inside.item()


def test_float32_images_are_scored_in_float64():
    clean = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    restored = clean + 1e-6

    exact = -10 * torch.log10((restored.double() - clean.double()).square().mean())

    assert psnr(restored, clean).dtype == torch.float64
    assert psnr(restored, clean).item() == pytest.approx(exact.item(), abs=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_pairs_are_refused(metric):
    image = torch.rand(1, 3, 16, 16)

    with pytest.raises(ValueError, match="one shape"):
        metric(image, torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="one shape"):
        metric(image[0], image[0])
    with pytest.raises(ValueError, match="floats"):
        metric((image * 255).byte(), (image * 255).byte())
    with pytest.raises(ValueError, match="leaves nothing"):
        metric(image, image, 8)
    with pytest.raises(ValueError, match="leaves nothing"):
        metric(image, image, -1)


def test_ssim_of_an_image_smaller_than_its_window_is_refused():
    image = torch.rand(1, 3, 30, 30)

    with pytest.raises(ValueError, match="11×11"):
        ssim(image, image, 10)


def test_luma_of_the_corners_of_the_colour_cube():
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).float()

    y = luma(colours.view(5, 3, 1, 1)).flatten() * 255

    expected = [16, 235, 81.481, 144.553, 40.966]
    assert y.tolist() == pytest.approx(expected, abs=1e-10)
    rounded = luma(colours.view(5, 3, 1, 1), rounded=True).flatten() * 255
    assert rounded.tolist() == pytest.approx([16, 235, 81, 145, 41], abs=1e-10)


def test_luma_equals_scikit_image():
    image = np.random.default_rng(0).random((9, 7, 3))

    y = luma(torch.from_numpy(image.transpose(2, 0, 1))[None])[0, 0] * 255

    np.testing.assert_allclose(y.numpy(), rgb2ycbcr(image)[..., 0], rtol=0, atol=1e-10)


def test_luma_of_anything_but_rgb_is_refused():
    with pytest.raises(ValueError, match="RGB"):
        luma(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="RGB"):
        luma(torch.rand(3, 8, 8))


def test_quantise_rounds_half_up_to_the_steps_of_8_bits_and_clips():
    values = torch.tensor([-0.2, 0.4 / 255, 0.5 / 255, 1.49 / 255, 254.6 / 255, 1.7]).double()

    assert (quantise(values) * 255).tolist() == pytest.approx([0, 0, 1, 1, 255, 255], abs=1e-9)


def test_quantise_leaves_every_8_bit_value_where_it_is():
    levels = torch.arange(256, dtype=torch.uint8).float() / 255

    assert torch.equal(quantise(levels), levels)


def test_drop_border_of_nothing_is_the_image():
    image = torch.rand(2, 3, 5, 7)

    assert torch.equal(drop_border(image, 0), image)
    assert drop_border(image, 2).shape == (2, 3, 1, 3)
