import io
import struct
from pathlib import Path

import numpy as np
import png
import pytest
from data_samples import png_of_size
from PIL import Image, ImageCms

from pipeline.data import photograph_file
from pipeline.data.photograph_file import (
    PhotographFileError,
    check_photograph_file,
    read_photograph_file,
)

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112


def _samples(channels: int, dtype: type = np.uint8, *, height: int = 6, width: int = 5):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, shape, dtype, True)


def _deep_png(samples: np.ndarray, **options) -> bytes:
    """16 bits per sample, (H, W, C)."""
    height, width, channels = samples.shape
    data = io.BytesIO()
    writer = png.Writer(
        width, height, bitdepth=16, greyscale=channels < 3, alpha=channels in (2, 4), **options
    )
    writer.write(data, samples.reshape(height, -1))
    return data.getvalue()


def _deep_tiff(samples: np.ndarray) -> bytes:
    """Uncompressed, 16 bits per sample; Pillow writes no such file in colour."""
    height, width, channels = samples.shape
    data = samples.astype("<u2").tobytes()
    tags = [(256, 3, width), (257, 3, height), (259, 3, 1), (262, 3, 2), (277, 3, channels)]
    bits = 8 + 2 + 12 * 9 + 4
    tags += [(273, 4, bits + 2 * channels), (278, 3, height), (279, 4, len(data))]
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags]
    entries.append(struct.pack("<HHII", 258, 3, channels, bits))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head + struct.pack(f"<{channels}H", *[16] * channels) + data


def _saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp", "ppm"])
def test_colour_of_8_bits_is_kept(tmp_path: Path, suffix: str) -> None:
    samples = _samples(3)
    path = _saved(tmp_path / f"a.{suffix}", Image.fromarray(samples), lossless=True)

    photograph = read_photograph_file(path)

    assert photograph.pixels.dtype == np.uint8
    assert np.array_equal(photograph.pixels, samples)
    assert photograph.alpha is None
    assert photograph.profile is None


def test_a_photograph_of_many_bands_is_read_whole(tmp_path: Path) -> None:
    samples = _samples(3, height=2 * photograph_file.ROWS_AT_A_TIME + 3, width=4)

    photograph = read_photograph_file(_saved(tmp_path / "a.png", Image.fromarray(samples)))

    assert np.array_equal(photograph.pixels, samples)


def test_grey_stays_one_channel(tmp_path: Path) -> None:
    samples = _samples(1)

    photograph = read_photograph_file(_saved(tmp_path / "a.png", Image.fromarray(samples)))

    assert photograph.pixels.shape == (6, 5, 1)
    assert np.array_equal(photograph.pixels[:, :, 0], samples)


def test_black_and_white_becomes_grey(tmp_path: Path) -> None:
    samples = _samples(1) > 127

    photograph = read_photograph_file(_saved(tmp_path / "a.png", Image.fromarray(samples)))

    assert np.array_equal(photograph.pixels[:, :, 0], samples * np.uint8(255))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_kept_apart(tmp_path: Path, channels: int) -> None:
    samples = _samples(channels)

    photograph = read_photograph_file(_saved(tmp_path / "a.png", Image.fromarray(samples)))

    assert np.array_equal(photograph.pixels, samples[:, :, :-1])
    assert np.array_equal(photograph.alpha, samples[:, :, -1])


def test_palettes_are_expanded(tmp_path: Path) -> None:
    image = Image.fromarray(_samples(3)).quantize(8)
    plain = _saved(tmp_path / "plain.png", image)
    pierced = _saved(tmp_path / "pierced.png", image, transparency=3)

    colours = np.asarray(image.convert("RGB"))

    assert np.array_equal(read_photograph_file(plain).pixels, colours)
    assert read_photograph_file(plain).alpha is None
    photograph = read_photograph_file(pierced)
    assert np.array_equal(photograph.pixels, colours)
    assert np.array_equal(photograph.alpha, np.where(np.asarray(image) == 3, 0, 255))


def test_one_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    samples = _samples(1)
    samples[2, 3] = 77
    path = _saved(tmp_path / "a.png", Image.fromarray(samples), transparency=77)

    photograph = read_photograph_file(path)

    assert np.array_equal(photograph.pixels[:, :, 0], samples)
    assert np.array_equal(photograph.alpha, np.where(samples == 77, 0, 255))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_kept(tmp_path: Path, suffix: str) -> None:
    samples = _samples(1, np.uint16)
    path = _saved(tmp_path / f"a.{suffix}", Image.fromarray(samples))

    photograph = read_photograph_file(path)

    assert photograph.pixels.dtype == np.uint16
    assert np.array_equal(photograph.pixels[:, :, 0], samples)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlace", [False, True])
def test_png_of_16_bits_is_kept(tmp_path: Path, channels: int, interlace: bool) -> None:
    samples = _samples(channels, np.uint16).reshape(6, 5, channels)
    (tmp_path / "a.png").write_bytes(_deep_png(samples, interlace=interlace))

    photograph = read_photograph_file(tmp_path / "a.png")

    colours = 1 if channels < 3 else 3
    assert photograph.pixels.dtype == np.uint16
    assert np.array_equal(photograph.pixels, samples[:, :, :colours])
    if channels in (2, 4):
        assert np.array_equal(photograph.alpha, samples[:, :, -1])
    else:
        assert photograph.alpha is None


def test_16_bit_png_with_one_transparent_colour_has_alpha(tmp_path: Path) -> None:
    for channels in (1, 3):
        samples = _samples(channels, np.uint16).reshape(6, 5, channels)
        samples[2, 3] = 1000
        transparent = (1000,) * 3 if channels == 3 else 1000
        (tmp_path / "a.png").write_bytes(_deep_png(samples, transparent=transparent))

        photograph = read_photograph_file(tmp_path / "a.png")

        assert np.array_equal(photograph.pixels, samples)
        expected = np.full((6, 5), 65535, np.uint16)
        expected[2, 3] = 0
        assert np.array_equal(photograph.alpha, expected)


def test_samples_are_as_stored_whatever_the_sensor_had(tmp_path: Path) -> None:
    """PNG's sBIT says how many of the bits mean something; a reader may shift by it."""
    samples = _samples(3, np.uint16)
    data = _deep_png(samples)
    chunk = io.BytesIO()
    png.write_chunk(chunk, b"sBIT", bytes([12, 12, 12]))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk.getvalue() + data[33:])

    assert np.array_equal(read_photograph_file(tmp_path / "a.png").pixels, samples)


def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path) -> None:
    profile = PROFILE[:16] + b"CMYK" + PROFILE[20:]
    image = Image.fromarray(_samples(4), "CMYK")
    path = _saved(tmp_path / "a.jpg", image, icc_profile=profile)

    photograph = read_photograph_file(path)

    with Image.open(path) as stored:
        assert np.array_equal(photograph.pixels, np.asarray(stored.convert("RGB")))
    assert photograph.profile is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_profile_is_kept(tmp_path: Path, suffix: str) -> None:
    path = _saved(tmp_path / f"a.{suffix}", Image.fromarray(_samples(3)), icc_profile=PROFILE)

    assert read_photograph_file(path).profile == PROFILE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_photographs_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    samples = _samples(4)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = _saved(tmp_path / f"a.{suffix}", Image.fromarray(samples), exif=exif)

    photograph = read_photograph_file(path)

    upright = {  # of the table in the EXIF standard: where row 0 and column 0 are seen
        1: samples,
        2: np.fliplr(samples),
        3: np.rot90(samples, 2),
        4: np.flipud(samples),
        5: samples.swapaxes(0, 1),
        6: np.rot90(samples, -1),
        7: np.rot90(samples, 2).swapaxes(0, 1),
        8: np.rot90(samples, 1),
    }[orientation]
    assert np.array_equal(photograph.pixels, upright[:, :, :3])
    assert np.array_equal(photograph.alpha, upright[:, :, 3])


def _animation() -> bytes:
    frames = [Image.fromarray(_samples(3) // each) for each in (1, 2, 3)]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    return data.getvalue()


def _png(samples: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(samples).save(data, "PNG")
    return data.getvalue()


def _floats() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.float32)).save(data, "TIFF")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"I am a text, not an image\n" * 9, "not an image in a known format"),
        (_animation(), r"an animation or several pages \(3 images\)"),
        (png_of_size(20_000, 20_000), "too many pixels"),
        (_floats(), "floating-point samples"),
        (_deep_tiff(_samples(3, np.uint16)), "16-bit colour in TIFF.*save it as PNG"),
        (b"P6 5 6 65535\n" + bytes(5 * 6 * 6), "16-bit colour in PPM.*save it as PNG"),
    ],
    ids=["empty", "text", "animation", "bomb", "floats", "deep TIFF", "deep PPM"],
)
def test_the_header_tells_what_cant_be_restored(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)

    for read in (check_photograph_file, read_photograph_file):
        with pytest.raises(PhotographFileError, match=message) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert "\n" not in str(raised.value)


def test_the_largest_cameras_photographs_are_not_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of_size(11_648, 8_736))

    check_photograph_file(path)


@pytest.mark.parametrize("deep", [False, True])
def test_a_truncated_file_is_found_when_it_is_read(tmp_path: Path, deep: bool) -> None:
    samples = _samples(3, np.uint16 if deep else np.uint8, height=60, width=50)
    data = _deep_png(samples) if deep else _png(samples)
    path = tmp_path / "a.png"
    for length in (len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])

        check_photograph_file(path)
        with pytest.raises(PhotographFileError, match="truncated or damaged"):
            read_photograph_file(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotographFileError, match="no such file"):
        check_photograph_file(tmp_path / "none.png")
    with pytest.raises(PhotographFileError, match="not a file"):
        check_photograph_file(tmp_path)
