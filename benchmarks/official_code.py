"""The official code, from a checkout of huawei-noah/Pretrained-IPT, as it is."""

# N batch, H W height and width, s scale

import argparse
import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest import mock

import torch
from torch import Tensor, nn

from pipeline.model_configs import IPTSize
from pipeline.tasks import PUBLISHED_ORDER, TASKS

SIZES = {
    "paper": IPTSize(),
    "small": IPTSize(features=8, encoder_layers=2, decoder_layers=2, attention_heads=12),
}


class OfficialIPT(nn.Module):
    """Their six-task model, called as ours: (N, 3, H, W) in [0, 1], and the name of a task."""

    def __init__(self, checkout: Path, size: IPTSize) -> None:
        super().__init__()
        with _imported_from(checkout):
            code, arguments = importlib.import_module("model"), _arguments(size)
            nothing = SimpleNamespace(get_path=lambda *_: "", log_file=io.StringIO())
            with contextlib.redirect_stdout(io.StringIO()):
                self.whole: nn.Module = code.Model(arguments, nothing)

    @property
    def patchwise(self) -> nn.Module:
        """The model of patches, on 0..255; `whole` cuts images for it."""
        return cast(nn.Module, self.whole.model)

    @property
    def body(self) -> nn.Module:
        return cast(nn.Module, self.patchwise.body)

    def forward(self, x: Tensor, task: str) -> Tensor:
        cast(Callable[[int], None], self.patchwise.set_scale)(PUBLISHED_ORDER.index(task))
        restored: Tensor = self.patchwise(x * 255) / 255
        return restored

    @torch.no_grad()
    def restore(self, image: Tensor, task: str) -> Tensor:
        """Restore (1, 3, H, W) on the CPU by their tiling, 64 patches at a time."""
        with _without_gpu():
            restored: Tensor = self.whole.eval()(image * 255, PUBLISHED_ORDER.index(task)) / 255
        return restored


def check_checkout(path: Path) -> str | None:
    """Why `path` can't be used, in a sentence; None if it can."""
    if not all((path / part).is_file() for part in ("option.py", "model/ipt.py")):
        return (
            f"{path}: not a checkout of huawei-noah/Pretrained-IPT (no option.py, model/ipt.py); "
            "clone it and give its folder"
        )
    if importlib.util.find_spec("einops") is None:
        return "the official code imports einops, which isn't installed: pip install einops"
    return None


def _arguments(size: IPTSize) -> argparse.Namespace:
    """Their defaults, for all six tasks, at a size."""
    if size.encoder_layers != size.decoder_layers:
        raise ValueError("the official code has as many decoder layers as encoder layers")
    with mock.patch.object(sys, "argv", ["option.py"]):  # theirs are read on import
        defaults = vars(importlib.import_module("option").args)
    chosen = {
        "scale": [TASKS[task].scale for task in PUBLISHED_ORDER],
        "num_queries": len(PUBLISHED_ORDER),
        "cpu": True,
        "n_feats": size.features,
        "num_heads": size.attention_heads,
        "num_layers": size.encoder_layers,
        "patch_size": size.patch_size,
        "patch_dim": size.token_size,
    }
    return argparse.Namespace(**defaults | chosen)


@contextlib.contextmanager
def _imported_from(checkout: Path) -> Iterator[None]:
    with mock.patch.object(sys, "path", [os.fspath(checkout.resolve()), *sys.path]):
        yield


@contextlib.contextmanager
def _without_gpu() -> Iterator[None]:
    """Their tiling moves every batch to a GPU; without one, it stays and goes to the module."""
    with (
        mock.patch.object(Tensor, "cuda", lambda self: self),
        mock.patch.object(nn.parallel, "data_parallel", lambda module, x, _: module(x)),
    ):
        yield
