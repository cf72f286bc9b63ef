"""The published IPT checkpoints, in and out: the only place that knows `head.<i>`.

Indices mean tasks only by an order that the files don't hold, and the three ×1 heads have equal
shapes: a wrong order loads without complaint. Whoever calls says the order.
"""
# T tasks, L tokens, D embedding

import math
import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.model_configs import COLOURS, IPTConfig, IPTSize, upsampling
from pipeline.models.hub import ModelFileError, faults_of
from pipeline.models.ipt import GREY_LEVELS, IPT, MEAN
from pipeline.tasks import PUBLISHED_ORDER, TASKS

# Shapes don't tell how many heads attention has; all published models have the paper's.
PUBLISHED_ATTENTION_HEADS = 12

QUERIES = "body.query_embed.weight"  # (T, L × D)
POSITION_INDICES = "body.position_encoding.position_ids"  # 0 to L − 1, (1, L)

# What torch.load raises on files that are damaged or no checkpoints.
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict of a published .pt file; code in the file is never run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ModelFileError(
            f"{path}: not a readable checkpoint of tensors only "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'empty'})"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in state.items()
    ):
        raise ModelFileError(f"{path}: not a state dict of names and tensors")
    return state


def from_published(
    state: Mapping[str, Tensor],
    tasks: Sequence[str] = PUBLISHED_ORDER,
    *,
    attention_heads: int = PUBLISHED_ATTENTION_HEADS,
    origin: str = "checkpoint",
) -> IPT:
    """The model of a published state dict, whose index i is `tasks[i]`.

    A fine-tuned checkpoint has one head: give its one task. For one task of a six-task
    checkpoint, take `task_subset` of the result.
    """
    try:
        config = infer_config(state, tasks, attention_heads=attention_heads)
        model = IPT(config)
    except ValueError as error:
        raise ModelFileError(f"{origin}: {error}") from error
    expected = {name: tuple(each.shape) for name, each in to_published(model).items()}
    faults = faults_of(expected, state)
    faults += [
        f"{name} is of {each.dtype}"
        for name, each in state.items()
        if name != POSITION_INDICES and not each.is_floating_point()
    ]
    if not faults:
        faults = _constant_faults(state, config)
    if faults:
        raise ModelFileError(f"{origin}: does not fit this published IPT: {'; '.join(faults)}")
    queries = state[QUERIES].unflatten(1, (config.size.tokens, config.size.embedding))
    ours = {f"body.queries.{task}": queries[i] for i, task in enumerate(tasks)}
    for name, published in _names(config):
        ours[name] = state[published]
    model.load_state_dict(ours)
    return model.eval()


def to_published(model: IPT) -> dict[str, Tensor]:
    """The state dict that the official code loads; index i is the model's i-th task."""
    config, ours = model.config, model.state_dict()
    state = {published: ours[name] for name, published in _names(config)}
    state[QUERIES] = torch.stack([ours[f"body.queries.{task}"].flatten() for task in config.scales])
    device = state[QUERIES].device
    return state | {name: each.to(device) for name, each in _constants(config.size).items()}


def infer_config(
    state: Mapping[str, Tensor], tasks: Sequence[str], *, attention_heads: int
) -> IPTConfig:
    """The config whose model has the shapes of `state`; ValueError where no IPT has them."""
    heads = _indices(state, "head.")
    if heads != list(range(len(tasks))):
        raise ValueError(
            f"has heads {heads}, but {len(tasks)} tasks were named ({', '.join(tasks)}); "
            "name the task of each head, in order"
        )
    features = _shape(state, "head.0.0.weight", 4)[0]
    tokens, embedding = _shape(state, "body.position_encoding.pe.weight", 2)
    token_size, side = math.isqrt(embedding // features), math.isqrt(tokens)
    if token_size**2 * features != embedding or side**2 != tokens:
        raise ValueError(
            f"{features} features, {tokens} tokens of {embedding}: no square patch has these"
        )
    size = IPTSize(
        features=features,
        encoder_layers=_layers(state, "body.encoder.layers."),
        decoder_layers=_layers(state, "body.decoder.layers."),
        attention_heads=attention_heads,
        patch_size=side * token_size,
        token_size=token_size,
        mlp_ratio=_shape(state, "body.mlp_head.0.weight", 2)[0] // embedding,
    )
    scales = {task: _scale(state, i, features) for i, task in enumerate(tasks)}
    if len(scales) != len(tasks):
        raise ValueError(f"a task is named twice: {', '.join(tasks)}")
    for task, scale in scales.items():
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        if TASKS[task].scale != scale:
            raise ValueError(
                f"the tail named {task} upsamples by {scale}, not by {TASKS[task].scale}; "
                "check the order of the tasks"
            )
    return IPTConfig(size=size, scales=scales)


def _scale(state: Mapping[str, Tensor], index: int, features: int) -> int:
    if f"tail.{index}.0.0.weight" not in state:
        return 1
    if f"tail.{index}.0.2.weight" in state:
        return 4
    return math.isqrt(_shape(state, f"tail.{index}.0.0.weight", 4)[0] // features)


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name} is missing: not a published IPT")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, not {dimensions} dimensions")
    return shape


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    layers = _indices(state, prefix)
    if not layers:
        raise ValueError(f"{prefix}0 is missing: not a published IPT")
    return len(layers)


def _indices(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The numbers that follow `prefix` in the names of `state`."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return sorted(int(number) for number in numbers if number.isdecimal())


def _names(config: IPTConfig) -> Iterator[tuple[str, str]]:
    """Our name and the published one, for every parameter but the queries."""
    for i, (task, scale) in enumerate(config.scales.items()):
        head = f"heads.{task}"
        yield from _affine(f"{head}.first", f"head.{i}.0")
        for block in range(2):
            ours, published = f"{head}.blocks.{block}", f"head.{i}.{block + 1}.body"
            yield from _affine(f"{ours}.first", f"{published}.0")
            yield from _affine(f"{ours}.second", f"{published}.2")
        for step in range(len(upsampling(scale))):
            # A pixel shuffle stands after each convolution.
            yield from _affine(f"tails.{task}.upsample.{step}", f"tail.{i}.0.{2 * step}")
        yield from _affine(f"tails.{task}.last", f"tail.{i}.1")
    yield "body.positions", "body.position_encoding.pe.weight"
    yield from _affine("body.linear_encoding", "body.linear_encoding")
    yield from _affine("body.mlp_head.expand", "body.mlp_head.0")
    yield from _affine("body.mlp_head.contract", "body.mlp_head.3")
    for layer in range(config.size.encoder_layers):
        ours, published = f"body.encoder.{layer}", f"body.encoder.layers.{layer}"
        yield from _attention(f"{ours}.attention", f"{published}.self_attn")
        yield from _affine(f"{ours}.attention_norm", f"{published}.norm1")
        yield from _affine(f"{ours}.feed_forward_norm", f"{published}.norm2")
        yield from _feed_forward(ours, published)
    for layer in range(config.size.decoder_layers):
        ours, published = f"body.decoder.{layer}", f"body.decoder.layers.{layer}"
        yield from _attention(f"{ours}.self_attention", f"{published}.self_attn")
        yield from _attention(f"{ours}.cross_attention", f"{published}.multihead_attn")
        yield from _affine(f"{ours}.self_attention_norm", f"{published}.norm1")
        yield from _affine(f"{ours}.cross_attention_norm", f"{published}.norm2")
        yield from _affine(f"{ours}.feed_forward_norm", f"{published}.norm3")
        yield from _feed_forward(ours, published)


def _affine(ours: str, published: str) -> Iterator[tuple[str, str]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", f"{published}.{kind}"


def _attention(ours: str, published: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.projection", f"{published}.in_proj_weight"
    yield f"{ours}.output.weight", f"{published}.out_proj.weight"


def _feed_forward(ours: str, published: str) -> Iterator[tuple[str, str]]:
    yield from _affine(f"{ours}.feed_forward.expand", f"{published}.linear1")
    yield from _affine(f"{ours}.feed_forward.contract", f"{published}.linear2")


def _constants(size: IPTSize) -> dict[str, Tensor]:
    """What the published files hold and this code computes: mean shifts and position indices."""
    mean = torch.tensor(MEAN, device="cpu") * GREY_LEVELS
    identity = torch.eye(COLOURS, device="cpu").view(COLOURS, COLOURS, 1, 1)
    return {
        "sub_mean.weight": identity,
        "sub_mean.bias": -mean,
        "add_mean.weight": identity,
        "add_mean.bias": mean,
        POSITION_INDICES: torch.arange(size.tokens, device="cpu").unsqueeze(0),
    }


def _constant_faults(state: Mapping[str, Tensor], config: IPTConfig) -> list[str]:
    return [
        f"{name} is {state[name].flatten().tolist()[:9]}, but this model computes it as "
        f"{constant.flatten().tolist()[:9]}"
        for name, constant in _constants(config.size).items()
        if not torch.allclose(state[name].double(), constant.double(), rtol=1e-6, atol=1e-6)
    ]
