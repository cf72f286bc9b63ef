from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.losses import half_squared_error
from pipeline.model_configs import DnCNNConfig
from pipeline.models.dncnn import DnCNN
from pipeline.models.hub import ModelFileError

CONFIG = DnCNNConfig(depth=4, features=6, channels=3)


def test_result_is_the_input_less_the_predicted_noise() -> None:
    model = DnCNN(CONFIG)
    x = torch.rand(2, 3, 11, 17)

    residual = x
    for i, layer in enumerate((model.first, *model.inner, model.last)):
        residual = layer(residual)
        if 0 < i < 3:
            residual = model.norms[i - 1](residual)
        if i < 3:
            residual = residual.relu()

    torch.testing.assert_close(model(x), x - residual)
    with torch.no_grad():
        model.last.weight.zero_()
    assert model(x).equal(x)


def test_layers_are_the_recipes() -> None:
    model = DnCNN(DnCNNConfig())
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]

    assert len(convolutions) == 17
    assert [each.bias is not None for each in (model.first, *model.inner, model.last)] == [
        True,
        *[False] * 16,
    ]
    assert len(norms) == 15
    assert {(each.eps, each.momentum) for each in norms} == {(1e-4, 0.1)}
    weight = model.inner[0].weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, 0.2**2 * torch.eye(64), rtol=0, atol=1e-6)


def test_batch_statistics_in_training_running_ones_in_evaluation() -> None:
    model = DnCNN(CONFIG)
    x = torch.rand(8, 3, 16, 16)

    model.train()
    trained = model(x)
    statistics = model.norms[0].running_mean.clone()
    assert statistics.abs().sum() > 0
    alone = model(x[:1])
    assert not alone.allclose(trained[:1], atol=1e-4)  # other images enter the statistics

    model.eval()
    statistics = model.norms[0].running_mean.clone()
    evaluated = model(x)
    assert not evaluated.allclose(trained, atol=1e-4)
    torch.testing.assert_close(model(x[:1]), evaluated[:1])
    assert model.norms[0].running_mean.equal(statistics)


def test_running_statistics_approach_those_of_the_data() -> None:
    model = DnCNN(CONFIG)
    x = torch.rand(8, 3, 16, 16)

    for _ in range(200):
        trained = model(x)

    # 0.9²⁰⁰ = 7e-10 of the start remains; the running variance is the unbiased one.
    torch.testing.assert_close(model.eval()(x), trained, rtol=1e-3, atol=1e-3)


def test_running_statistics_are_those_of_the_batches() -> None:
    model = DnCNN(CONFIG).double()
    batches = [torch.rand(4, 3, 9, 9, dtype=torch.float64) for _ in range(3)]

    for batch in batches:
        model(batch)

    mean, variance = torch.zeros(6).double(), torch.ones(6).double()
    for batch in batches:
        with torch.no_grad():
            normalised = model.inner[0](model.first(batch).relu())
        mean = 0.9 * mean + 0.1 * normalised.mean(dim=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * normalised.transpose(0, 1).flatten(1).var(dim=1)
    torch.testing.assert_close(model.norms[0].running_mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.norms[0].running_var, variance, rtol=1e-12, atol=0)


def test_learns_to_remove_noise() -> None:
    torch.manual_seed(0)
    model = DnCNN(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    clean = torch.full((4, 3, 16, 16), 0.5)
    for _ in range(120):
        loss = half_squared_error(model(clean + torch.randn_like(clean) * 0.1), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    noise_energy = 0.5 * 3 * 16 * 16 * 0.1**2
    assert loss.item() < 0.5 * noise_energy


def test_bfloat16_leaves_the_subtraction_in_float32() -> None:
    model = DnCNN(CONFIG, precision="bfloat16")
    x = torch.rand(2, 3, 9, 9)

    restored = model(x)

    assert restored.dtype == torch.float32
    with torch.no_grad():
        model.last.weight.zero_()
    assert model(x).equal(x)


def test_folder_round_trip_keeps_the_statistics(tmp_path: Path) -> None:
    model = DnCNN(CONFIG)
    model(torch.rand(4, 3, 8, 8))
    model.save_pretrained(tmp_path, model_card_kwargs={"tasks": ("denoise50",)})

    loaded = DnCNN.from_pretrained(tmp_path)

    assert loaded.config == CONFIG
    x = torch.rand(1, 3, 10, 7)
    assert loaded(x).equal(model.eval()(x))
    assert "Tasks: denoise50" in (tmp_path / "README.md").read_text()


def test_wrong_images_and_folders_are_refused(tmp_path: Path) -> None:
    model = DnCNN(CONFIG)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        model(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"uint8.*floats in \[0, 1\]"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "DnCNN", "depth": 2}')
    with pytest.raises(ModelFileError, match="depth"):
        DnCNN.from_pretrained(tmp_path)
