import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.restore import restore, self_ensemble
from pipeline.tiling import Tiling

TILINGS: tuple[Tiling, ...] = ("overlap", "official")


def _enlarged(x: Tensor, scale: int) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="nearest")


def _eight_bit(*shape: int) -> Tensor:
    """Values of which a float holds every quarter exactly."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator) / 256


@pytest.mark.parametrize("tiling", TILINGS)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    scale=st.integers(1, 4),
    batch=st.integers(1, 9),
)
@example(height=48, width=48, scale=2, batch=64)
@example(height=49, width=48, scale=1, batch=64)
@example(height=1, width=1, scale=4, batch=64)
@example(height=47, width=2, scale=3, batch=64)
@example(height=86, width=87, scale=1, batch=2)
@settings(max_examples=25, deadline=None)
def test_identity_reproduces_any_image(
    tiling: Tiling, height: int, width: int, scale: int, batch: int
) -> None:
    image = _eight_bit(3, height, width)

    restored = restore(
        lambda x: _enlarged(x, scale), image, scale=scale, patch_size=48, tiling=tiling, batch=batch
    )

    expected = _enlarged(image[None], scale)[0]
    if tiling == "official":  # its weights are 1, 1/2 and 1/4
        assert restored.equal(expected)
    else:
        torch.testing.assert_close(restored, expected, rtol=0, atol=3e-7)
    assert (restored * 256).round().equal(expected * 256)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("patch", [4, 12, 16, 48])
def test_every_pixels_weights_sum_to_one(tiling: Tiling, patch: int) -> None:
    for length in range(1, 3 * patch, 7):
        restored = restore(
            torch.ones_like,
            torch.zeros(1, length, 2 * patch + 1),
            scale=1,
            patch_size=patch,
            tiling=tiling,
        )
        torch.testing.assert_close(restored, torch.ones_like(restored), rtol=0, atol=3e-7)


def test_tiles_leave_no_seam() -> None:
    """Tiles of different brightness fade into each other, never by more than 0.16 a pixel."""
    image = torch.zeros(1, 130, 211)
    brightness = iter(torch.rand(100, generator=torch.Generator().manual_seed(0)).round())

    restored = restore(
        lambda x: torch.stack([torch.full_like(each, float(next(brightness))) for each in x]),
        image,
        scale=1,
        patch_size=48,
    )

    assert restored.min() < 0.1 < 0.9 < restored.max()
    for dimension in (1, 2):
        assert restored.diff(dim=dimension).abs().max() < 0.16


def test_official_tiling_takes_pixels_from_where_the_published_code_does() -> None:
    """A 61×61 image has grid tiles at 0 and 12 and the last ones at 13."""
    rows = torch.arange(61.0).expand(61, 61)

    def start(dimension: int) -> Tensor:
        def model(x: Tensor) -> Tensor:
            first = x.flatten(1).amin(1).view(-1, 1, 1, 1)
            return first.expand_as(x)

        image = rows if dimension == 1 else rows.T
        return restore(model, image[None], scale=1, patch_size=48, tiling="official")[0]

    # 12 left from the first tile; then centres, alone and in pairs; from 37 on the last tile.
    assert start(0)[:, 30].tolist() == [0] * 24 + [6] * 12 + [12] * 1 + [13] * 24
    assert start(1)[30].tolist() == [0] * 24 + [6] * 12 + [12] * 1 + [13] * 24
    # In the first 12 rows the first tile also has the columns up to its own end.
    assert start(1)[5].tolist() == [0] * 37 + [13] * 24


def test_self_ensemble_undoes_what_it_turns() -> None:
    image = _eight_bit(2, 3, 9, 14)
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return _enlarged(x, 2)

    restored = self_ensemble(model)(image)

    torch.testing.assert_close(restored, _enlarged(image, 2), rtol=0, atol=1e-7)
    assert len(seen) == 8
    square = [x if x.shape == image.shape else x.mT for x in seen]
    assert len({tuple(x.flatten().tolist()) for x in seen}) == 8
    assert all(x.shape == image.shape for x in square)


def test_self_ensemble_does_not_depend_on_orientation() -> None:
    kernel = torch.randn(3, 3, 3, 3, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, padding=1).relu()

    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    averaged = self_ensemble(model)

    turns = (
        lambda x: x.mT,
        lambda x: x.flip(-1),
        lambda x: x.flip(-2),
        lambda x: x.rot90(1, (-2, -1)),
    )
    for turn in turns:
        torch.testing.assert_close(averaged(turn(image)), turn(averaged(image)))


def test_batched_image_keeps_its_shape_and_no_gradient() -> None:
    weight = torch.ones(1, requires_grad=True)

    restored = restore(lambda x: x * weight, torch.rand(1, 3, 50, 60), scale=1, patch_size=48)

    assert restored.shape == (1, 3, 50, 60)
    assert not restored.requires_grad


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (torch.zeros(2, 3, 50, 50), {}, "expected one"),
        (torch.zeros(50, 50), {}, "expected one"),
        (torch.zeros(3, 0, 50), {}, "expected one"),
        (torch.zeros(3, 50, 50, dtype=torch.uint8), {}, "uint8"),
        (torch.zeros(3, 50, 50), {"scale": 2}, "expected patches of 96 pixels"),
        (torch.zeros(3, 50, 50), {"scale": 0}, "scale 0"),
        (torch.zeros(3, 50, 50), {"overlap": 48}, "overlap 48: between 0 and patch_size"),
        (torch.zeros(3, 50, 50), {"patch_size": 46, "tiling": "official"}, "multiple of 4"),
    ],
)
def test_wrong_arguments_are_refused(image: Tensor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restore(lambda x: x, image, **({"scale": 1, "patch_size": 48} | arguments))
