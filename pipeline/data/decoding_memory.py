"""How much memory decoding a photograph takes, as its header tells before it is decoded."""

import mmap

from PIL import ImageFile, JpegImagePlugin, TiffImagePlugin

# A worker may take 400 MiB, and has 55 when it begins; the rest is for its crops. 2**26 pixels fit
# as a JPEG of one scan (3 bytes a pixel, in CMYK 4); of what else there is, at most, in millions:
# 55.9 as a progressive JPEG with halved colours (6 bytes) and 37.2 with whole ones (9); 47.9 as
# RGB of PNG, TIFF and all that Pillow decodes, odd JPEGs too (4 bytes and, converted, 3); 20.6 as
# WEBP; 16.3 as JPEG 2000 in one tile. While it is decoded, the bytes of the file are there too; the
# corrupted version of a real pair has what its clean photograph leaves.
MOST_MEMORY = 320 * 2**20
# Bytes a pixel that decoders of Pillow's hold beside the pixels that they give; all of these are
# measured by benchmarks/decode_memory.py.
_BESIDE = {"WEBP": 12.25, "PPM": 7, "BMP": 2, "GIF": 2}
_BESIDE_A_COLOUR = {"JPEG2000": 5.5}
_RGB = 3
_AROUND = 2**24  # what decoders take whatever the size


def coefficient_bytes(image: ImageFile.ImageFile) -> float:
    """Bytes a pixel of the coefficients that libjpeg holds all at once, two bytes each, where the
    scans of a JPEG aren't complete one by one: a progressive one, or one with a scan a colour."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 0
    assert image.fp is not None  # at the first scan, whose third byte counts its colours
    colours = (image.fp.read(3) + bytes(3))[2]
    if not image.info.get("progressive") and colours >= image.layers:
        return 0
    sampled = [across * down for _, across, down, _ in image.layer]
    return 2 * sum(sampled) / (max(sampled) or 1)


def pillow_memory(image: ImageFile.ImageFile, file_bytes: int) -> int:
    """What Pillow takes for an image of which it has read the header, and its copy as RGB then."""
    held = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;") else 4)
    beside, kind = coefficient_bytes(image), image.format or ""
    if not (image.tile and image.tile[0][0] == "raw"):
        colours = len(image.getbands()) * (1.25 if held == 2 else 1)
        beside += _BESIDE.get(kind, 0) + _BESIDE_A_COLOUR.get(kind, 0) * colours
    pixels = image.width * image.height
    while_decoding = int(pixels * (held + beside)) + file_bytes + _strip_bytes(image)
    return max(while_decoding, pixels * (held + _RGB))


def _strip_bytes(image: ImageFile.ImageFile) -> int:
    """Of a TIFF: a strip or a tile, which may be the whole or larger, and the image, turned."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    tags, (width, height) = image.tag_v2, image.size
    turned = 4 * width * height if tags.get(274, 1) != 1 else 0
    if not image.use_load_libtiff:
        return turned
    strip = tags.get(322, width) * tags.get(323, min(tags.get(278, height), height))
    return turned + strip * tags.get(277, 1) * max(8, *tags.get(258, (8,))) // 8


def check_there(needed: int) -> None:
    """Raise MemoryError where so many bytes can't be had.

    Asked before decoding, as the decoders of damaged files and those that lack memory say the same.
    """
    try:
        mmap.mmap(-1, needed + _AROUND, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"{needed / 2**20:.0f} MiB can't be had") from error
