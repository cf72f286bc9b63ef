import pytest
import torch
from torch import Tensor

from pipeline.restore import restore
from pipeline.tiling import OVERLAP, Tiling, tiled_axis


@pytest.mark.parametrize(
    ("height", "width", "tiling", "rows", "columns"),
    [
        (321, 481, "overlap", 9, 13),
        (321, 481, "official", 24, 38),
        (1000, 1500, "overlap", 27, 40),
        (1000, 1500, "official", 81, 123),
        (48, 48, "overlap", 1, 1),
        (49, 86, "overlap", 2, 2),
        (49, 87, "overlap", 2, 3),
    ],
)
def test_number_of_tiles(height: int, width: int, tiling: Tiling, rows: int, columns: int) -> None:
    starts = [
        tiled_axis(length, tiling=tiling, patch=48, scale=1, overlap=OVERLAP).starts
        for length in (height, width)
    ]

    assert [len(each) for each in starts] == [rows, columns]
    if tiling == "overlap":  # with fewer tiles, neighbours would share less than the paper's 10
        for each, length in zip(starts, (height, width), strict=True):
            assert len(each) == 1 - (48 - length) // 38


def test_overlap_needs_at_most_an_eighth_of_the_official_tiles() -> None:
    """At 321×481 the published code runs its model on 972 patches: it takes strips at the border
    twice. Without that they are 912, and ours 1/7.8 of them; large images come to 1/(38/12)²."""
    assert 9 * 13 * 8 <= 972
    assert 27 * 40 * 8 <= 81 * 123

    counts = []
    for tiling in ("overlap", "official"):
        axis = tiled_axis(10_000, tiling=tiling, patch=48, scale=1, overlap=OVERLAP)
        counts.append(len(axis.starts) ** 2)
    assert counts[1] / counts[0] == pytest.approx((38 / 12) ** 2, rel=0.01)


@pytest.mark.parametrize(("tiling", "tiles"), [("overlap", 9 * 13), ("official", 24 * 38)])
def test_every_batch_is_full_but_the_last(tiling: Tiling, tiles: int) -> None:
    sizes: list[int] = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    restore(model, torch.zeros(3, 321, 481), scale=1, patch_size=48, tiling=tiling, batch=50)

    assert sum(sizes) == tiles
    assert set(sizes[:-1]) == {50}
