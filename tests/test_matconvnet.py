"""MATLAB files as MatConvNet's author published them, written small and read back."""

import contextlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from dncnn_samples import check_model, published_network
from torch import nn

from pipeline.models.hub import ModelFileError
from pipeline.models.published_dncnn import is_matconvnet, read_published_dncnn

h5py = pytest.importorskip("h5py")

HEADER = b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(512)
TEXT = {nn.Conv2d: "conv", nn.BatchNorm2d: "bnorm", nn.ReLU: "relu"}
DAG = {"conv": "dagnn.Conv", "bnorm": "dagnn.BatchNorm", "relu": "dagnn.ReLU"}
# A kind, what it is set to, and its arrays with MATLAB's axes.
Layer = tuple[str, dict[str, float], list[np.ndarray]]


def _layers(network: nn.Sequential) -> list[Layer]:
    return [
        (TEXT[type(each)], {"leak": 0} if isinstance(each, nn.ReLU) else {}, _arrays(each))
        for each in network
    ]


def _arrays(layer: nn.Module) -> list[np.ndarray]:
    if isinstance(layer, nn.Conv2d):
        assert layer.bias is not None
        kernel = layer.weight.detach().permute(2, 3, 1, 0)  # height, width, inputs, outputs
        return [kernel.numpy(), layer.bias.detach()[:, None].numpy()]
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_var is not None
        deviation = (layer.running_var.double() + layer.eps).sqrt().float()
        moments = torch.stack([layer.running_mean, deviation], dim=1)
        pair = [layer.weight.detach()[:, None].numpy(), layer.bias.detach()[:, None].numpy()]
        return [*pair, moments.numpy()]
    return []


class _Writer:
    """Writes MATLAB values into a file: axes in reverse, trailing ones dropped, cells as refs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = h5py.File(path, "w", userblock_size=512)
        self.references = self.file.create_group("#refs#")

    def close(self) -> None:
        self.file.close()
        with self.path.open("r+b") as file:
            file.write(HEADER)

    def array(self, group, name: str, values: np.ndarray):
        if not values.size:
            dataset = group.create_dataset(name, data=np.array(values.shape, np.uint64))
            dataset.attrs["MATLAB_empty"] = np.uint8(1)
            return dataset
        while values.ndim > 2 and values.shape[-1] == 1:
            values = values[..., 0]
        return group.create_dataset(name, data=values.T)

    def text(self, group, name: str, text: str):
        return self.array(group, name, np.array([[ord(each) for each in text]], np.uint16))

    def cell(self, group, name: str, values: Sequence):
        """Of arrays, texts and, where it is a dict of numbers, structures."""
        if not values:
            return self.array(group, name, np.empty((0, 0)))
        found = []
        for value in values:
            key = str(len(self.references))
            if isinstance(value, str):
                found.append(self.text(self.references, key, value).ref)
            elif isinstance(value, dict):
                structure = self.references.create_group(key)
                for field, number in value.items():
                    self.array(structure, field, np.array([[float(number)]]))
                found.append(structure.ref)
            else:
                found.append(self.array(self.references, key, value).ref)
        data = np.array(found, dtype=h5py.ref_dtype)[:, None]
        return group.create_dataset(name, data=data, dtype=h5py.ref_dtype)


def _write_simple(path: Path, layers: Sequence[Layer]) -> None:
    writer = _Writer(path)
    cell = writer.cell(writer.file.create_group("net"), "layers", [each[1] for each in layers])
    for reference, (kind, _, arrays) in zip(cell[()].flatten(), layers, strict=True):
        layer = writer.file[reference]
        writer.text(layer, "type", kind)
        if kind != "loss":
            writer.cell(layer, "weights", arrays)
    writer.close()


def _write_dag(path: Path, layers: Sequence[Layer]) -> None:
    writer = _Writer(path)
    network = writer.file.create_group("net")
    names = [
        [f"{kind}{i}_{k}" for k in range(len(each))] for i, (kind, _, each) in enumerate(layers)
    ]
    group = network.create_group("layers")
    writer.cell(group, "type", [DAG.get(kind, kind) for kind, _, _ in layers])
    writer.cell(group, "block", [settings for _, settings, _ in layers])
    cells = []
    for i, each in enumerate(names):
        cells.append(writer.cell(writer.references, f"params{i}", each).ref)
    group.create_dataset("params", data=np.array(cells, h5py.ref_dtype)[:, None])
    group = network.create_group("params")
    writer.cell(group, "name", [name for each in names for name in each])
    writer.cell(group, "value", [array for _, _, arrays in layers for array in arrays])
    writer.close()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_merged_files_give_what_their_networks_give(channels: int, tmp_path: Path) -> None:
    network = published_network(channels=channels)
    path = tmp_path / "sigma=25.mat"
    _write_simple(path, _layers(network))

    assert is_matconvnet(path)
    check_model(path, network)


def test_moments_are_means_and_deviations(tmp_path: Path) -> None:
    network = published_network(norm=1e-5)
    path = tmp_path / "sigma=25_Bnorm.mat"
    _write_simple(path, [*_layers(network), ("loss", {}, [])])

    check_model(path, network)


def test_dag_files_add_what_the_network_gives(tmp_path: Path) -> None:
    network = published_network(norm=1e-5)
    path = tmp_path / "DnCNN-epoch-50.mat"
    _write_dag(path, [*_layers(network), ("dagnn.Sum", {}, []), ("dagnn.Loss", {}, [])])

    check_model(path, network, sign=1)


def _damaged(layers: list[Layer], damage: str) -> list[Layer]:
    kind, settings, arrays = layers[3]  # bnorm
    kernel, bias = layers[5][2]
    changed: dict[str, tuple[int, Layer]] = {
        "concat": (0, ("concat", {}, [])),
        "kind": (1, ("sigmoid", {}, [])),
        "dilated": (5, ("conv", {"dilate": 2}, [kernel, bias])),
        "leaky": (4, ("relu", {"leak": 0.1}, [])),
        "no bias": (5, ("conv", {}, [kernel, np.empty((0, 0), np.float32)])),
        "kernel": (5, ("conv", {}, [kernel[:, :, 1:], bias])),
        "bias": (5, ("conv", {}, [kernel, bias[1:]])),
        "nan": (5, ("conv", {}, [kernel, bias * np.nan])),
        "integers": (5, ("conv", {}, [kernel.astype(np.int32), bias])),
        "more": (5, ("conv", {}, [kernel, bias, bias])),
        "moments": (3, (kind, settings, [*arrays[:2], arrays[2][1:]])),
        "transposed": (3, (kind, settings, [*arrays[:2], arrays[2].T])),
        "deviation": (3, (kind, settings, [*arrays[:2], arrays[2] * [1, -1]])),
    }
    place, layer = changed[damage]
    return [layer if i == place else each for i, each in enumerate(layers)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("concat", "an FDnCNN, which reads a noise map"),
        ("kind", "its layers are conv sigmoid"),
        ("dilated", r"layer 6, conv, has dilate \[2.0\], not 1"),
        ("leaky", r"layer 5, relu, has leak \[0.1\], not 0"),
        ("no bias", r"net\.layers\.5\.bias is missing"),
        ("kernel", r"net\.layers\.5\.weight has shape \(5, 4, 3, 3\)"),
        ("bias", r"net\.layers\.5\.bias has shape \(4,\)"),
        ("nan", r"net\.layers\.5\.bias holds NaN"),
        ("integers", r"net\.layers\.5\.weight is of torch\.int32"),
        ("more", "not a readable MatConvNet network .*conv with 3 arrays"),
        ("moments", r"net\.layers\.3\..*running_mean.* has shape \(4,\)"),
        ("transposed", "not a readable MatConvNet network"),
        ("deviation", r"net\.layers\.3\.running_var is not above 0"),
    ],
)
def test_faults_are_named(damage: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.mat"
    _write_simple(path, _damaged(_layers(published_network(norm=1e-5)), damage))

    with pytest.raises(ModelFileError, match=message) as error:
        read_published_dncnn(path)

    assert str(error.value).startswith(f"{path}: ")


def test_other_matlab_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(512))
    with pytest.raises(ModelFileError, match=r"model\.mat: an older MATLAB file.*-v7\.3"):
        read_published_dncnn(path)
    writer = _Writer(path)
    writer.array(writer.file, "image", np.ones((3, 3)))
    writer.close()
    with pytest.raises(ModelFileError, match="not a readable MatConvNet network"):
        read_published_dncnn(path)
    assert not is_matconvnet(tmp_path / "absent.mat")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.mat"
    _write_simple(path, _layers(published_network()))
    monkeypatch.setitem(sys.modules, "h5py", None)

    with pytest.raises(ModelFileError, match=r"pip install 'ipt-pretrain\[matconvnet\]'"):
        read_published_dncnn(path)


def test_damaged_files_are_named_whatever_h5py_raises(tmp_path: Path) -> None:
    path = tmp_path / "model.mat"
    _write_simple(path, _layers(published_network(norm=1e-5)))
    whole = path.read_bytes()
    draws = random.Random(0)

    for round_ in range(120):
        kept = len(whole) if round_ % 3 else draws.randrange(512, len(whole))
        damaged = bytearray(whole[:kept])
        for _ in range(draws.randrange(1, 5)):
            damaged[draws.randrange(len(HEADER), len(whole)) % kept] = draws.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ModelFileError):  # or only a number was hit
            read_published_dncnn(path)
