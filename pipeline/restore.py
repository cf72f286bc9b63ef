"""Whole images by a model of fixed patches: cut into tiles, restored, and put together.

Along each axis the tiles' weights sum to one at every pixel; a tile's weight in the image is the
product of both.
"""
# N batch, C channels, H W height and width, P patch size, s scale, q P / 4

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Tiling = Literal["overlap", "official"]
Model = Callable[[Tensor], Tensor]
OVERLAP = 10  # pixels, as the paper's text has it: a stride of 38


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Tiles along one axis: where they start, and what share of each restored pixel is theirs."""

    starts: tuple[int, ...]  # pixels of the input
    weights: Tensor  # (tiles, P × s)
    # Those in the first q × s pixels of the other axis, where they differ.
    weights_at_edge: Tensor | None = None


@torch.no_grad()
def restore(
    model: Model,
    image: Tensor,
    *,
    scale: int,
    patch_size: int,
    tiling: Tiling = "overlap",
    batch: int = 64,
    overlap: int | None = None,
) -> Tensor:
    """Restore an image (C, H, W) or (1, C, H, W) of any size to s times that size.

    `model` restores (N, C, P, P) to (N, C, sP, sP). "overlap" fades tiles into each other over
    `overlap` pixels (10, or all but one of a smaller patch); "official" takes every pixel from
    where the published evaluation takes it, at eight times the cost. Images smaller than a patch
    are mirrored up to its size. Results are moved to the image's device; where the model runs is
    the caller's matter.
    """
    if image.ndim not in (3, 4) or (image.ndim == 4 and len(image) != 1) or 0 in image.shape:
        raise ValueError(f"an image of shape {tuple(image.shape)}; expected one (C, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"an image of {image.dtype}; expected floats in [0, 1]")
    if batch < 1 or scale < 1:
        raise ValueError(f"batch {batch}, scale {scale}: both start at 1")
    if overlap is None:
        overlap = min(OVERLAP, patch_size - 1)
    channels, height, width = image.shape[-3:]
    whole = _mirrored(image.reshape(channels, height, width), patch_size)
    rows, columns = (
        _axis(length, tiling=tiling, patch=patch_size, scale=scale, overlap=overlap)
        for length in whole.shape[1:]
    )
    places = [(i, j) for i in range(len(rows.starts)) for j in range(len(columns.starts))]
    side = patch_size * scale
    restored = whole.new_zeros(channels, whole.shape[1] * scale, whole.shape[2] * scale)
    for first in range(0, len(places), batch):
        chosen = places[first : first + batch]
        corners = [(rows.starts[i], columns.starts[j]) for i, j in chosen]
        tiles = torch.stack(
            [whole[:, top : top + patch_size, left : left + patch_size] for top, left in corners]
        )
        results = model(tiles)
        if results.shape != (len(chosen), channels, side, side):
            raise ValueError(
                f"the model made {tuple(results.shape)} of {tuple(tiles.shape)}; "
                f"expected patches of {side} pixels, for scale {scale}"
            )
        for place, corner, result in zip(chosen, corners, results.to(restored), strict=True):
            top, left = (start * scale for start in corner)
            weights = _weights(rows, columns, place).to(restored)
            restored[:, top : top + side, left : left + side] += result * weights
    return restored[:, : height * scale, : width * scale].reshape(
        *image.shape[:-2], height * scale, width * scale
    )


def self_ensemble(model: Model) -> Model:
    """The mean over the eight rotations and reflections of the input, each undone after.

    Wraps a model of images or patches (N, C, H, W); patches must be square for a fixed-size model.
    """

    def averaged(x: Tensor) -> Tensor:
        total = None
        for transposed in (False, True):
            for flips in ((), (-1,), (-2,), (-2, -1)):
                turned = x.flip(flips) if flips else x
                result = model(turned.mT if transposed else turned)
                result = result.mT if transposed else result
                result = result.flip(flips) if flips else result
                total = result if total is None else total + result
        assert total is not None
        return total / 8

    return averaged


def _mirrored(image: Tensor, patch: int) -> Tensor:
    """The image (C, H, W), continued to the right and below to at least one patch.

    It is reflected again and again, so that one pixel is enough.
    """
    for dimension in (1, 2):
        length = image.shape[dimension]
        if length >= patch:
            continue
        period = max(1, 2 * (length - 1))
        index = torch.arange(patch, device=image.device) % period
        index = torch.where(index < length, index, period - index)
        image = image.index_select(dimension, index)
    return image


def _weights(rows: Axis, columns: Axis, place: tuple[int, int]) -> Tensor:
    """The share of a tile in each of its restored pixels, (P × s, P × s)."""
    i, j = place
    weights = rows.weights[i, :, None] * columns.weights[j]
    if i == 0 and columns.weights_at_edge is not None:
        edge = weights.shape[0] // 4
        weights[:edge] = rows.weights[i, :edge, None] * columns.weights_at_edge[j]
    return weights


def _axis(length: int, *, tiling: Tiling, patch: int, scale: int, overlap: int) -> Axis:
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
