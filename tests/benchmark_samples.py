"""Folders of benchmarks: the shared ones where they are, and small ones made here."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shared_data import BENCHMARKS

torch.set_num_threads(1)  # more would wait for each other on a busy machine


def save(path: Path, *, seed: int = 0, height: int = 40, width: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_nearest(clean: Path, benchmark: Path) -> None:
    """A copy of `clean` as HR, and half of its pixels per side as the low-resolution image."""
    for folder, step in (("HR", 1), ("LR_bicubic/X2", 2)):
        (benchmark / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(clean).convert("RGB"))[::step, ::step]
        Image.fromarray(pixels).save(benchmark / folder / clean.name)


def some_of_rain100l(root: Path, *names: str) -> Path:
    """A folder of benchmarks with these pairs of Rain100L, and where they lie."""
    for kind in ("rainy", "clean"):
        (root / "Rain100L" / kind).mkdir(parents=True)
        for name in names:
            shutil.copy(BENCHMARKS / "Rain100L" / kind / name, root / "Rain100L" / kind / name)
    return root / "Rain100L"


def some_of_set12(root: Path, *names: str) -> Path:
    folder = root / "Set12"
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(BENCHMARKS / "Set12" / name, folder / name)
    return folder
