"""The DnCNNs that MatConvNet saved as MATLAB 7.3 files, which are HDF5."""
# F features

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.models.hub import ModelFileError

if TYPE_CHECKING:
    import h5py
    import numpy as np

_MATLAB, _MATLAB_7_3 = b"MATLAB ", b"MATLAB 7.3 "
# A DagNN names layers by class; it adds the input at the end and keeps its loss, as a SimpleNN may.
_KINDS = {
    "dagnn.Conv": "conv",
    "dagnn.BatchNorm": "bnorm",
    "dagnn.ReLU": "relu",
    "dagnn.Sum": "sum",
    "dagnn.Loss": "loss",
}
_DNCNN = re.compile(r"conv relu ((conv relu )+|(conv bnorm relu )+)conv( sum)?( loss)?")
_SETTINGS = {"conv": {"pad": 1, "stride": 1, "dilate": 1}, "relu": {"leak": 0}}
# How many axes an array has, in the order of a layer's cell.
_ARRAYS = {"conv": {"weight": 4, "bias": 1}, "bnorm": {"weight": 1, "bias": 1, "moments": 2}}
# What h5py raises on files that are damaged or hold something else.
_DAMAGED = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError)
# A damaged array may claim any size; the largest of a DnCNN has 64 × 64 × 3 × 3 values.
_MOST_VALUES = 2**24


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One layer: its kind, what it is set to, and its tensors in PyTorch's order."""

    kind: str
    settings: dict[str, list[float]]
    tensors: dict[str, Tensor]


def is_matconvnet(path: Path) -> bool:
    """Whether the file begins as those that MATLAB writes; one that can't be read doesn't."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MATLAB)) == _MATLAB
    except OSError:
        return False


def read_matconvnet(path: Path, *, prefix: str) -> dict[str, Tensor]:
    """The tensors of a DnCNN, named after `prefix` as a `Sequential` of its layers names them.

    MatConvNet keeps a deviation that holds ε; "running_var" is its square with its sign, to be
    taken without ε.
    """
    blocks = _read_blocks(path)
    kinds = [each.kind for each in blocks]
    if kinds[:1] == ["concat"]:
        raise ModelFileError(
            f"{path}: an FDnCNN, which reads a noise map beside the image; give a DnCNN, which "
            "needs none"
        )
    if not _DNCNN.fullmatch(" ".join(kinds)):
        raise ModelFileError(
            f"{path}: not a DnCNN, which is conv relu, conv relu or conv bnorm relu repeated, "
            f"conv; its layers are {' '.join(kinds[:20]) or 'none'}"
        )
    state: dict[str, Tensor] = {}
    for i, block in enumerate(blocks):
        for name, values in block.settings.items():
            expected = _SETTINGS[block.kind][name]
            if any(value != expected for value in values):
                raise ModelFileError(
                    f"{path}: not a DnCNN: its layer {i + 1}, {block.kind}, has {name} {values}, "
                    f"not {expected}"
                )
        # What is added to the image is the noise with its sign turned.
        sign = -1 if kinds[i + 1 : i + 2] == ["sum"] else 1
        state |= {f"{prefix}{i}.{name}": sign * each for name, each in block.tensors.items()}
    return state


def _read_blocks(path: Path) -> list[_Block]:
    try:
        import h5py
    except ImportError as error:
        raise ModelFileError(
            f"{path}: reading MATLAB files needs h5py; pip install 'ipt-pretrain[matconvnet]'"
        ) from error
    with path.open("rb") as file:
        if file.read(len(_MATLAB_7_3)) != _MATLAB_7_3:
            raise ModelFileError(
                f"{path}: an older MATLAB file; load it there and save it with -v7.3"
            )
    try:
        with h5py.File(path) as file:
            layers = file["net/layers"]
            is_dag = isinstance(layers, h5py.Group)
            return list(_dag_blocks(file) if is_dag else _simple_blocks(file, layers))
    except _DAMAGED as error:
        raise ModelFileError(
            f"{path}: not a readable MatConvNet network ({type(error).__name__}: {error})"
        ) from error


def _simple_blocks(file: "h5py.File", layers: "h5py.Dataset") -> Iterator[_Block]:
    for layer in _cell(file, layers):
        kind = _text(layer["type"])
        yield _block(kind, layer, _cell(file, layer["weights"]) if kind in _ARRAYS else [])


def _dag_blocks(file: "h5py.File") -> Iterator[_Block]:
    layers, parameters = file["net/layers"], file["net/params"]
    names = [_text(each) for each in _cell(file, parameters["name"])]
    values = dict(zip(names, _cell(file, parameters["value"]), strict=True))
    columns = (_cell(file, layers[name]) for name in ("type", "block", "params"))
    for kind, settings, parameter_names in zip(*columns, strict=True):
        arrays = [values[_text(name)] for name in _cell(file, parameter_names)]
        yield _block(_KINDS.get(_text(kind), _text(kind)), settings, arrays)


def _block(kind: str, settings: "h5py.Group", arrays: "list[h5py.Dataset]") -> _Block:
    axes = _ARRAYS.get(kind, {})
    if len(arrays) > len(axes):
        raise ValueError(f"{kind} with {len(arrays)} arrays")
    # An empty array is left out, as missing; whoever fills a model says so.
    filled = [(name, each) for name, each in zip(axes, arrays, strict=False) if not _empty(each)]
    tensors = {name: _tensor(each, axes=axes[name]) for name, each in filled}
    if "moments" in tensors:
        tensors["running_mean"], deviation = tensors.pop("moments").double()  # (2, F)
        tensors["running_var"] = deviation * deviation.abs()
    return _Block(
        kind=kind,
        settings={
            name: _values(settings[name]).flatten().tolist()
            for name in _SETTINGS.get(kind, {})
            if name in settings
        },
        tensors=tensors,
    )


def _cell(file: "h5py.File", cell: "h5py.Dataset") -> "list[h5py.Dataset | h5py.Group]":
    """What the references of a MATLAB cell array point to."""
    return [] if _empty(cell) else [file[each] for each in _values(cell).flatten()]


def _values(array: "h5py.Dataset") -> "np.ndarray":
    if array.size > _MOST_VALUES:
        raise ValueError(f"an array of {array.size} values")
    return array[()]


def _empty(array: "h5py.Dataset") -> bool:
    """MATLAB writes an empty array as its shape, and marks it."""
    return bool(array.attrs.get("MATLAB_empty", False))


def _text(characters: "h5py.Dataset") -> str:
    return "".join(map(chr, _values(characters).flatten()))


def _tensor(array: "h5py.Dataset", *, axes: int) -> Tensor:
    """HDF5 has MATLAB's axes in reverse, without those of length 1 at MATLAB's end."""
    values = torch.from_numpy(_values(array))
    if axes == 1 and values.numel() == max(values.shape):
        return values.flatten()
    values = values[(None,) * (axes - values.ndim)]
    return values.mT if axes == 4 else values  # a kernel's height before its width
