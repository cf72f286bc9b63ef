import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model_configs import DnCNNConfig
from pipeline.models.dncnn import DnCNN, fold_batch_norm
from pipeline.models.hub import ModelFileError

CONFIG = DnCNNConfig(depth=5, features=6, channels=3)


@pytest.fixture
def trained() -> DnCNN:
    """With statistics and affine parameters far from where they start, still in training mode."""
    torch.manual_seed(0)
    model = DnCNN(CONFIG)
    for norm in model.norms:
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    for _ in range(50):
        model(torch.rand(4, 3, 12, 12) ** 2)
    return model


def test_folded_model_gives_the_same(trained: DnCNN) -> None:
    trained.double()
    x = torch.rand(2, 3, 11, 17, dtype=torch.float64)
    before = {name: each.clone() for name, each in trained.state_dict().items()}

    folded = fold_batch_norm(trained)

    assert not folded.training
    assert folded.config == DnCNNConfig(depth=5, features=6, channels=3, batch_norm=False)
    assert all(each.equal(before[name]) for name, each in trained.state_dict().items())
    torch.testing.assert_close(folded(x), trained.eval()(x), rtol=1e-12, atol=1e-12)
    assert not folded(x).allclose(trained.train()(x), atol=1e-2)  # by the batch's statistics


def test_folded_model_keeps_the_precision_and_is_folded_once(trained: DnCNN) -> None:
    trained.precision = "bfloat16"
    x = torch.rand(1, 3, 9, 9)

    folded = fold_batch_norm(trained)

    assert folded.precision == "bfloat16"
    assert folded.first.weight.dtype == torch.float32
    assert fold_batch_norm(folded) is folded
    torch.testing.assert_close(folded(x), trained.eval()(x), rtol=0, atol=0.05)


def test_folded_model_does_less(trained: DnCNN) -> None:
    x = torch.rand(1, 3, 9, 9)
    folded = fold_batch_norm(trained)

    whole, fewer = _operations(trained.eval(), x), _operations(folded, x)

    assert (whole["native_batch_norm"], fewer["native_batch_norm"]) == (3, 0)
    assert whole["convolution"] == fewer["convolution"] == 5
    assert not fewer - whole  # nothing stands in for them
    # Three norms of 6 scales and shifts go; the inner convolutions and the last get biases.
    difference = trained.config.parameters - folded.config.parameters
    assert difference == 3 * 2 * 6 - (3 * 6 + 3)
    assert not list(folded.buffers())


def test_folder_round_trip_of_a_folded_model(trained: DnCNN, tmp_path: Path) -> None:
    folded = fold_batch_norm(trained)
    x = torch.rand(1, 3, 10, 7)

    folded.save_pretrained(tmp_path)

    record = json.loads((tmp_path / "config.json").read_text())
    assert (record["architecture"], record["batch_norm"]) == ("DnCNN", False)
    assert f"Parameters: {folded.config.parameters:,}" in (tmp_path / "README.md").read_text()
    loaded = DnCNN.from_pretrained(tmp_path)
    assert loaded.config == folded.config
    assert loaded(x).equal(folded(x))


def test_config_of_before_folding_is_that_of_a_trained_model(
    trained: DnCNN, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["batch_norm"]
    path.write_text(json.dumps(record))

    loaded = DnCNN.from_pretrained(tmp_path)

    x = torch.rand(1, 3, 10, 7)
    assert loaded(x).equal(trained.eval()(x))
    path.write_text(json.dumps(record | {"batch_norm": False}))
    with pytest.raises(ModelFileError, match=r"last\.bias.* missing.*norms.* unexpected"):
        DnCNN.from_pretrained(tmp_path)


def _operations(model: DnCNN, x: Tensor) -> Counter[str]:
    """How often each operation of torch runs."""
    counts: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counts[function.overloadpacket.__name__] += 1
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Counting():
        model(x)
    return counts
