"""Whole images by a model: in tiles that are put together, or in windows with a margin.

An image is read, and its restoration is made, in bands of rows from top to bottom: beside what the
caller holds, memory grows with the image's width, never with its height.
"""
# N batch, C channels, H W height and width, P patch size, s scale

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.tiling import OVERLAP, Axis, Tiling, tile_weights, tiled_axis

Model = Callable[[Tensor], Tensor]
BATCH = 32  # tiles at a time


@dataclass(frozen=True, kw_only=True)
class Rows:
    """An image (C, H, W) of which a few rows are read at a time."""

    channels: int
    height: int
    width: int
    read: Callable[[int, int], Tensor]  # (top, bottom) to floats in [0, 1], (C, bottom − top, W)


def rows_of_tensor(image: Tensor) -> Rows:
    channels, height, width = image.shape
    return Rows(
        channels=channels,
        height=height,
        width=width,
        read=lambda top, bottom: image[:, top:bottom],
    )


def rows_of_pixels(pixels: np.ndarray) -> Rows:
    """The rows of (H, W, C) uint8 or uint16; only those that are read become floats."""
    height, width, channels = pixels.shape
    white = np.iinfo(pixels.dtype).max

    def read(top: int, bottom: int) -> Tensor:
        rows = pixels[top:bottom].transpose(2, 0, 1).astype(np.float32, order="C")
        return torch.from_numpy(rows).div_(white)

    return Rows(channels=channels, height=height, width=width, read=read)


def restore(
    model: Model,
    image: Tensor,
    *,
    scale: int,
    patch_size: int,
    tiling: Tiling = "overlap",
    batch: int = BATCH,
    overlap: int | None = None,
) -> Tensor:
    """Restore an image (C, H, W) or (1, C, H, W) of any size to s times that size.

    All else is as `restored_bands` has it, whose bands this puts together.
    """
    if image.ndim not in (3, 4) or (image.ndim == 4 and len(image) != 1) or 0 in image.shape:
        raise ValueError(f"an image of shape {tuple(image.shape)}; expected one (C, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"an image of {image.dtype}; expected floats in [0, 1]")
    bands = restored_bands(
        model,
        rows_of_tensor(image.reshape(image.shape[-3:])),
        scale=scale,
        patch_size=patch_size,
        tiling=tiling,
        batch=batch,
        overlap=overlap,
    )
    whole = torch.cat(list(bands), dim=1)
    return whole.reshape(*image.shape[:-2], *whole.shape[1:])


@torch.no_grad()
def restored_bands(
    model: Model,
    image: Rows,
    *,
    scale: int,
    patch_size: int,
    tiling: Tiling = "overlap",
    batch: int = BATCH,
    overlap: int | None = None,
) -> Iterator[Tensor]:
    """Yield an image of any size restored to s times that size, in bands (C, rows, sW).

    `model` restores (N, C, P, P) to (N, C, sP, sP); every batch is full but the last. "overlap"
    fades tiles into each other over `overlap` pixels (10, or all but one of a smaller patch);
    "official" takes every pixel from where the published evaluation takes it, at five to ten
    times the cost. Images smaller than a patch are mirrored up to its size. Results are moved to
    the image's device; where the model runs is the caller's matter.
    """
    if batch < 1 or scale < 1:
        raise ValueError(f"batch {batch}, scale {scale}: both start at 1")
    if overlap is None:
        overlap = min(OVERLAP, patch_size - 1)
    rows, columns = (
        tiled_axis(
            max(length, patch_size), tiling=tiling, patch=patch_size, scale=scale, overlap=overlap
        )
        for length in (image.height, image.width)
    )
    tiles = _tiles(image, rows, columns, patch_size)
    ends = (*(start * scale for start in rows.starts[1:]), image.height * scale)
    width = max(image.width, patch_size) * scale
    first = 0  # row of the restored image that `restored` begins with
    restored: Tensor | None = None
    for chosen in iter(lambda: list(islice(tiles, batch)), []):
        results = _run(model, torch.stack([tile for *_, tile in chosen]), scale)
        last_row, last_column, _ = chosen[-1]
        needed = (rows.starts[last_row] + patch_size) * scale - first
        if restored is None:
            restored = results.new_zeros(results.shape[1], needed, width)
        else:
            restored = F.pad(restored, (0, 0, 0, needed - restored.shape[1]))
        for (i, j, _), result in zip(chosen, results, strict=True):
            top, left = rows.starts[i] * scale - first, columns.starts[j] * scale
            weights = tile_weights(rows, columns, (i, j)).to(result)
            restored[:, top : top + len(weights), left : left + len(weights)] += result * weights
        # No later tile touches what lies above the next one.
        is_row_done = last_column == len(columns.starts) - 1
        done = ends[last_row] if is_row_done else rows.starts[last_row] * scale
        if done > first:
            yield restored[:, : done - first, : image.width * scale]
            restored = restored[:, done - first :]  # what was yielded goes when it is padded
            first = done


@torch.no_grad()
def convolved_bands(model: Model, image: Rows, *, radius: int, side: int = 512) -> Iterator[Tensor]:
    """Yield an image of any size restored by a convolutional model, in bands (C, rows, W).

    `model` keeps the size of (1, C, h, w), and no pixel of its result depends on another more than
    `radius` away. It sees windows of `side` pixels with that margin, which is cut off again, so
    that the result is the whole image's.
    """
    for top in range(0, image.height, side):
        bottom = min(top + side, image.height)
        above = max(0, top - radius)
        strip = image.read(above, min(bottom + radius, image.height))
        windows = []
        for left in range(0, image.width, side):
            right = min(left + side, image.width)
            before = max(0, left - radius)
            window = model(strip[None, :, :, before : right + radius])[0]
            windows.append(window[:, top - above : bottom - above, left - before : right - before])
        yield torch.cat(windows, dim=2)


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


def _tiles(image: Rows, rows: Axis, columns: Axis, patch: int) -> Iterator[tuple[int, int, Tensor]]:
    """Every tile (C, P, P) with its row and column of tiles, one row of them after the other."""
    for i, top in enumerate(rows.starts):
        strip = _mirrored(image.read(top, min(top + patch, image.height)), patch)
        for j, left in enumerate(columns.starts):
            yield i, j, strip[:, :, left : left + patch]


def _run(model: Model, tiles: Tensor, scale: int) -> Tensor:
    count, channels, side, _ = tiles.shape
    results = model(tiles)
    if results.shape != (count, channels, side * scale, side * scale):
        raise ValueError(
            f"the model made {tuple(results.shape)} of {tuple(tiles.shape)}; "
            f"expected patches of {side * scale} pixels, for scale {scale}"
        )
    return results.to(tiles)


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
