"""The published IPT checkpoints, in and out."""
# T tasks, L tokens, D embedding

import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.model_configs import IPTConfig
from pipeline.models.hub import ModelFileError, faults_of, read_weights
from pipeline.models.ipt import IPT
from pipeline.models.published_layout import (
    POSITION_INDICES,
    QUERIES,
    ContradictionError,
    constants_of,
    infer_config,
    published_names,
    tail_scales,
)
from pipeline.tasks import PUBLISHED_ORDER

# Shapes don't tell how many heads attention has; all published models have the paper's.
PUBLISHED_ATTENTION_HEADS = 12

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
    ArithmeticError,
    MemoryError,
)


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict of a published file, .pt or safetensors; code in the file is never run.

    It may be wrapped, as in `{"state_dict": ..., "epoch": ...}`, if nothing else in the file could
    be meant, and the `module.` that DataParallel puts before every name is left out.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    if not start:
        raise ModelFileError(f"{path}: is empty; fetch it again")
    # A safetensors file begins with the 8 bytes of a length and a JSON object.
    content = read_weights(path) if start[8:] == b"{" else _read_tensors(path)
    state = _state_dict(path, content)
    for name, each in state.items():
        if each.layout != torch.strided or each.is_nested or each.is_meta or each.is_quantized:
            raise ModelFileError(
                f"{path}: {name} is sparse, nested, quantised or without values; save it dense"
            )
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): each for name, each in state.items()}
    return state


def _read_tensors(path: Path) -> object:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what ends in an error here
            return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed:
            fault = f"holds {needed[1]}, which only running code makes"
        elif "TorchScript" in str(error):
            fault = "holds the code of TorchScript"
        else:
            fault = "is damaged, or was not written by torch.save"
        raise ModelFileError(
            f"{path}: not a readable checkpoint of tensors only: it {fault}; no code in it was "
            "run, and torch.save(model.state_dict(), file) writes one that can be read"
        ) from error


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, dict):
        if _is_state_dict(content):
            return content
        inner = {name: each for name, each in content.items() if _is_state_dict(each)}
        if len(inner) > 1:
            raise ModelFileError(
                f"{path}: holds several state dicts ({', '.join(map(str, inner))}); "
                "save the one that is meant by itself"
            )
        if inner and not any(isinstance(each, Tensor) for each in content.values()):
            return next(iter(inner.values()))
    raise ModelFileError(f"{path}: not a state dict of names and tensors")


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def from_published(
    state: Mapping[str, Tensor],
    tasks: Sequence[str] = PUBLISHED_ORDER,
    *,
    attention_heads: int = PUBLISHED_ATTENTION_HEADS,
    origin: str = "checkpoint",
) -> IPT:
    """The model of a published state dict, whose index i is `tasks[i]`, in float32.

    A fine-tuned checkpoint has one head: give its one task. For one task of a six-task
    checkpoint, take `task_subset` of the result.
    """
    try:
        config = infer_config(state, tasks, attention_heads=attention_heads)
        model = IPT(config)
    except ValueError as error:
        kind = ContradictionError if isinstance(error, ContradictionError) else ModelFileError
        raise kind(f"{origin}: {error}") from error
    expected = {name: tuple(each.shape) for name, each in to_published(model).items()}
    faults = faults_of(expected, state, integers=(POSITION_INDICES,))
    if not faults:
        faults = _constant_faults(state, config)
    if faults:
        message = f"{origin}: does not fit this published IPT: {'; '.join(faults)}"
        if tail_scales(state) != tuple(config.scales.values()):
            raise ContradictionError(
                f"{message}; the tails upsample by {tail_scales(state)}, {', '.join(tasks)} by "
                f"{tuple(config.scales.values())}: check the order of the tasks"
            )
        raise ModelFileError(message)
    queries = state[QUERIES].unflatten(1, (config.size.tokens, config.size.embedding))
    ours = {f"body.queries.{task}": queries[i] for i, task in enumerate(tasks)}
    for name, published in published_names(config):
        ours[name] = state[published]
    model.load_state_dict(ours)
    return model.eval()


def to_published(model: IPT) -> dict[str, Tensor]:
    """The state dict that the official code loads; index i is the model's i-th task."""
    config, ours = model.config, model.state_dict()
    state = {published: ours[name] for name, published in published_names(config)}
    state[QUERIES] = torch.stack([ours[f"body.queries.{task}"].flatten() for task in config.scales])
    device = state[QUERIES].device
    return state | {name: each.to(device) for name, each in constants_of(config.size).items()}


def _constant_faults(state: Mapping[str, Tensor], config: IPTConfig) -> list[str]:
    def differs(name: str, constant: Tensor) -> bool:
        held = state[name]
        # A checkpoint in half precision holds them rounded.
        tolerance = max(1e-6, torch.finfo(held.dtype).eps) if held.is_floating_point() else 0.0
        return not torch.allclose(held.double(), constant.double(), rtol=tolerance, atol=tolerance)

    return [
        f"{name} is {state[name].flatten().tolist()[:9]}, but this model computes it as "
        f"{constant.flatten().tolist()[:9]}"
        for name, constant in constants_of(config.size).items()
        if differs(name, constant)
    ]
