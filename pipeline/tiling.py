"""Where tiles lie along each axis of an image, and what share of each pixel is theirs.

Along each axis the tiles' weights sum to one at every pixel; a tile's weight in the image is the
product of both.
"""
# P patch size, s scale, q P / 4

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Tiling = Literal["overlap", "official"]
OVERLAP = 10  # pixels, as the paper's text has it: a stride of 38


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Tiles along one axis: where they start, and what share of each restored pixel is theirs."""

    starts: tuple[int, ...]  # pixels of the input
    weights: Tensor  # (tiles, P × s)
    # Those in the first q × s pixels of the other axis, where they differ.
    weights_at_edge: Tensor | None = None


def tile_weights(rows: Axis, columns: Axis, place: tuple[int, int]) -> Tensor:
    """The share of a tile in each of its restored pixels, (P × s, P × s)."""
    i, j = place
    weights = rows.weights[i, :, None] * columns.weights[j]
    if i == 0 and columns.weights_at_edge is not None:
        edge = weights.shape[0] // 4
        weights[:edge] = rows.weights[i, :edge, None] * columns.weights_at_edge[j]
    return weights


def tiled_axis(length: int, *, tiling: Tiling, patch: int, scale: int, overlap: int) -> Axis:
    if tiling == "official":
        if patch % 4:
            raise ValueError(f"patch_size {patch}: the official tiling needs a multiple of 4")
        return _official_axis(length, patch, scale)
    if not 0 <= overlap < patch:
        raise ValueError(f"overlap {overlap}: between 0 and patch_size − 1, {patch - 1}")
    return _overlap_axis(length, patch, scale, overlap)


def _overlap_axis(length: int, patch: int, scale: int, overlap: int) -> Axis:
    """Tiles that fade in and out over the overlap; the last one ends where the image does."""
    starts = (*range(0, length - patch, patch - overlap), length - patch)
    side, fade = patch * scale, max(1, overlap * scale)
    position = torch.arange(side, dtype=torch.float64) + 0.5
    from_end = torch.minimum(position, side - position)
    shape = torch.sin(from_end.div(fade).clamp(max=1) * (torch.pi / 2)).square()
    return Axis(starts=starts, weights=_shares(starts, shape.expand(len(starts), -1), scale))


def _shares(starts: tuple[int, ...], shapes: Tensor, scale: int) -> Tensor:
    """Scale the tiles' shapes (tiles, P × s) so that they sum to one at every pixel."""
    side = shapes.shape[1]
    total = shapes.new_zeros(starts[-1] * scale + side)
    for start, shape in zip(starts, shapes, strict=True):
        total[start * scale : start * scale + side] += shape
    return torch.stack(
        [
            shape / total[start * scale : start * scale + side]
            for start, shape in zip(starts, shapes, strict=True)
        ]
    )


def _official_axis(length: int, patch: int, scale: int) -> Axis:
    """The published evaluation's tiles: a grid of stride q, and one that ends where the image does.

    A grid tile counts with its central half; where two centres meet, their mean. The first tile
    also has the first q pixels. The last tile has the last of the image, alone.
    """
    q, side = patch // 4, patch * scale
    left_over = (length - patch) % q
    grid = tuple(range(0, length - patch + 1, q))
    starts = (*grid, length - patch)
    # From here on, the last tile alone.
    seam = (length - left_over) * scale - int((patch - left_over) / 2 * scale)
    centre = torch.zeros(side, dtype=torch.float64)
    centre[q * scale : side - q * scale] = 1
    shapes = centre.repeat(len(starts), 1)
    shapes[0, : q * scale] = 1
    pixels = torch.arange(side)
    for start, shape in zip(grid, shapes, strict=False):
        shape[pixels + start * scale >= seam] = 0
    shapes[-1] = (pixels + starts[-1] * scale >= seam).double()
    at_edge = shapes.clone()
    # In the first q rows, columns of the first tile are its own alone.
    at_edge[0] = (pixels < seam).double()
    for start, shape in zip(grid[1:], at_edge[1:-1], strict=True):
        shape[pixels + start * scale < side] = 0
    return Axis(
        starts=starts,
        weights=_shares(starts, shapes, scale),
        weights_at_edge=_shares(starts, at_edge, scale),
    )
