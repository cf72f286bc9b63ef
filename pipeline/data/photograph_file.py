"""Any photograph, read to be restored: with its channels, depth, alpha and colour profile."""

# H W height and width, C channels

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import png
from PIL import Image, ImageFile

from pipeline.data.source import NO_MEMORY, UnreadablePhotograph, check_file, opened_by_pillow

ROWS_AT_A_TIME = 256
# Twice as many as a training photograph may have: cameras make 102 million.
LARGEST_PIXELS = 2**27
LARGEST_BYTES = 8 * LARGEST_PIXELS  # with 16 bits and alpha
_ORIENTATION = 0x0112  # the EXIF tag
_PROFILE_SPACES = {1: b"GRAY", 3: b"RGB "}


class PhotographFileError(ValueError):
    """A file that can't be read as a photograph; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A photograph as its file has it, upright."""

    pixels: np.ndarray  # (H, W, C) uint8 or uint16, grey or RGB
    alpha: np.ndarray | None  # (H, W), of the same type; not premultiplied
    profile: bytes | None  # ICC, for these channels


def check_photograph_file(path: Path) -> None:
    """Raise PhotographFileError for what the header tells, without decoding the image."""
    with _opened(path):
        pass


def read_photograph_file(path: Path) -> Photograph:
    """The photograph in its own depth; palettes become RGB, and so do CMYK and YCbCr.

    16-bit colour in JPEG 2000 loses its depth: the decoder gives 8 bits and doesn't say so.
    """
    with _opened(path) as image:
        if image.format == "PNG" and _is_deep(image) and not _is_grey_16(image):
            samples = _deep_png(path)
        else:
            image.load()
            samples = _samples(image)
        # After the decoding: TIFF is turned by it, and PNG may have its EXIF at the end.
        samples = _upright(samples, image.getexif().get(_ORIENTATION, 1))
        profile = image.info.get("icc_profile")
    channels = 1 if samples.shape[2] < 3 else 3
    # A profile for other channels, as of a CMYK image, would be wrong for these.
    if profile is not None and profile[16:20] != _PROFILE_SPACES[channels]:
        profile = None
    return Photograph(
        pixels=samples[:, :, :channels],
        alpha=samples[:, :, channels] if samples.shape[2] > channels else None,
        profile=profile,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        check_file(path, most_bytes=LARGEST_BYTES)
        with (
            path.open("rb") as file,
            opened_by_pillow(file, most_pixels=LARGEST_PIXELS) as image,
        ):
            _check_kind(image)
            yield image
    except UnreadablePhotograph as error:
        raise PhotographFileError(f"{path}: {error}") from error
    except MemoryError as error:
        raise PhotographFileError(f"{path}: {NO_MEMORY}") from error
    except OSError as error:
        raise PhotographFileError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _check_kind(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    # Cameras append previews to a photograph, as MPO.
    if frames > 1 and image.format != "MPO":
        raise UnreadablePhotograph(f"an animation or several pages ({frames} images)")
    if image.mode == "F":
        raise UnreadablePhotograph("floating-point samples (no known white level)")
    if image.format != "PNG" and _is_deep(image) and not _is_grey_16(image):
        raise UnreadablePhotograph(
            f"16-bit colour in {image.format}, which would be read with 8 bits; save it as PNG"
        )


def _is_grey_16(image: Image.Image) -> bool:
    return image.mode.startswith("I") and not image.has_transparency_data


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits per sample, whatever Pillow would make of them."""
    assert isinstance(image, ImageFile.ImageFile)  # as all are that come from a file
    if not image.tile:
        return False
    arguments = image.tile[0].args
    if image.format == "PPM":
        return isinstance(arguments, tuple) and arguments[1] in range(256, 65536)
    raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
    return ";16" in str(raw_mode)


def _samples(image: Image.Image) -> np.ndarray:
    """(H, W, 1 to 4): grey or RGB, then alpha where there is one."""
    if image.mode.startswith("I"):
        return _grey_16(image)
    has_alpha = image.has_transparency_data
    is_grey = image.mode in ("1", "L", "LA", "La")
    mode = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}[
        is_grey, has_alpha
    ]
    width, height = image.size
    samples = np.empty((height, width, len(mode)), np.uint8)
    # Band by band, as Pillow's own conversions would hold several copies of the whole.
    for top in range(0, height, ROWS_AT_A_TIME):
        band = image.crop((0, top, width, min(top + ROWS_AT_A_TIME, height)))
        if band.mode != mode:
            band = band.convert(mode)
        samples[top : top + band.height] = np.asarray(band).reshape(band.height, width, -1)
    return samples


def _grey_16(image: Image.Image) -> np.ndarray:
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 65535:
        raise UnreadablePhotograph("32-bit samples (no known white level)")
    return samples.astype(np.uint16)[:, :, None]


def _deep_png(path: Path) -> np.ndarray:
    """16-bit samples, of which Pillow would keep the upper half."""
    with path.open("rb") as file:
        reader = png.Reader(file=file)
        try:
            reader.preamble()
            reader.sbit = None  # what it says of the sensor's depth would shift the samples
            width, height, rows, layout = reader.asDirect()
            samples = np.empty((height, width * layout["planes"]), np.uint16)
            for number, row in enumerate(rows):
                samples[number] = row
        except png.Error as error:
            raise UnreadablePhotograph(f"truncated or damaged ({error})") from error
    if number + 1 < height:
        raise UnreadablePhotograph(f"truncated or damaged ({number + 1} of {height} rows)")
    return samples.reshape(height, width, -1)


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Undo what EXIF says of how the camera was held; see the tag's table, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)
