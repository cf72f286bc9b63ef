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
    """(corrupted, clean) pairs as one picture with transparent gaps: clean above, corrupted below.

    A smaller corrupted image is shown in blocks, as many pixels as it has. Large samples are cut
    to their middle.
    """
    columns = []
    for corrupted, clean in pairs:
        scale = clean.shape[0] // corrupted.shape[0]
        part = _middle(corrupted, TILE // scale)
        blocks = part.repeat(scale, axis=0).repeat(scale, axis=1)
        tiles = [_middle(clean, TILE // scale * scale), blocks]
        columns.append(_joined(tiles, axis=0))
    return _joined(columns, axis=1)


def _middle(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    return image[top : top + size, left : left + size]


def _joined(tiles: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    opaque = [
        tile
        if tile.shape[2] == 4
        else np.dstack([tile, np.full(tile.shape[:2], 255, dtype=np.uint8)])
        for tile in tiles
    ]
    shape = list(opaque[0].shape)
    shape[axis] = GAP
    gap = np.zeros(shape, dtype=np.uint8)
    between = [each for tile in opaque for each in (gap, tile)][1:]
    return np.concatenate(between, axis=axis)
