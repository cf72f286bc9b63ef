"""What is minimised, checked against sums written out, and where its gradients go."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ContrastiveConfig
from pipeline.losses import patch_contrast, supcon
from pipeline.training.objectives import DnCNNObjective, RestorationObjective, as_images


class Toy(nn.Module):
    """A tail on a body on images (N, 3, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 5, 3, padding=1)
        self.tails = nn.ModuleDict({task: nn.Conv2d(5, 3, 1) for task in ("sr2", "derain")})

    def forward_tasks(self, images: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        results = {}
        for task, x in images.items():
            features = self.body(x)
            results[task] = (self.tails[task](features), features.flatten(2).transpose(1, 2))
        return results


def _pair(images: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, images, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return pixels[0], pixels[1]


def test_as_images_divides_uint8_by_255_and_leaves_floats_even_outside_0_to_1() -> None:
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8)
    drawn = torch.tensor([-0.25, 1.5])

    assert torch.equal(as_images(bytes_), torch.tensor([0.0, 0.2, 1.0]))
    assert torch.equal(as_images(drawn), drawn)


def test_l1_is_on_0_to_255_and_averaged_over_tasks_not_images() -> None:
    model = Toy()
    batch = {"sr2": _pair(2, 1), "derain": _pair(6, 2)}

    parts = RestorationObjective(model)(batch)

    restored = {task: model.tails[task](model.body(x / 255)) for task, (x, _) in batch.items()}
    expected = {
        task: (restored[task] * 255 - clean.float()).abs().mean()
        for task, (_, clean) in batch.items()
    }
    torch.testing.assert_close(parts["l1/sr2"], expected["sr2"])
    torch.testing.assert_close(parts["l1/derain"], expected["derain"])
    torch.testing.assert_close(parts["loss"], (expected["sr2"] + expected["derain"]) / 2)
    assert parts["loss"].requires_grad
    assert not parts["l1/sr2"].requires_grad
    assert "contrastive" not in parts


@pytest.mark.parametrize(("form", "loss"), [("supcon", supcon), ("paper", patch_contrast)])
def test_contrastive_loss_is_the_mean_over_groups_of_consecutive_images(form, loss) -> None:
    model = Toy()
    batch = {"sr2": _pair(6, 1)}
    config = ContrastiveConfig(form=form, weight=0.1, images=3)

    parts = RestorationObjective(model, contrastive=config)(batch)

    tokens = model.forward_tasks({"sr2": as_images(batch["sr2"][0])})["sr2"][1]
    expected = (loss(tokens[:3]) + loss(tokens[3:])) / 2
    torch.testing.assert_close(parts["contrastive"], expected)
    torch.testing.assert_close(parts["loss"], parts["l1/sr2"] + 0.1 * expected)


def test_loss_of_a_batch_is_the_mean_of_its_micro_batches() -> None:
    model = Toy()
    objective = RestorationObjective(model, contrastive=ContrastiveConfig(images=2))
    corrupted, clean = _pair(8, 3)

    whole = objective({"sr2": (corrupted, clean)})
    halves = [objective({"sr2": (corrupted[k : k + 4], clean[k : k + 4])}) for k in (0, 4)]

    for name in whole:
        torch.testing.assert_close(whole[name], (halves[0][name] + halves[1][name]) / 2)


def test_l1_reaches_the_body_with_the_contrastive_loss_on() -> None:
    # The published training code bypassed the body here: L1 gave none of its tensors a gradient.
    model = Toy()
    batch = {"sr2": _pair(4, 1)}
    gradients = {}
    for weight in (0.0, 1e-12):
        model.zero_grad()
        config = ContrastiveConfig(weight=weight, images=2)
        RestorationObjective(model, contrastive=config)(batch)["loss"].backward()
        gradients[weight] = model.body.weight.grad.clone()

    assert gradients[0.0].abs().min() > 0
    torch.testing.assert_close(gradients[1e-12], gradients[0.0])


def test_images_that_are_no_whole_groups_are_refused() -> None:
    objective = RestorationObjective(Toy(), contrastive=ContrastiveConfig(images=4))

    with pytest.raises(ValueError, match="6 images of sr2 are not whole groups of 4"):
        objective({"sr2": _pair(6, 1)})


def test_dncnn_loss_is_half_the_squared_residual_error_per_image() -> None:
    model = nn.Conv2d(3, 3, 1)
    corrupted, clean = _pair(4, 5)

    parts = DnCNNObjective(model, statistics_batch=4)({"denoise30": (corrupted, clean)})

    error = model(corrupted / 255) - clean / 255
    torch.testing.assert_close(parts["loss"], (error**2).sum() / 4 / 2)
    assert torch.equal(parts["l2/denoise30"], parts["loss"].detach())


def test_batch_statistics_are_those_of_a_chunk_whatever_the_micro_batch() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    corrupted, clean = _pair(8, 6)

    whole = DnCNNObjective(models[0], statistics_batch=4)({"denoise30": (corrupted, clean)})
    objective = DnCNNObjective(models[1], statistics_batch=4)
    halves = [objective({"denoise30": (corrupted[k : k + 4], clean[k : k + 4])}) for k in (0, 4)]

    torch.testing.assert_close(whole["loss"], (halves[0]["loss"] + halves[1]["loss"]) / 2)
    for ours, theirs in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="statistics_batch"):
        objective({"denoise30": (corrupted[:6], clean[:6])})
