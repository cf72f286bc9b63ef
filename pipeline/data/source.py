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
from PIL import Image

# ImageNet's largest photograph has 61 million pixels; this many are 201 MB of RGB.
LARGEST_PIXELS = 2**26
LARGEST_BYTES = 2**29
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
    MemoryError,
    struct.error,
    zlib.error,
)


class SourceError(ValueError):
    """Photographs that can't be used as they are; the message says why and what to do."""


class UnreadablePhotograph(ValueError):  # noqa: N818 - the name says what is wrong
    """A file that gives no photograph. Its message is the reason: a fixed phrase, and details in
    parentheses, so that reasons can be counted."""

    @property
    def kind(self) -> str:
        return str(self).partition(" (")[0]


def readable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def read_photograph(path: Path) -> np.ndarray:
    """The photograph as uint8 (height, width, 3) RGB, or UnreadablePhotograph with the reason.

    Pixels are as stored: EXIF orientation is not applied, as ImageNet's readers don't. Alpha is
    dropped, not composited, for the same reason. Of an animation the first frame is read.
    """
    try:
        check_file(path)
        data = path.read_bytes()
    except OSError as error:
        raise UnreadablePhotograph((error.strerror or str(error)).lower()) from error
    return decode_photograph(data)


def check_file(path: Path, *, most_bytes: int = LARGEST_BYTES) -> None:
    """Raise UnreadablePhotograph, or OSError, for what can't be opened as a photograph's file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait for its writer
        raise UnreadablePhotograph("not a file")
    if not status.st_size:
        raise UnreadablePhotograph("empty file")
    check_bytes(status.st_size, most_bytes)


def check_bytes(size: int, most: int = LARGEST_BYTES) -> None:
    if size > most:
        raise UnreadablePhotograph(f"too many bytes ({size:,}; at most {most:,})")


def decode_photograph(data: bytes) -> np.ndarray:
    """The photograph in `data`, the bytes of a file, as `read_photograph` describes it."""
    if not data:
        raise UnreadablePhotograph("empty file")
    if data.startswith(b"\xff\xd8"):
        image = _decode_jpeg(data)
        if image is not None:
            return image
    return _decode_with_pillow(data)


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The common case, a third faster than Pillow and equal to it; None where it needs Pillow:
    CMYK and YCCK, and files with oddities that libjpeg warns of."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(width, height)
        if colorspace in ("CMYK", "YCCK"):
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except UnreadablePhotograph:
        raise
    except (ValueError, KeyError):  # KeyError: a sampling of the colours that it doesn't know
        return None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with opened_by_pillow(BytesIO(data)) as image:
        image.load()
        return _to_rgb(image)


@contextmanager
def opened_by_pillow(file: BinaryIO, *, most_pixels: int = LARGEST_PIXELS) -> Iterator[Image.Image]:
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
                _check_pixels(*image.size, most_pixels)
                yield image
        except UnreadablePhotograph:
            raise
        except Image.DecompressionBombError:
            raise UnreadablePhotograph(f"too many pixels (more than {most_pixels:,})") from None
        except Image.UnidentifiedImageError:
            raise UnreadablePhotograph("not an image in a known format") from None
        except _DAMAGED as error:
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
    mode = image.mode
    if mode.startswith("I"):  # I;16, I;16B and, from PGM and some TIFF, 16 bits inside 32
        return _from_16_bits(np.asarray(image).astype(np.int64))
    if mode == "F":
        raise UnreadablePhotograph("floating-point samples (no known white level)")
    # Premultiplied alpha is undone before it is dropped.
    straight = {"RGBa": "RGBA", "La": "LA"}.get(mode)
    if straight is not None:
        image = image.convert(straight)
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _from_16_bits(grey: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255, rounded, where Pillow's own conversion clips at 255."""
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadablePhotograph("32-bit samples (no known white level)")
    scaled = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)
