import hashlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_data import BENCHMARKS, needs_data

from pipeline.corruptions.bicubic import downscale_patch, imresize, modcrop, resize_region

SET5 = BENCHMARKS / "Set5"


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    """Uniform noise: the hardest picture for rounding and overshoot."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downscaling_equals_matlab_bit_for_bit(scale):
    paths = sorted((SET5 / "HR").glob("*.png"))
    assert len(paths) == 5

    for path in paths:
        clean = modcrop(np.array(Image.open(path).convert("RGB")), scale)
        small = np.array(Image.open(SET5 / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png"))

        np.testing.assert_array_equal(imresize(clean, Fraction(1, scale)), small)


@needs_data
@pytest.mark.parametrize(
    ("scale", "digest"), [(2, "18afe3cd141a1055"), (3, "2a10fbe924d7ed3f"), (4, "5f904c7b5fe1cb84")]
)
def test_the_other_border_equals_older_matlab_bit_for_bit(scale, digest):
    """The digests are of pixels that equal the 15 files RCAN_TestCode/LR/LRBI/Set5 of RCAN."""
    pixels = hashlib.sha256()

    for path in sorted((SET5 / "HR").glob("*.png")):
        clean = modcrop(np.array(Image.open(path).convert("RGB")), scale)
        pixels.update(imresize(clean, Fraction(1, scale), border="replicate").tobytes())

    assert pixels.hexdigest()[:16] == digest


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_equal_regions_of_the_files_that_matlab_wrote(scale):
    clean = modcrop(np.array(Image.open(SET5 / "HR" / "woman.png").convert("RGB")), scale)
    small = np.array(Image.open(SET5 / f"LR_bicubic/X{scale}/womanx{scale}.png"))
    bottom, right = small.shape[0] - 48, small.shape[1] - 48

    for row, column in [(0, 0), (0, right), (bottom, 0), (bottom, right), (5, 7)]:
        crop, patch = downscale_patch(
            clean, scale=scale, top=scale * row, left=scale * column, patch_size=48
        )

        np.testing.assert_array_equal(patch, small[row : row + 48, column : column + 48])
        assert crop.shape == (48 * scale, 48 * scale, 3)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), border=st.sampled_from(["symmetric", "replicate"]))
def test_patch_equals_region_of_whole_image_resized(data, border):
    scale = data.draw(st.integers(1, 8), "scale")
    patch_size = data.draw(st.integers(1, 50), "patch_size")
    rows = data.draw(st.integers(patch_size, patch_size + 60), "rows")
    columns = data.draw(st.integers(patch_size, patch_size + 60), "columns")
    row = data.draw(st.integers(0, rows - patch_size), "row")
    column = data.draw(st.integers(0, columns - patch_size), "column")
    clean = picture(rows * scale, columns * scale, 3, seed=rows)

    crop, patch = downscale_patch(
        clean,
        scale=scale,
        top=row * scale,
        left=column * scale,
        patch_size=patch_size,
        border=border,
    )

    whole = imresize(clean, Fraction(1, scale), border=border)
    np.testing.assert_array_equal(
        patch, whole[row : row + patch_size, column : column + patch_size]
    )
    np.testing.assert_array_equal(
        crop,
        clean[
            row * scale : (row + patch_size) * scale, column * scale : (column + patch_size) * scale
        ],
    )


@settings(deadline=None, max_examples=60)
@given(
    scale=st.fractions(min_value=Fraction(1, 6), max_value=4, max_denominator=7),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    border=st.sampled_from(["symmetric", "replicate"]),
)
def test_equals_the_definition_computed_pixel_by_pixel(scale, height, width, border):
    image = picture(height, width, seed=height).astype(np.float64)

    resized = imresize(image, scale, border=border)

    expected = by_definition(by_definition(image, scale, border=border).T, scale, border=border).T
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-9)


def by_definition(image: np.ndarray, scale: Fraction, *, border: str) -> np.ndarray:
    """Axis 0, from the formula: kernel of Keys, stretched by 1/scale when shrinking."""
    size = len(image)
    stretch = max(Fraction(1), 1 / scale)
    resized = []
    for output in range(-(-size * scale.numerator // scale.denominator)):
        centre = (output + Fraction(1, 2)) / scale - Fraction(1, 2)
        first, last = int(centre - 2 * stretch) - 2, int(centre + 2 * stretch) + 2
        weights = [float(keys(abs(centre - source) / stretch)) for source in range(first, last + 1)]
        pixels = [image[beyond(source, size, border)] for source in range(first, last + 1)]
        resized.append(np.tensordot(weights, pixels, axes=1) / sum(weights))
    return np.array(resized)


def keys(x: Fraction) -> Fraction:
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x < 2 else Fraction(0)


def beyond(source: int, size: int, border: str) -> int:
    if border == "replicate":
        return min(max(source, 0), size - 1)
    while not 0 <= source < size:
        source = -1 - source if source < 0 else 2 * size - 1 - source
    return source


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_float_path_equals_torch_antialias_on_mirrored_input(scale):
    image = picture(60, 84, 3) / 255

    resized = imresize(image, Fraction(1, scale))

    # torch leaves out what lies beyond the border; with the border mirrored by hand, 4 pixels of
    # its result on each side, it has nothing to leave out.
    padded = np.pad(image, ((4 * scale,) * 2, (4 * scale,) * 2, (0, 0)), mode="symmetric")
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(padded).permute(2, 0, 1)[None],
        scale_factor=1 / scale,
        mode="bicubic",
        antialias=True,
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(resized, by_torch[4:-4, 4:-4].numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upscaling_in_8_bits_rounds_each_pass_half_up(scale):
    image = picture(20, 30)

    resized = imresize(image, scale)

    first = by_definition(image.astype(np.float64), Fraction(scale), border="symmetric")
    first = np.floor(first + 0.5).clip(0, 255)
    second = by_definition(first.T, Fraction(scale), border="symmetric").T
    # Thirds are inexact in the floats of the definition: leave out what lies on a half.
    is_clear = abs(second % 1 - 0.5) > 1e-6
    expected = np.floor(second + 0.5).clip(0, 255)
    np.testing.assert_array_equal(resized[is_clear], expected[is_clear])


def test_half_is_rounded_up():
    # By symmetry both halves weigh the same: (0 + 255) / 2 = 127.5.
    image = np.array([0] * 4 + [255] * 4, np.uint8)[:, None].repeat(8, axis=1)

    assert imresize(image, Fraction(1, 8)).tolist() == [[128]]


@pytest.mark.parametrize("scale", [Fraction(1, 7), Fraction(2, 5), 1, Fraction(8, 3), 5])
@pytest.mark.parametrize("level", [0, 1, 255])
def test_flat_image_stays_flat(scale, level):
    assert (imresize(np.full((23, 31, 3), level, np.uint8), scale) == level).all()


def test_floats_are_neither_rounded_nor_clipped():
    image = np.zeros((16, 16), np.float32)
    image[8:] = 1

    enlarged = imresize(image, 3)

    assert enlarged.dtype == np.float32
    assert enlarged.min() < -0.01
    assert enlarged.max() > 1.01


def test_float_scale_means_the_fraction_it_stands_for():
    image = picture(33, 47, 3)

    np.testing.assert_array_equal(imresize(image, 1 / 3), imresize(image, Fraction(1, 3)))
    np.testing.assert_array_equal(imresize(image, 0.37), imresize(image, Fraction(37, 100)))


def test_size_is_rounded_up_as_in_matlab():
    assert imresize(picture(33, 47), Fraction(1, 4)).shape == (9, 12)


def test_region_equals_whole_when_enlarging():
    image = picture(40, 50, 3)

    region = resize_region(image, 3, rows=(30, 77), columns=(3, 150))

    np.testing.assert_array_equal(region, imresize(image, 3)[30:77, 3:150])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5, 3), (2, 300, 1), (300, 2, 4)])
def test_tiny_and_thin_images(shape):
    assert imresize(picture(*shape), Fraction(1, 4)).shape[:2] == (
        -(-shape[0] // 4),
        -(-shape[1] // 4),
    )


def test_input_is_left_as_it_was_and_output_is_its_own():
    image = picture(12, 12, 3)
    before = image.copy()

    same = imresize(image, 1)
    same[:] = 0

    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("scale", [0, -2, float("nan"), float("inf"), 1e-9, 3.14159265, 501])
def test_scales_that_are_no_simple_fraction_are_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        imresize(picture(8, 8), scale)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), bool),
    ],
)
def test_arrays_that_are_no_image_are_refused(image):
    with pytest.raises(ValueError, match=r"uint8|shape"):
        imresize(image, 2)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"top": 1, "left": 0, "patch_size": 4}, "not a multiple"),
        ({"top": -2, "left": 0, "patch_size": 4}, "inside"),
        ({"top": 0, "left": 16, "patch_size": 4}, "inside"),
        ({"top": 0, "left": 0, "patch_size": 0}, "inside"),
        ({"top": 0, "left": 0, "patch_size": 11}, "inside"),
    ],
)
def test_patches_outside_the_image_are_refused(position, message):
    with pytest.raises(ValueError, match=message):
        downscale_patch(picture(20, 20, 3), scale=2, **position)


def test_patch_of_an_image_that_was_not_modcropped_is_refused():
    with pytest.raises(ValueError, match="modcrop"):
        downscale_patch(picture(21, 20, 3), scale=2, top=0, left=0, patch_size=4)
