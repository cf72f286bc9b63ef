"""A bank of rain-streak layers on disk: rendered, or cut from streak images of one's own."""

import logging
import os
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from pipeline.artifacts import JSON, sync_folder
from pipeline.corruptions.keyed import generator
from pipeline.corruptions.rain import Preset, draw_streaks, render_layer
from pipeline.data.file_names import PHOTOGRAPH_SUFFIXES
from pipeline.data.source import (
    UnreadablePhotograph,
    read_photograph,
    readable,
)
from pipeline.graph import Progress

logger = logging.getLogger(__name__)

LAYERS_FILE = "layers.npy"
SMALLEST_SIDE = 48  # pixels: IPT's patch
LAYERS_PER_SYNC = 32
VISIBLE = 5  # levels above black from which a pixel counts as covered


class RainBankError(ValueError):
    """Streak images that can't be used; the message says why and what to do."""


def open_layers(folder: Path, *, held_out: bool) -> NDArray[np.uint8]:
    """The layers of a sealed bank, (n, size, size), that training draws from; or the last quarter,
    `held_out` for validation and evaluation: no model is tested on streaks that it has seen."""
    # The map without NumPy's class for it, whose every slice costs microseconds.
    layers = np.asarray(np.load(folder / LAYERS_FILE, mmap_mode="r"))
    kept = max(1, len(layers) // 4)
    return layers[-kept:] if held_out else layers[:-kept]


@dataclass(frozen=True, kw_only=True)
class RenderedBank:
    """Layers that are a pure function of the seed and their number."""

    count: int
    size: int
    preset: Preset
    seed: int

    def describe(self, number: int) -> JSON:
        return asdict(draw_streaks(self._generator(number), self.preset))

    def layer(self, number: int) -> NDArray[np.uint8]:
        """Layer `number`, (size, size)."""
        return render_layer(self._generator(number), self.size, self.preset)

    def _generator(self, number: int) -> np.random.Generator:
        return generator(self.seed, "rain-layers", number)


@dataclass(frozen=True, kw_only=True)
class FolderBank:
    """Squares cut from streak images at keyed positions, from one image after the other."""

    folder: Path
    images: tuple[Path, ...]
    shapes: tuple[tuple[int, int], ...]
    count: int
    size: int
    seed: int

    def describe(self, number: int) -> JSON:
        path, top, left = self._place(number)
        name = readable(os.fsencode(path.relative_to(self.folder)))
        return {"image": name, "top": top, "left": left}

    def layer(self, number: int) -> NDArray[np.uint8]:
        """Layer `number`, (size, size)."""
        path, top, left = self._place(number)
        square = read_streaks(path)[top : top + self.size, left : left + self.size]
        if square.shape != (self.size, self.size):
            raise RainBankError(f"{path}: changed while it was read; run again")
        return square

    def _place(self, number: int) -> tuple[Path, int, int]:
        """The image of a layer, and the row and column where its square begins."""
        image = number % len(self.images)
        height, width = self.shapes[image]
        rng = generator(self.seed, "rain-layers", number)
        top, left = rng.integers(0, (height - self.size + 1, width - self.size + 1)).tolist()
        return self.images[image], top, left


def open_folder(folder: Path, *, layers: int, largest_size: int, seed: int) -> FolderBank:
    """A bank of `layers` squares from the images below `folder`, every image checked and used.

    The squares are as large as the smallest image allows, at most `largest_size`: nothing is tiled,
    which would cut streaks off.
    """
    if not folder.is_dir():
        raise RainBankError(f"rain_layers.folder: {folder} is not a folder of streak images")
    images = streak_images(folder)
    if not images:
        raise RainBankError(f"rain_layers.folder: {folder} holds no images; name one that does")
    if len(images) > layers:
        raise RainBankError(
            f"rain_layers.layers: {layers} layers can't show all {len(images)} images of {folder}; "
            f"set it to {len(images)} or more"
        )
    shapes = tuple((height, width) for height, width in (read_streaks(p).shape for p in images))
    return FolderBank(
        folder=folder,
        images=images,
        shapes=shapes,
        count=layers,
        size=min(largest_size, *(side for shape in shapes for side in shape)),
        seed=seed,
    )


def streak_images(folder: Path) -> tuple[Path, ...]:
    """Every image below `folder`, in sorted order; hidden files and folders are left out."""
    return tuple(
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PHOTOGRAPH_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_streaks(path: Path) -> NDArray[np.uint8]:
    """The streaks of an image, (H, W), black where there is no rain."""
    try:
        streaks = np.asarray(Image.fromarray(read_photograph(path)).convert("L"))
    except UnreadablePhotograph as error:
        raise RainBankError(f"{path}: {error}; replace or remove it") from error
    except MemoryError as error:
        raise RainBankError(f"{path}: not enough memory; give the job more") from error
    height, width = streaks.shape
    if min(height, width) < SMALLEST_SIDE:
        raise RainBankError(
            f"{path}: {height}×{width} pixels; streak images are at least "
            f"{SMALLEST_SIDE}×{SMALLEST_SIDE}, remove it"
        )
    if not streaks.any() or streaks.mean() > 127:
        raise RainBankError(
            f"{path}: mean brightness {streaks.mean():.0f} of 255; rain_layers.folder takes bright "
            "streaks on black, neither rainy photographs nor empty images"
        )
    return streaks


def write_layers(
    path: Path, bank: RenderedBank | FolderBank, *, resume: bool, progress: Progress
) -> None:
    """Write the bank as one (n, size, size) .npy: under a temporary name, renamed when whole.

    `resume` goes on after the layers that an interrupted call left.
    """
    header = _header(bank.count, bank.size)
    layer_bytes = bank.size**2
    partial = path.with_name(f".{path.name}.partial")
    if not resume:
        partial.unlink(missing_ok=True)
    with partial.open("r+b" if partial.exists() else "w+b") as file:
        done = 0
        if file.read(len(header)) == header:
            present = min((file.seek(0, os.SEEK_END) - len(header)) // layer_bytes, bank.count)
            # What came after the last sync may not have reached the disk.
            done = max(present - 1, 0) // LAYERS_PER_SYNC * LAYERS_PER_SYNC
            logger.info("%s: going on after %d layers", path.name, done)
        file.seek(0)
        file.write(header)
        file.seek(len(header) + done * layer_bytes)
        file.truncate()
        for number in range(done, bank.count):
            file.write(bank.layer(number).tobytes())
            if (number + 1) % LAYERS_PER_SYNC == 0 or number + 1 == bank.count:
                file.flush()
                os.fsync(file.fileno())
            progress(number + 1, bank.count, "layers")
    partial.rename(path)
    sync_folder(path.parent)


def bank_statistics(path: Path) -> dict[str, JSON]:
    """How much rain there is: coverage layer by layer, levels over all pixels of the bank."""
    layers = np.load(path, mmap_mode="r")
    levels = np.stack([np.bincount(layer.reshape(-1), minlength=256) for layer in layers])
    coverage = levels[:, VISIBLE + 1 :].sum(axis=1) / layers[0].size
    pooled = levels.sum(axis=0)
    share = pooled.cumsum() / pooled.sum()
    return {
        "coverage": round(float(coverage.mean()), 4),
        "coverage_percentiles": {
            str(percent): round(float(np.percentile(coverage, percent)), 4) for percent in (5, 95)
        },
        "mean": round(float(pooled @ np.arange(256) / pooled.sum()), 3),
        "percentiles": {
            str(percent): int(np.searchsorted(share, percent / 100)) for percent in (90, 99, 99.9)
        },
        "largest": int(np.flatnonzero(pooled)[-1]),
    }


def _header(count: int, size: int) -> bytes:
    header = BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
    npy.write_array_header_1_0(header, fields)
    return header.getvalue()
