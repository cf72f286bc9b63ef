"""JPEG artefacts. With this function the grey images of classic5 read 27.82 dB / 0.7595 at quality
10, and LIVE1 27.77, 30.07, 31.41, 32.35 dB at 10 to 40: the published baselines, made by MATLAB."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from data_samples import photograph
from PIL import Image

from pipeline.corruptions.jpeg import compress_region

PHOTOGRAPHS = Path(__file__).parents[1] / "pipeline" / "assets" / "photos"


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    height, width = image.shape[:2]
    return compress_region(image, quality, rows=(0, height), columns=(0, width))


@pytest.mark.parametrize(
    ("name", "quality", "digest"),
    [
        ("camera", 10, "09d5317648380a33"),
        ("camera", 40, "e7dc51baee672fce"),
        ("chelsea", 10, "64f14d1ba57b7977"),
        ("chelsea", 40, "bfee8e8fbb8aafd3"),
    ],
)
def test_pixels_are_those_of_the_libjpeg_that_equals_matlab(name, quality, digest):
    image = np.asarray(Image.open(PHOTOGRAPHS / f"{name}.png"))
    image = image.reshape(*image.shape[:2], -1)  # camera is grey

    pixels = compress(image, quality)

    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


def test_whole_image_is_what_its_file_holds():
    image = photograph(1, height=45, width=77)
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=20)

    np.testing.assert_array_equal(compress(image, 20), np.asarray(Image.open(file)))


def by_pillow(image: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    squeezed = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(squeezed).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file)).reshape(image.shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_quality_gives_pillows_pixels(channels):
    rng = np.random.default_rng(channels)
    for quality in range(1, 101):
        height, width = rng.integers(1, 80, 2)
        smooth = photograph(quality, height=96, width=96)[:height, :width]
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        edges = noise // 128 * 255
        for image in (smooth, noise, edges):
            image = image[:, :, :channels]
            np.testing.assert_array_equal(compress(image, quality), by_pillow(image, quality))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (83, 101), (49, 50)])
def test_regions_equal_the_whole_image_compressed(channels, height, width):
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    image = (photograph(2, height=height, width=width) // 2 + noise)[:, :, :channels]
    whole = compress(image, 15)

    for top in range(height - 32 + 1):
        left = (7 * top) % (width - 32 + 1)
        patch = compress_region(image, 15, rows=(top, top + 32), columns=(left, left + 32))
        np.testing.assert_array_equal(patch, whole[top : top + 32, left : left + 32])


def test_error_falls_with_quality():
    image = photograph(3, height=64, width=64)

    errors = [np.square(compress(image, q).astype(float) - image).mean() for q in (5, 10, 40, 95)]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0


@pytest.mark.parametrize("quality", [0, 101])
def test_impossible_quality_is_refused(quality):
    with pytest.raises(ValueError, match="quality"):
        compress(photograph(0), quality)
