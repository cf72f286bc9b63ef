import os
import zlib
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import numpy as np
import png
import pytest
from data_samples import largest_file
from PIL import Image, ImageCms

from pipeline.data.png_writer import PngWriter, new_png, png_bytes


def _samples(height: int, width: int, channels: int, dtype: type) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, shape, dtype, True)


def _write(path: Path, samples: np.ndarray, *, rows: int, profile: bytes | None = None) -> None:
    height, width, channels = samples.shape
    with new_png(
        path,
        height=height,
        width=width,
        channels=channels,
        dtype=samples.dtype,
        profile=profile,
    ) as writer:
        for top in range(0, height, rows):
            writer.write(samples[top : top + rows])


def _writer(path: Path) -> AbstractContextManager[PngWriter]:
    return new_png(path, height=9, width=3, channels=3, dtype=np.dtype(np.uint8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width", "rows"), [(1, 1, 1), (37, 53, 10), (20, 3, 1)])
def test_what_is_written_is_read_back(
    tmp_path: Path, dtype: type, channels: int, height: int, width: int, rows: int
) -> None:
    samples = _samples(height, width, channels, dtype)
    path = tmp_path / "a.png"

    _write(path, samples, rows=rows)

    _, _, lines, layout = png.Reader(filename=str(path)).read()
    assert np.array_equal(np.vstack([*lines]).reshape(samples.shape), samples)
    assert layout["bitdepth"] == samples.itemsize * 8
    assert (layout["greyscale"], layout["alpha"]) == (channels < 3, channels in (2, 4))
    with Image.open(path) as image:
        image.load()
        if dtype == np.uint8:
            assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
            assert np.array_equal(np.asarray(image).reshape(samples.shape), samples)
        elif channels == 1:
            assert np.array_equal(np.asarray(image), samples[:, :, 0])
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_transposed_band_is_written_as_it_looks(tmp_path: Path) -> None:
    samples = _samples(20, 30, 3, np.uint16).swapaxes(0, 1)

    _write(tmp_path / "a.png", samples, rows=7)

    lines = png.Reader(filename=str(tmp_path / "a.png")).read()[2]
    assert np.array_equal(np.vstack([*lines]).reshape(samples.shape), samples)


def test_the_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    _write(tmp_path / "a.png", _samples(4, 4, 3, np.uint8), rows=4, profile=profile)

    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == profile
    chunks = [kind for kind, _ in png.Reader(filename=str(tmp_path / "a.png")).chunks()]
    assert chunks == [b"IHDR", b"iCCP", b"IDAT", b"IDAT", b"IEND"]


def test_a_smooth_image_is_compressed(tmp_path: Path) -> None:
    """Rows of a gradient that goes down are equal after the filter; without it they differ."""
    row = np.random.default_rng(0).integers(0, 256, (1, 500, 3), np.uint8)
    samples = row + np.arange(200, dtype=np.uint8)[:, None, None]

    _write(tmp_path / "a.png", samples, rows=16)

    assert (tmp_path / "a.png").stat().st_size < len(zlib.compress(samples.tobytes())) / 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_broken_off_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def broken_off() -> None:
        with _writer(tmp_path / "a.png") as writer:
            writer.write(_samples(4, 3, 3, np.uint8))
            assert len(os.listdir(tmp_path)) == 2
            raise error

    with pytest.raises(error):
        broken_off()

    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_missing_rows_are_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="4 of 9 rows"),
        _writer(tmp_path / "a.png") as writer,
    ):
        writer.write(_samples(4, 3, 3, np.uint8))

    assert os.listdir(tmp_path) == []


def test_a_band_of_another_kind_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"\(4, 3, 3\), uint16.*\(3, 3\), uint8"),
        _writer(tmp_path / "a.png") as writer,
    ):
        writer.write(_samples(4, 3, 3, np.uint16))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(4096), pytest.raises(OSError, match="too large"):
        _write(tmp_path / "a.png", _samples(100, 100, 3, np.uint8), rows=100)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 1), (48, 48), (192, 192)])
def test_small_pngs_are_read_back(height: int, width: int, channels: int) -> None:
    whole = _samples(height + 2, width + 3, channels, np.uint8)
    whole[:2] = 255  # sums of neighbours beyond 8 bits

    for samples in (whole[1:-1, 2:-1], np.full((height, width, channels), 255, np.uint8)):
        with Image.open(BytesIO(png_bytes(samples))) as image:
            assert image.mode == ("L" if channels == 1 else "RGB")
            assert np.array_equal(np.asarray(image).reshape(samples.shape), samples)


def test_small_pngs_are_about_as_small_as_pillows() -> None:
    with Image.open(Path(__file__).parents[1] / "pipeline/assets/photos/coffee.png") as image:
        crop = image.convert("RGB").crop((200, 100, 392, 292))
    content = BytesIO()
    crop.save(content, "PNG", compress_level=1)

    assert len(png_bytes(np.asarray(crop))) < 1.1 * len(content.getvalue())


def test_another_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"

    def write() -> None:
        with _writer(path) as writer:
            writer.write(np.zeros((9, 3, 3), np.uint8))
            path.write_text("another's")

    with pytest.raises(FileExistsError):
        write()

    assert path.read_text() == "another's"
    assert os.listdir(tmp_path) == ["a.png"]
