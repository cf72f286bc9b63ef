"""What the published IPT checkpoints hold: the only place that knows `head.<i>`.

Indices mean tasks only by an order that the files don't hold, and the three ×1 heads have equal
shapes: a wrong order loads without complaint. Whoever calls says the order.
"""
# T tasks, L tokens, D embedding

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.model_configs import COLOURS, IPTConfig, IPTSize, upsampling
from pipeline.models.hub import ModelFileError, first_names
from pipeline.models.ipt import GREY_LEVELS, MEAN
from pipeline.tasks import IPT_TASKS, TASKS

QUERIES = "body.query_embed.weight"  # (T, L × D)
POSITIONS = "body.position_encoding.pe.weight"  # (L, D)
POSITION_INDICES = "body.position_encoding.position_ids"  # 0 to L − 1, (1, L)
ENCODER, DECODER = "body.encoder.layers.", "body.decoder.layers."


class ContradictionError(ModelFileError):
    """What the caller says of a checkpoint is not what it holds."""


def infer_config(
    state: Mapping[str, Tensor], tasks: Sequence[str], *, attention_heads: int
) -> IPTConfig:
    """The config whose model has most of the shapes of `state`; ValueError where no IPT has."""
    heads = len(tail_scales(state))
    if heads != len(tasks):
        raise ContradictionError(
            f"has {heads} heads, but {len(tasks)} tasks were named ({_listed(tasks)}); "
            "name the task of each head, in order"
        )
    for task in tasks:
        if task not in IPT_TASKS:
            raise ContradictionError(f"unknown task {task!r}; known: {_listed(IPT_TASKS)}")
    if len(set(tasks)) < len(tasks):
        raise ContradictionError(f"a task is named twice: {_listed(tasks)}")
    features = _features(state)
    embedding = _width(
        state, "body.linear_encoding.bias", r"body\.(linear_encoding|.+\.norm\d)\..+"
    )
    hidden = _width(state, "body.mlp_head.0.bias", r"body\.(mlp_head\.0|.+\.linear1)\..+")
    holders = ((POSITIONS, embedding), (POSITION_INDICES, 1), (QUERIES, embedding * heads))
    tokens = _most(
        (state[name].numel() // width for name, width in holders if name in state), POSITIONS
    )
    token_size, side = math.isqrt(embedding // features), math.isqrt(tokens)
    if token_size**2 * features != embedding or side**2 != tokens:
        raise ValueError(
            f"{features} features, {tokens} tokens of {embedding}: no square patch has these"
        )
    if attention_heads < 1 or embedding % attention_heads:
        raise ContradictionError(
            f"attention_heads: {attention_heads} is no divisor of the embedding of {embedding}; "
            "give the number that the model was trained with"
        )
    size = IPTSize(
        features=features,
        encoder_layers=_layers(state, ENCODER),
        decoder_layers=_layers(state, DECODER),
        attention_heads=attention_heads,
        patch_size=side * token_size,
        token_size=token_size,
        mlp_ratio=max(1, hidden // embedding),
    )
    return IPTConfig(size=size, scales={task: TASKS[task].scale for task in tasks})


def tail_scales(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """By how much each tail upsamples, in order; ValueError where this is another model."""
    if not any(name.startswith((QUERIES, POSITIONS, ENCODER, DECODER)) for name in state):
        raise ValueError(f"another model, not a published IPT: it holds {first_names(state)}")
    features = _features(state)

    def scale(tail: int) -> int:
        steps = f"tail.{tail}.0."
        if not any(name.startswith(steps) for name in state):
            return 1
        if any(name.startswith(f"{steps}2.") for name in state):
            return 4
        return math.isqrt(_width(state, f"{steps}0.bias", rf"tail\.{tail}\.0\.0\..+") // features)

    return tuple(scale(i) for i in range(max(_count(state, "head."), _count(state, "tail."))))


def _features(state: Mapping[str, Tensor]) -> int:
    return _width(state, "head.0.0.bias", r"head\.\d+\.(0|\d\.body\.\d)\..+")


def _width(state: Mapping[str, Tensor], example: str, names: str) -> int:
    """The first dimension of the tensors like `example`, all that match the pattern `names`."""
    matching = (each for name, each in state.items() if re.fullmatch(names, name))
    return _most((each.shape[0] for each in matching if each.ndim), example)


def _most(lengths: Iterable[int], name: str) -> int:
    """What most tensors say: the others are faults, to be reported with the rest."""
    counts = Counter(length for length in lengths if length)
    if not counts:
        raise ValueError(f"{name} is missing, with all that tells its shape: no published IPT")
    return counts.most_common(1)[0][0]


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    layers = _count(state, prefix)
    if not layers:
        raise ValueError(f"{prefix}0 is missing: not a published IPT")
    return layers


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the highest number that follows `prefix` in the names of `state`."""
    parts = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    numbers = {int(part) for part in parts if part.isdecimal()}
    # More than the file has tensors is no count, but a fault in a name.
    return max((number + 1 for number in numbers if number < len(state)), default=0)


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))


def constants_of(size: IPTSize) -> dict[str, Tensor]:
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


def published_names(config: IPTConfig) -> Iterator[tuple[str, str]]:
    """Our name and the published one, for every parameter but the queries.

    The i-th task of the config is the index i.
    """
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
