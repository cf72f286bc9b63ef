"""Small published checkpoints, and the command that imports them."""

from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.ipt import IPT
from pipeline.tasks import TASKS

SIZE = IPTSize(features=4, encoder_layers=2, decoder_layers=2, attention_heads=12, patch_size=12)
IMAGE = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def small_ipt(*tasks: str, size: IPTSize = SIZE) -> IPT:
    torch.manual_seed(0)
    return IPT(IPTConfig(size=size, scales={task: TASKS[task].scale for task in tasks})).eval()


def saved(content: object, folder: Path) -> Path:
    path = folder / "IPT_pretrain.pt"
    torch.save(content, path)
    return path


def import_weights(*arguments: object) -> int:
    return main(["import-weights", *map(str, arguments)])


def refused(
    capsys: pytest.CaptureFixture[str], file: Path, *options: str, code: int = 1, out: str = "new"
) -> str:
    """The one sentence of an import that must fail, and that it wrote nothing."""
    before = sorted(file.parent.rglob("*"))

    assert import_weights(file, "--out", file.parent / out, *options) == code

    assert sorted(file.parent.rglob("*")) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err
