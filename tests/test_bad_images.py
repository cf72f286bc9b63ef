"""Every kind of file that a folder of photographs may hold: converted, or refused with a reason."""

import os
import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from data_samples import as_nobody, encoded, photograph, png_of_16_bits, png_of_size
from PIL import Image

from pipeline.data.source import UnreadablePhotograph, decode_photograph, read_photograph

PHOTOGRAPH = photograph(0)
GREY = PHOTOGRAPH[:, :, 0]


def as_jpeg(mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.fromarray(PHOTOGRAPH).convert(mode), "JPEG", quality=95, **options)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(as_jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def with_alpha() -> Image.Image:
    alpha = np.full(GREY.shape, 7, np.uint8)
    return Image.fromarray(np.dstack([PHOTOGRAPH, alpha]), "RGBA")


def animation() -> bytes:
    frames = [Image.fromarray(photograph(number)).convert("P") for number in (0, 1)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def test_colour_png_is_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "photo.JPEG"  # misnamed, as one of ImageNet's files is
    path.write_bytes(encoded(Image.fromarray(PHOTOGRAPH), "PNG"))

    assert np.array_equal(read_photograph(path), PHOTOGRAPH)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(GREY), "PNG"), np.dstack([GREY] * 3)),
        (encoded(with_alpha(), "PNG"), PHOTOGRAPH),
        (encoded(with_alpha().convert("LA"), "PNG"), None),
        (encoded(Image.fromarray(GREY > 128), "PNG"), np.dstack([(GREY > 128) * 255] * 3)),
        (
            encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
            np.dstack([GREY] * 3),
        ),
        (
            encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
            np.dstack([GREY] * 3),
        ),
        (png_of_16_bits(PHOTOGRAPH, 2), PHOTOGRAPH),
        (png_of_16_bits(np.asarray(with_alpha()), 6), PHOTOGRAPH),
        (png_of_16_bits(np.dstack([GREY, GREY // 2]), 4), np.dstack([GREY] * 3)),
        (b"P5 2 1 65535\n\x00\x00\xff\xff", np.array([[[0] * 3, [255] * 3]])),
        (encoded(Image.fromarray(PHOTOGRAPH), "BMP"), PHOTOGRAPH),
        (encoded(Image.fromarray(PHOTOGRAPH), "TIFF"), PHOTOGRAPH),
        (encoded(Image.fromarray(PHOTOGRAPH), "WEBP", lossless=True), PHOTOGRAPH),
        (encoded(Image.fromarray(PHOTOGRAPH[:1, :1]), "PNG"), PHOTOGRAPH[:1, :1]),
    ],
    ids=[
        "grey",
        "alpha",
        "grey-alpha",
        "1-bit",
        "16-bit-png",
        "16-bit-tiff",
        "16-bit-colour",
        "16-bit-alpha",
        "16-bit-grey-alpha",
        "16-bit-pgm",
        "bmp",
        "tiff",
        "webp",
        "1x1",
    ],
)
def test_lossless_kinds_become_rgb(data: bytes, expected: np.ndarray | None) -> None:
    image = decode_photograph(data)

    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    if expected is not None:
        assert np.array_equal(image, expected)


@pytest.mark.parametrize(
    "data",
    [
        as_jpeg(),
        as_jpeg("L"),
        as_jpeg("CMYK"),
        as_jpeg(progressive=True),
        as_jpeg(subsampling=0),
        encoded(Image.fromarray(PHOTOGRAPH).quantize(256), "PNG"),
        animation(),
    ],
    ids=["jpeg", "grey", "cmyk", "progressive", "444", "palette", "animation"],
)
def test_lossy_kinds_are_near_the_photograph(data: bytes) -> None:
    image = decode_photograph(data)

    assert image.shape == PHOTOGRAPH.shape
    luma, expected = (
        np.asarray(Image.fromarray(each).convert("L")).astype(float) for each in (image, PHOTOGRAPH)
    )
    assert abs(luma - expected).mean() < 10  # levels; the palette of a GIF is the coarsest


def test_16_bits_are_scaled_not_clipped() -> None:
    dark = np.array([[0, 100, 255, 256, 32768, 65535]], np.uint16)

    image = decode_photograph(encoded(Image.fromarray(dark), "PNG"))

    assert image[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_ycck_is_read_as_cmyk_is() -> None:
    data = as_jpeg("CMYK")
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0, "the transform byte of a CMYK jpeg"
    ycck = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]

    image = decode_photograph(ycck)

    assert image.shape == PHOTOGRAPH.shape


def test_simplejpeg_and_pillow_agree() -> None:
    for data in (as_jpeg(), as_jpeg("L"), as_jpeg(progressive=True), as_jpeg(subsampling=0)):
        with Image.open(BytesIO(data)) as image:
            assert np.array_equal(decode_photograph(data), np.asarray(image.convert("RGB")))


def test_every_sampling_of_the_colours_is_read_or_refused() -> None:
    data = bytearray(as_jpeg(subsampling=0))
    frame = data.index(b"\xff\xc0")
    read = 0
    for luma in (0x11, 0x12, 0x14, 0x21, 0x22, 0x24, 0x41, 0x42, 0x44):  # 0x14 is 4:4:1
        data[frame + 11] = luma
        try:
            read += decode_photograph(bytes(data)).shape == PHOTOGRAPH.shape
        except UnreadablePhotograph:  # the pixels behind it are those of another sampling
            continue

    assert read > 0


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees

    turned = decode_photograph(as_jpeg(exif=exif.tobytes()))

    assert np.array_equal(turned, decode_photograph(as_jpeg()))


def test_the_first_frame_of_an_animation_is_read() -> None:
    first = Image.fromarray(PHOTOGRAPH).convert("P").convert("RGB")

    assert np.array_equal(decode_photograph(animation()), np.asarray(first))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text", "not an image"),
        (b"\xff\xd8", "truncated or damaged|not an image"),
        (as_jpeg()[:400], "truncated or damaged|not an image"),
        (as_jpeg()[:-300], "truncated or damaged"),
        (as_jpeg(progressive=True)[:-300], "truncated or damaged"),
        (encoded(Image.fromarray(PHOTOGRAPH), "PNG")[:-500], "truncated or damaged"),
        (animation()[: len(animation()) // 3], "truncated or damaged"),
        (png_of_size(20_000, 20_000), "too many pixels"),
        (png_of_size(9_000, 9_000), r"too many pixels \(9000×9000; at most 67,108,864\)"),
        (jpeg_of_size(60_000, 60_000), "too many pixels"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point samples"),
        (encoded(Image.fromarray(GREY.astype(np.int32) * 10**6), "TIFF"), "32-bit samples"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    ],
    ids=[
        "empty",
        "text",
        "two-bytes",
        "header-only",
        "cut-jpeg",
        "cut-progressive",
        "cut-png",
        "cut-gif",
        "bomb",
        "large",
        "jpeg-bomb",
        "float",
        "32-bit",
        "postscript",
    ],
)
def test_what_gives_no_photograph_is_refused_with_a_reason(
    data: bytes, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadablePhotograph, match=reason):
            read_photograph(path)

    assert capfd.readouterr() == ("", "")


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(Image.fromarray(PHOTOGRAPH), "TIFF", compression="tiff_deflate"))
    data[20:60] = bytes(40)

    with pytest.raises(UnreadablePhotograph, match="truncated or damaged"):
        decode_photograph(bytes(data))

    assert capfd.readouterr() == ("", "")


def test_damage_anywhere_is_refused_or_read_but_never_crashes() -> None:
    rng = np.random.default_rng(0)
    for data in (as_jpeg(), encoded(Image.fromarray(PHOTOGRAPH), "PNG"), animation()):
        for _ in range(150):
            damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
            for place in rng.integers(0, len(damaged), 3):
                damaged[place] = rng.integers(256)
            try:
                image = decode_photograph(bytes(damaged))
            except UnreadablePhotograph:
                continue
            assert image.dtype == np.uint8
            assert image.shape[2] == 3


def test_folders_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # nobody writes into it: who opens it waits for ever

    for name, reason in (
        (".", "not a file"),
        ("missing.jpg", "no such file"),
        ("pipe.jpg", "not a file"),
    ):
        with pytest.raises(UnreadablePhotograph, match=reason):
            read_photograph(tmp_path / name)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.fromarray(PHOTOGRAPH), "PNG"))
    path.chmod(0)

    with as_nobody(), pytest.raises(UnreadablePhotograph, match="permission denied"):
        read_photograph(path)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    with path.open("wb") as file:
        file.truncate(2**30)  # a hole, not a gibibyte

    with pytest.raises(UnreadablePhotograph, match="too many bytes"):
        read_photograph(path)
