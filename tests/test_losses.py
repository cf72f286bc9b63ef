import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.losses import half_squared_error, l1, patch_contrast, supcon


def _orthogonal(images: int, tokens: int) -> Tensor:
    count = images * tokens
    return torch.eye(count).view(images, tokens, count)


def _direct_supcon(tokens: Tensor, temperature: float) -> Tensor:
    _, count, width = tokens.shape
    z = tokens.reshape(-1, width)
    z = z / z.norm(dim=1, keepdim=True)
    total = z.new_zeros(())
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        log_sum = torch.stack([z[i] @ z[a] / temperature for a in others]).exp().sum().log()
        positives = [a for a in others if a // count == i // count]
        total -= sum(z[i] @ z[p] / temperature - log_sum for p in positives) / len(positives)
    return total / len(z)


def _direct_patch_contrast(tokens: Tensor) -> Tensor:
    images, count, _ = tokens.shape
    f = tokens / tokens.norm(dim=2, keepdim=True)
    total = f.new_zeros(())
    for j in range(images):
        for one in range(count):
            for two in range(count):
                others = torch.stack([f[j, one] @ f[k, two] for k in range(images) if k != j])
                total -= f[j, one] @ f[j, two] - others.exp().sum().log()
    return total / (images * count**2)


@pytest.mark.parametrize(("images", "expected"), [(2, 6.236), (8, 7.624)])
def test_supcon_of_unrelated_tokens(images: int, expected: float) -> None:
    loss = supcon(_orthogonal(images, 256)).item()

    assert loss == pytest.approx(math.log(images * 256 - 1), abs=1e-5)
    assert loss == pytest.approx(expected, abs=5e-4)


def test_supcon_has_a_floor() -> None:
    direction = torch.randn(1, 1, 576)
    tokens = torch.cat([direction, -direction]).expand(2, 256, 576)

    assert supcon(tokens).item() == pytest.approx(math.log(255), abs=1e-4)
    assert math.log(255) == pytest.approx(5.5413, abs=1e-4)


@pytest.mark.parametrize("images", [2, 6])
def test_patch_contrast_of_unrelated_tokens(images: int) -> None:
    """ln(B − 1), less the 1/N that a token's likeness to itself gives."""
    loss = patch_contrast(_orthogonal(images, 64)).item()

    assert loss == pytest.approx(math.log(images - 1) - 1 / 64, abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 40, 60, 2**22])
def test_losses_equal_the_direct_formulas(at_once: int) -> None:
    tokens = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    for fast, direct in (
        (supcon(tokens, 0.5, similarities_at_once=at_once), _direct_supcon(tokens, 0.5)),
        (patch_contrast(tokens, similarities_at_once=at_once), _direct_patch_contrast(tokens)),
    ):
        torch.testing.assert_close(fast, direct, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(fast, tokens)
        (expected,) = torch.autograd.grad(direct, tokens)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", [supcon, patch_contrast])
def test_chunks_bound_what_is_in_memory(loss) -> None:
    tokens = torch.randn(4, 64, 8, requires_grad=True)
    largest = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            largest.extend(each.numel() for each in tree_leaves(result) if isinstance(each, Tensor))
            return result

    with Largest():
        loss(tokens, similarities_at_once=4096).backward()

    assert max(largest) == 4096  # of 256² = 65,536


@pytest.mark.parametrize("loss", [supcon, patch_contrast])
def test_float32_under_autocast_and_from_bfloat16(loss) -> None:
    tokens = torch.randn(2, 32, 16)
    expected = loss(tokens)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(tokens).equal(expected)
    reduced = loss(tokens.bfloat16())
    assert reduced.dtype == torch.float32
    assert reduced.equal(loss(tokens.bfloat16().float()))


def test_losses_are_finite_where_tokens_agree() -> None:
    tokens = torch.ones(2, 16, 8, requires_grad=True)

    loss = supcon(tokens) + patch_contrast(tokens)
    loss.backward()

    assert loss.item() == pytest.approx(math.log(31), abs=1e-5)  # the paper's form gives 0
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


def test_groups_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="one image has no others"):
        patch_contrast(torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match="one token has no positives"):
        supcon(torch.randn(2, 1, 8))
    assert supcon(torch.randn(1, 4, 8)).isfinite()


def test_pixel_losses_have_the_stated_scales() -> None:
    clean = torch.zeros(2, 3, 4, 4)
    restored = torch.full_like(clean, 0.1)

    assert l1(restored, clean).item() == pytest.approx(25.5)
    assert half_squared_error(restored, clean).item() == pytest.approx(0.5 * 48 * 0.01)
    for loss in (l1, half_squared_error):
        with pytest.raises(ValueError, match="differ in shape"):
            loss(restored, clean[:1])
