import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from dncnn_samples import check_model, named_state, published_network
from torch import Tensor, nn

from pipeline.models.hub import ModelFileError
from pipeline.models.published_dncnn import is_dncnn, read_published_dncnn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("prefix", "network"),
    [
        ("model.", {"channels": 3, "depth": 6}),
        ("model.", {"norm": 1e-4}),
        ("module.dncnn.", {"norm": 1e-5, "bias": "none"}),
        ("dncnn.", {"norm": 1e-4, "bias": "first"}),
    ],
    ids=["kair", "kair-unmerged", "saoyan", "author-torch"],
)
def test_state_dicts_give_what_their_networks_give(
    prefix: str, network: Mapping, tmp_path: Path
) -> None:
    layers = published_network(**network)
    path = tmp_path / "net.pth"
    torch.save(named_state(layers, prefix), path)

    check_model(path, layers)


def test_counters_of_newer_files_are_left_out(tmp_path: Path) -> None:
    layers = published_network(norm=1e-5, bias="none")
    state = {f"module.dncnn.{name}": each for name, each in layers.state_dict().items()}
    assert "module.dncnn.3.num_batches_tracked" in state
    torch.save(state, tmp_path / "net.pth")

    check_model(tmp_path / "net.pth", layers)


def test_dncnns_are_told_by_their_names() -> None:
    assert is_dncnn(named_state(published_network(), "model."))
    assert is_dncnn({"dncnn.47.weight": torch.empty(0)})
    assert not is_dncnn({"head.0.0.weight": torch.empty(0), "model.head.0": torch.empty(0)})


def _without(*names: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: [state.pop(f"dncnn.{name}") for name in names]


def _with(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({f"dncnn.{name}": tensor})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("5.weight"), "dncnn.5.weight is missing"),
        (_without("11.weight"), "dncnn.11.weight is missing"),
        (_without("9.running_var"), "dncnn.9.running_var is missing"),
        (_without("0.weight"), "dncnn.0.weight is missing"),
        (_with("1.weight", torch.ones(3)), "dncnn.1.weight is unexpected"),
        (_with("5.bias", torch.ones(5)), "bias is missing"),
        (_with("5.weight", torch.ones(5, 4, 3, 3)), "dncnn.5.weight has shape (5, 4, 3, 3)"),
        (_with("8.weight", torch.ones(5, 5, 5, 5)), "dncnn.8.weight has shape (5, 5, 5, 5)"),
        (_with("6.bias", torch.full((5,), torch.nan)), "dncnn.6.bias holds NaN or infinity"),
        (_with("6.running_var", -torch.ones(5)), "dncnn.6.running_var is not above 0"),
        (_with("3.weight", torch.ones(5, dtype=torch.int64)), "dncnn.3.weight is of torch.int64"),
        (_with("0.weight", torch.ones(5, 2, 3, 3)), "takes 2 channels and gives 1"),
    ],
)
def test_faults_are_named(
    damage: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    state = named_state(published_network(norm=1e-4, bias="first"), "dncnn.")
    damage(state)
    path = tmp_path / "net.pth"
    torch.save(state, path)

    with pytest.raises(ModelFileError, match=re.escape(message)) as error:
        read_published_dncnn(path)

    assert str(error.value).startswith(f"{path}: ")


class _Module(nn.Module):
    """What a pickle of a whole model names, and only code can make."""


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(_Module(), path)
    with pytest.raises(ModelFileError, match=r"model\.pth: .*_Module"):
        read_published_dncnn(path)
    torch.save({"head.0.0.weight": torch.ones(2)}, path)
    with pytest.raises(ModelFileError, match=r"not a published DnCNN.*head\.0\.0\.weight"):
        read_published_dncnn(path)
    sizes = ((4, 2, 3, 3), (4, 4, 3, 3), (2, 4, 3, 3))
    torch.save({f"model.{2 * i}.weight": torch.ones(size) for i, size in enumerate(sizes)}, path)
    with pytest.raises(ModelFileError, match="takes 2 channels, where photographs have 1 or 3"):
        read_published_dncnn(path)
    torch.save({"model.0.weight": torch.ones(4, 1, 3, 3)}, path)
    with pytest.raises(ModelFileError, match="at least 3"):
        read_published_dncnn(path)
    path.write_bytes(pickle.dumps({"a": 1})[:-4])
    with pytest.raises(ModelFileError, match=r"model\.pth"):
        read_published_dncnn(path)
    with pytest.raises(ModelFileError, match="absent"):
        read_published_dncnn(tmp_path / "absent.pth")
