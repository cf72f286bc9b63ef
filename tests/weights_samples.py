"""Models that need no training, and `ipt evaluate` of them."""

import json
from pathlib import Path

import torch

from launch.__main__ import main
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT


def identity(folder: Path, *, channels: int = 3) -> Path:
    """A DnCNN that restores its input."""
    model = DnCNN(DnCNNConfig(depth=3, features=4, channels=channels))
    torch.nn.init.zeros_(model.last.weight)
    model.save_pretrained(folder)
    return folder


def small_ipt(folder: Path, **scales: int) -> Path:
    size = IPTSize(features=2, encoder_layers=1, decoder_layers=1, attention_heads=2)
    IPT(IPTConfig(size=size, scales=scales)).save_pretrained(folder)
    return folder


def evaluate(weights: Path, benchmarks: Path, out: Path, *options: str) -> tuple[int, dict]:
    """The exit code and the scores.json."""
    command = ["evaluate", "--weights", str(weights), "--benchmarks", str(benchmarks)]
    code = main([*command, "--out", str(out), "--device", "cpu", *options])
    return code, json.loads((out / "scores.json").read_text())
