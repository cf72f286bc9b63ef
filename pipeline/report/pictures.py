"""Pictures for a self-contained page: where to look, and how to put them in."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 96  # pixels of a contact sheet's tile, at most
GAP = 4  # pixels between tiles


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def png_uri(picture: np.ndarray) -> str:
    """(H, W, 3 or 4) uint8 as a data URI, without loss."""
    return _uri(Image.fromarray(picture), "PNG", optimize=True)


def webp_uri(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 as a data URI, without loss: a fifth smaller than PNG, and sooner made."""
    return _uri(Image.fromarray(picture), "WEBP", lossless=True, method=2)


def thumbnail_uri(picture: np.ndarray, width: int) -> str:
    """A small version to find one's way by, as JPEG."""
    image = Image.fromarray(picture)
    height = max(1, round(image.height * width / image.width))
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    return _uri(small, "JPEG", quality=82)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def most_different(one: np.ndarray, other: np.ndarray, *, size: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the window of `size` (height, width) where two images differ most, squared.

    A window larger than the image starts at 0.
    """
    difference = ((one.astype(np.float64) - other) ** 2).sum(axis=2)
    height, width = (min(side, limit) for side, limit in zip(size, difference.shape, strict=True))
    table = np.pad(difference.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = (
        table[height:, width:]
        - table[:-height, width:]
        - table[height:, :-width]
        + table[:-height, :-width]
    )
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left)


def contact_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(corrupted, clean) squares, RGB or grey, as one picture, RGBA: clean above, corrupted below.

    A smaller corrupted image is shown in blocks, as many pixels as it has. Large samples are cut
    to their middle.
    """
    corrupted, clean = pairs[0]
    scale = clean.shape[0] // corrupted.shape[0]
    shown = min(corrupted.shape[0], TILE // scale)  # pixels of the corrupted image
    side = shown * scale
    pitch = side + GAP
    sheet = np.zeros((pitch + side, pitch * len(pairs) - GAP, 4), dtype=np.uint8)
    for number, (corrupted, clean) in enumerate(pairs):
        blocks = _middle(corrupted, shown).repeat(scale, axis=0).repeat(scale, axis=1)
        left = number * pitch
        for top, tile in ((0, _middle(clean, side)), (pitch, blocks)):
            sheet[top : top + side, left : left + side, :3] = tile
            sheet[top : top + side, left : left + side, 3] = 255
    return sheet


def _middle(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
