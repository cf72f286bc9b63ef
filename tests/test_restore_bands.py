"""Images restored a few rows at a time: equal to the whole, in memory that no height changes."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.restore import (
    Rows,
    convolved_bands,
    restore,
    restored_bands,
    rows_of_pixels,
    rows_of_tensor,
    self_ensemble,
)
from pipeline.tiling import Tiling

TILINGS: tuple[Tiling, ...] = ("overlap", "official")
RADIUS = 3


def _image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _uneven(x: Tensor, scale: int) -> Tensor:
    """A model whose result depends on where in the tile a pixel lies."""
    slope = torch.linspace(0, 1, x.shape[-1] * scale)
    return F.interpolate(x, scale_factor=scale) * slope + slope[:, None]


def _convolutions(radius: int = RADIUS) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(radius)]
    return nn.Sequential(*(each for layer in layers for each in (layer, nn.Tanh()))).double()


class _LargestTensor(TorchDispatchMode):
    """The most bytes that any one tensor took."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(each, Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return result


def _blank(height: int, width: int, read: list[int]) -> Rows:
    def rows(top: int, bottom: int) -> Tensor:
        read.append(bottom)
        return torch.zeros(1, bottom - top, width)

    return Rows(channels=1, height=height, width=width, read=rows)


def _bands(kind: str, image: Rows) -> Iterator[Tensor]:
    if kind == "convolved":
        return convolved_bands(lambda x: x * 2, image, radius=RADIUS, side=32)
    tiling: Tiling = "official" if kind == "official" else "overlap"
    return restored_bands(
        lambda x: _uneven(x, 2), image, scale=2, patch_size=12, tiling=tiling, batch=40
    )


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (3, 40), (12, 12), (13, 29), (40, 3), (61, 47)]
)
@pytest.mark.parametrize(("scale", "batch"), [(1, 4), (2, 1), (3, 1000)])
def test_bands_are_the_whole_bit_for_bit(
    tiling: Tiling, height: int, width: int, scale: int, batch: int
) -> None:
    image = _image(2, height, width)
    options = {"scale": scale, "patch_size": 12, "tiling": tiling}

    bands = list(
        restored_bands(lambda x: _uneven(x, scale), rows_of_tensor(image), batch=batch, **options)
    )
    # In one batch nothing is handed out before everything is summed up.
    whole = restore(lambda x: _uneven(x, scale), image, batch=10_000, **options)

    assert torch.cat(bands, dim=1).equal(whole)
    assert whole.shape == (2, height * scale, width * scale)
    assert all(band.shape[1] > 0 and band.shape[1] % scale == 0 for band in bands)
    if batch == 1 and height > 24:
        assert len(bands) > 3


@pytest.mark.parametrize("kind", ["overlap", "official", "convolved"])
def test_memory_does_not_grow_with_the_height(kind: str) -> None:
    largest = []
    for height in (70, 280):
        with _LargestTensor() as mode:
            assert sum(band.shape[1] for band in _bands(kind, _blank(height, 300, []))) >= height
        largest.append(mode.bytes)

    assert largest[0] == largest[1]


@pytest.mark.parametrize("kind", ["overlap", "official", "convolved"])
def test_rows_are_read_no_sooner_than_they_are_needed(kind: str) -> None:
    read: list[int] = []
    scale = 1 if kind == "convolved" else 2
    given = 0

    for band in _bands(kind, _blank(500, 60, read)):
        given += band.shape[1]
        # A window with its margin; or a tile, and what a batch reaches into the next rows.
        assert max(read) - given / scale <= 32 + RADIUS


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_become_floats_as_they_are_read(dtype: type) -> None:
    white = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, white, (9, 5, 3), dtype, endpoint=True)
    pixels[0, 0] = 0, white, white // 2

    rows = rows_of_pixels(pixels)

    assert (rows.channels, rows.height, rows.width) == (3, 9, 5)
    part = rows.read(2, 7)
    assert part.dtype == torch.float32
    expected = pixels[2:7].transpose(2, 0, 1).astype(np.float32) / np.float32(white)
    assert np.array_equal(part.numpy(), expected)
    assert rows.read(0, 1)[:, 0, 0].tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 50), (16, 16), (17, 33), (50, 2), (70, 45)]
)
def test_windows_equal_the_whole_image(height: int, width: int) -> None:
    model, image = _convolutions(), _image(2, height, width).double()

    with torch.no_grad():
        whole = model(image[None])[0]
    bands = list(convolved_bands(model, rows_of_tensor(image), radius=RADIUS, side=16))

    assert len(bands) == -(-height // 16)
    torch.testing.assert_close(torch.cat(bands, dim=1), whole, rtol=0, atol=1e-13)


def test_a_smaller_margin_would_show() -> None:
    model, image = _convolutions(), _image(2, 40, 40).double()

    with torch.no_grad():
        whole = model(image[None])[0]
    bands = convolved_bands(model, rows_of_tensor(image), radius=RADIUS - 1, side=16)

    assert (torch.cat(list(bands), dim=1) - whole).abs().max() > 1e-6


def test_the_ensemble_of_windows_is_that_of_the_whole_image() -> None:
    model, image = self_ensemble(_convolutions()), _image(2, 37, 21).double()

    with torch.no_grad():
        whole = model(image[None])[0]
    bands = convolved_bands(model, rows_of_tensor(image), radius=RADIUS, side=16)

    torch.testing.assert_close(torch.cat(list(bands), dim=1), whole, rtol=0, atol=1e-13)
