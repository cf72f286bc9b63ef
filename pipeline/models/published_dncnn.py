"""The published DnCNNs: the author's MatConvNet files and the state dicts of KAIR and SaoYan.

All take grey or RGB images in [0, 1] and predict the noise. Each becomes the folded form.
"""
# F features

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.model_configs import COLOURS, DnCNNConfig
from pipeline.models.dncnn import EPSILON, DnCNN
from pipeline.models.hub import ModelFileError, faults_of
from pipeline.models.matconvnet import is_matconvnet, read_matconvnet
from pipeline.models.published import read_published

# `model` is KAIR's name, `dncnn` SaoYan's and that of the author's PyTorch code.
_PARAMETER = re.compile(r"((?:model|dncnn)\.)\d{1,3}\.\w+")
_MATCONVNET = "net.layers."
# SaoYan's have PyTorch's default; they alone have no bias.
_EPSILON_WITHOUT_BIAS = 1e-5


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The published names of a convolution's tensors and of those of its batch normalisation."""

    weight: str
    bias: str | None
    norm: tuple[str, str, str, str] | None  # scale, shift, mean and variance, each (F,)


def is_dncnn(state: Mapping[str, Tensor]) -> bool:
    """Whether any name is that of a published DnCNN's tensor."""
    return any(_PARAMETER.fullmatch(name) for name in state)


def read_published_dncnn(path: Path) -> DnCNN:
    """The model of a published file, folded, in evaluation mode; code in the file is never run."""
    if is_matconvnet(path):
        state = read_matconvnet(path, prefix=_MATCONVNET)
        return _model(state, _layers(state, _MATCONVNET), epsilon=0, origin=str(path))
    return from_published_dncnn(read_published(path), origin=str(path))


def from_published_dncnn(published: Mapping[str, Tensor], *, origin: str = "checkpoint") -> DnCNN:
    """The model of a published state dict, folded, in evaluation mode."""
    state = dict(published)
    match = next((match for match in map(_PARAMETER.fullmatch, state) if match), None)
    if match is None:
        raise ModelFileError(
            f"{origin}: not a published DnCNN, whose tensors are model.0.weight or dncnn.0.weight "
            f"and so on; this holds {', '.join(list(state)[:3]) or 'none'}"
        )
    layers = _layers(state, match[1])
    for layer in layers:
        if layer.norm:  # a counter of steps, which evaluation doesn't use and old files don't have
            state.pop(layer.norm[0].removesuffix("weight") + "num_batches_tracked", None)
    epsilon = EPSILON if any(layer.bias for layer in layers) else _EPSILON_WITHOUT_BIAS
    return _model(state, layers, epsilon=epsilon, origin=origin)


def _layers(state: Mapping[str, Tensor], prefix: str) -> list[_Layer]:
    """All layers of a whole file, by the numbers that this one's names hold.

    A number is that of a convolution, a normalisation or an activation in a `Sequential`.
    """
    matches = [re.fullmatch(re.escape(prefix) + r"(\d{1,3})\.\w+", name) for name in state]
    last = max((int(match[1]) for match in matches if match), default=0)
    is_normalised = any(name.endswith((".running_mean", ".running_var")) for name in state)
    step = 3 if is_normalised else 2
    inner = range(2, last, step)  # the last may be missing
    numbers = [0, *inner, 2 + step * len(inner)]
    have_bias = not is_normalised or any(f"{prefix}{n}.bias" in state for n in numbers[1:])
    layers = []
    for n in numbers:
        norm = f"{prefix}{n + 1}."
        layers.append(
            _Layer(
                weight=f"{prefix}{n}.weight",
                bias=f"{prefix}{n}.bias" if have_bias or f"{prefix}{n}.bias" in state else None,
                norm=(f"{norm}weight", f"{norm}bias", f"{norm}running_mean", f"{norm}running_var")
                if is_normalised and n in inner
                else None,
            )
        )
    return layers


def _model(
    state: Mapping[str, Tensor], layers: Sequence[_Layer], *, epsilon: float, origin: str
) -> DnCNN:
    config = _infer_config(state, layers, origin=origin)
    faults = faults_of(_expected(layers, config), state)
    if not faults:
        variances = [layer.norm[3] for layer in layers if layer.norm]
        faults = [
            f"{name} is not above 0"
            for name in variances
            if not bool((state[name] + epsilon > 0).all())
        ]
    if faults:
        raise ModelFileError(f"{origin}: does not fit this published DnCNN: {'; '.join(faults)}")
    names = ["first", *(f"inner.{i}" for i in range(config.depth - 2)), "last"]
    ours = {}
    for name, layer in zip(names, layers, strict=True):
        ours[f"{name}.weight"], ours[f"{name}.bias"] = _folded(state, layer, epsilon)
    model = DnCNN(config)
    model.load_state_dict(ours)
    return model.eval()


def _infer_config(
    state: Mapping[str, Tensor], layers: Sequence[_Layer], *, origin: str
) -> DnCNNConfig:
    first, last = (state.get(layers[i].weight, torch.empty(0)) for i in (0, -1))
    if first.ndim != 4 or 0 in first.shape or len(layers) < 3:
        name = layers[0].weight
        found = f"{name} has shape {tuple(first.shape)}" if name in state else f"{name} is missing"
        raise ModelFileError(
            f"{origin}: not a published DnCNN: {found}, and there are {len(layers)} convolutions, "
            "where a DnCNN has at least 3, the first (features, channels, 3, 3)"
        )
    features, channels = first.shape[:2]
    if last.ndim == 4 and 0 < len(last) < channels:
        raise ModelFileError(
            f"{origin}: takes {channels} channels and gives {len(last)}: it reads a noise map "
            "beside the image, as FDnCNN and FFDNet do; give a DnCNN, which needs none"
        )
    if channels not in (1, COLOURS):
        raise ModelFileError(f"{origin}: takes {channels} channels, where photographs have 1 or 3")
    return DnCNNConfig(depth=len(layers), features=features, channels=channels, batch_norm=False)


def _expected(layers: Sequence[_Layer], config: DnCNNConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the published file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(layers):
        inputs = config.channels if i == 0 else config.features
        outputs = config.channels if i == config.depth - 1 else config.features
        shapes[layer.weight] = (outputs, inputs, 3, 3)
        vectors = (*(layer.norm or ()), *([layer.bias] if layer.bias else []))
        shapes |= {name: (outputs,) for name in vectors}
    return shapes


def _folded(state: Mapping[str, Tensor], layer: _Layer, epsilon: float) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a layer, its normalisation folded into them in float64."""
    weight = state[layer.weight].double()
    bias = state[layer.bias].double() if layer.bias else weight.new_zeros(len(weight))
    if layer.norm is None:
        return weight, bias
    scale, shift, mean, variance = (state[name].double() for name in layer.norm)
    return fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, scale, shift)
