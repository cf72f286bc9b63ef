"""Decodes one photograph, whatever its format, or says why it can't."""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from pipeline.data.decoding_memory import (
    MOST_MEMORY,
    check_there,
    coefficient_bytes,
    pillow_memory,
)

# ImageNet's largest photograph has 61 million pixels; this many are 201 MB of RGB.
LARGEST_PIXELS = 2**26
_PIXELS_AT_ONCE = 2**18  # converted
# Nothing that runs other programs (EPS does) or that isn't a photograph.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
# What Pillow raises on damaged files, beside the OSError that it documents.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# Said of damage and of lack of memory: half of what a WEBP takes is taken when it is opened.
_NO_WEBP_DECODER = "could not create decoder object"
NO_MEMORY = "not enough memory to decode it"


class SourceError(ValueError):
    """Photographs that can't be used as they are; the message says why and what to do."""


class UnreadablePhotograph(ValueError):  # noqa: N818 - the name says what is wrong
    """A file that gives no photograph. Its message is the reason: a fixed phrase, and details in
    parentheses, so that reasons can be counted."""

    name: str | None = None  # of the photograph, where it isn't the one that was asked for

    @property
    def kind(self) -> str:
        return str(self).partition(" (")[0]


def readable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def read_photograph(path: Path) -> np.ndarray:
    """The photograph as uint8 (height, width, 3) RGB, or UnreadablePhotograph with the reason.

    Pixels are as stored: EXIF orientation is not applied, as ImageNet's readers don't. Alpha is
    dropped, not composited, for the same reason. Of an animation the first frame is read. Lack of
    memory is MemoryError, never a property of the photograph.
    """
    try:
        check_file(path)
        return decode_photograph(path.read_bytes())
    except OSError as error:
        raise UnreadablePhotograph((error.strerror or str(error)).lower()) from error
    except MemoryError as error:
        raise MemoryError(f"{path}: {NO_MEMORY}") from error


def check_file(path: Path, *, most_bytes: int = MOST_MEMORY) -> None:
    """Raise UnreadablePhotograph, or OSError, for what can't be opened as a photograph's file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait for its writer
        raise UnreadablePhotograph("not a file")
    if not status.st_size:
        raise UnreadablePhotograph("empty file")
    check_bytes(status.st_size, most_bytes)


def check_bytes(size: int, most: int) -> None:
    if size > most:
        raise UnreadablePhotograph(f"too many bytes ({size:,}; at most {most:,})")


def decode_photograph(data: bytes, *, most_memory: int = MOST_MEMORY) -> np.ndarray:
    """The photograph in `data`, the bytes of a file, as `read_photograph` describes it.

    One that would take more than `most_memory` bytes to decode is UnreadablePhotograph.
    """
    if not data:
        raise UnreadablePhotograph("empty file")
    if data.startswith(b"\xff\xd8"):
        image = _decode_jpeg(data, most_memory)
        if image is not None:
            return image
    file, size = BytesIO(data), len(data)
    del data  # `file` shares it, and lets go of it as soon as it is decoded
    return _decode_with_pillow(file, size, most_memory)


def _decode_jpeg(data: bytes, most_memory: int = MOST_MEMORY) -> np.ndarray | None:
    """The common case, a third faster than Pillow and equal to it; None where it needs Pillow:
    files with oddities that libjpeg warns of, and samplings of the colours that it doesn't know."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(width, height)
        channels = 4 if colorspace in ("CMYK", "YCCK") else 3
        what = f"{width}×{height} pixels of this JPEG"
        most = 2 * channels  # bytes a pixel, of all coefficients of all colours
        try:
            _check_memory(len(data) + width * height * (channels + most), most_memory, what)
        except (UnreadablePhotograph, MemoryError):
            held = channels + _coefficients_held(data, most)
            _check_memory(len(data) + int(width * height * held), most_memory, what)
        if channels == 3:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        pixels = np.empty(height * width * 4, np.uint8)
        simplejpeg.decode_jpeg(data, colorspace="CMYK", buffer=pixels)
        return _from_cmyk(pixels, height, width)
    except UnreadablePhotograph:
        raise
    except (ValueError, KeyError) as error:  # KeyError: a sampling
        if "Insufficient memory" in str(error):
            raise MemoryError(str(error)) from error
        return None


def _coefficients_held(data: bytes, most: float) -> float:
    """Bytes a pixel, as the header of a JPEG tells; `most` where only libjpeg can read it."""
    try:
        with opened_by_pillow(BytesIO(data)) as header:
            return coefficient_bytes(header)
    except UnreadablePhotograph:
        return most


def _from_cmyk(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """As Pillow converts it; in place, as both together would take 7 bytes a pixel."""
    count = height * width
    for first in range(0, count, _PIXELS_AT_ONCE):
        end = min(first + _PIXELS_AT_ONCE, count)
        ink = 255 - pixels[4 * first : 4 * end].reshape(1, -1, 4)  # Adobe's are inverted
        rgb = Image.fromarray(ink, "CMYK").convert("RGB")
        pixels[3 * first : 3 * end] = np.asarray(rgb).reshape(-1)
    pixels.resize(3 * count, refcheck=False)
    return pixels.reshape(height, width, 3)


def _decode_with_pillow(file: BytesIO, size: int, most_memory: int) -> np.ndarray:
    with opened_by_pillow(file) as image:
        what = f"{image.width}×{image.height} pixels of this {image.format}"
        _check_memory(pillow_memory(image, size), most_memory, what)
        image.load()
        file.close()
        return _to_rgb(image)


def _check_memory(needed: int, most: int, what: str) -> None:
    if needed > most:
        reason = f"{what} take {needed / 2**20:,.0f} MiB; at most {most / 2**20:,.0f}"
        raise UnreadablePhotograph(f"too much memory ({reason})")
    check_there(needed)


@contextmanager
def opened_by_pillow(
    file: BinaryIO, *, most_pixels: int = LARGEST_PIXELS
) -> Iterator[ImageFile.ImageFile]:
    """The image in `file`, its header read, its pixels not yet.

    Whatever is raised here, or inside the block by decoding it, becomes UnreadablePhotograph.
    """
    start = file.read(2)
    file.seek(0)
    with warnings.catch_warnings():
        # The file is listed with a reason, or it is fine: neither needs a warning printed.
        warnings.simplefilter("ignore")
        try:
            with (
                _quiet_libtiff() if start in (b"II", b"MM") else nullcontext(),
                Image.open(file, formats=_FORMATS) as image,
            ):
                assert isinstance(image, ImageFile.ImageFile)  # as all are that come from a file
                _check_pixels(*image.size, most_pixels)
                yield image
        except UnreadablePhotograph:
            raise
        except Image.DecompressionBombError:
            raise UnreadablePhotograph(f"too many pixels (more than {most_pixels:,})") from None
        except Image.UnidentifiedImageError:
            raise UnreadablePhotograph("not an image in a known format") from None
        except _DAMAGED as error:
            if str(error).startswith("out of memory"):  # an OSError of Pillow's
                raise MemoryError(str(error)) from error
            if str(error) == _NO_WEBP_DECODER:
                check_there(MOST_MEMORY // 2)
            raise UnreadablePhotograph(f"truncated or damaged ({_one_line(error)})") from error


@contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """libtiff, and it alone, writes what is wrong with a file to the process's stderr."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_pixels(width: int, height: int, most: int = LARGEST_PIXELS) -> None:
    if min(width, height) < 1:
        raise UnreadablePhotograph(f"truncated or damaged ({width}×{height} pixels)")
    if width * height > most:
        raise UnreadablePhotograph(f"too many pixels ({width}×{height}; at most {most:,})")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:119]}…"


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise UnreadablePhotograph("floating-point samples (no known white level)")
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    # In bands: conversions hold several copies, that of 16 bits 19 bytes a pixel.
    rows = max(1, _PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        end = min(top + rows, height)
        pixels[top:end] = _band_to_rgb(image.crop((0, top, width, end)))
    return pixels


def _band_to_rgb(band: Image.Image) -> np.ndarray:
    if band.mode.startswith("I"):  # I;16, I;16B and, from PGM and some TIFF, 16 bits inside 32
        return _from_16_bits(np.asarray(band).astype(np.int64))
    # Premultiplied alpha is undone before it is dropped.
    straight = {"RGBa": "RGBA", "La": "LA"}.get(band.mode)
    if straight is not None:
        band = band.convert(straight)
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _from_16_bits(grey: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255, rounded, where Pillow's own conversion clips at 255."""
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadablePhotograph("32-bit samples (no known white level)")
    scaled = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)
