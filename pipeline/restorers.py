"""Restores whole photographs with the model of a folder, IPT or DnCNN."""

# C channels, H W height and width, s scale

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.corruptions.bicubic import resize_region
from pipeline.data.photograph_file import Photograph
from pipeline.model_configs import COLOURS
from pipeline.models.dncnn import DnCNN, fold_batch_norm
from pipeline.models.hub import check_model_folder
from pipeline.models.ipt import IPT
from pipeline.restore import (
    BATCH,
    Model,
    Rows,
    convolved_bands,
    restored_bands,
    rows_of_pixels,
    rows_of_tensor,
    self_ensemble,
)
from pipeline.scoring import RestorationError
from pipeline.tiling import Tiling

MARGIN = 4  # rows of the small image beside those that bicubic enlarges; its kernel reaches 2


class RestorerError(ValueError):
    """Options that don't fit the model; the message names the one and what would fit."""


@dataclass(frozen=True, kw_only=True)
class Restorer:
    """A model, ready to restore photographs of any size to s times that size.

    A greyscale image goes through a colour model as three equal channels, and the result is their
    mean; a grey model restores every channel of a colour image by itself.
    """

    scale: int
    channels: int  # that the model takes
    device: torch.device
    restored: Callable[[Rows], Iterator[Tensor]]  # bands of an image of that many channels

    def bands(self, image: Rows) -> Iterator[Tensor]:
        """Yield the restored image in bands (C, rows, sW), on the CPU, from top to bottom."""
        is_widened = image.channels == 1 and self.channels == COLOURS
        channels = COLOURS if is_widened else image.channels

        def read(top: int, bottom: int) -> Tensor:
            rows = image.read(top, bottom).to(self.device)
            return rows.expand(channels, -1, -1)

        for band in self.restored(replace(image, channels=channels, read=read)):
            yield (band.mean(0, keepdim=True) if is_widened else band).cpu()

    def restore(self, image: Tensor) -> Tensor:
        """Restore (1, C, H, W) in [0, 1] to (1, C, sH, sW) on the CPU; it is not clamped."""
        return torch.cat(list(self.bands(rows_of_tensor(image[0]))), dim=1)[None]

    def restore_photograph(self, photograph: Photograph) -> Iterator[np.ndarray]:
        """Yield bands (rows, sW, C) of the photograph's type; its alpha is their last channel.

        Alpha is not restored: it stays, or is enlarged bicubically.
        """
        white = int(np.iinfo(photograph.pixels.dtype).max)
        bottom = 0
        for band in self.bands(rows_of_pixels(photograph.pixels)):
            if not band.isfinite().all():
                raise RestorationError("the model restores to values that are not numbers")
            values = band.clamp(0, 1).mul_(white).round_()
            pixels = values.permute(1, 2, 0).numpy().astype(photograph.pixels.dtype)
            top, bottom = bottom, bottom + len(pixels)
            if photograph.alpha is not None:
                alpha = enlarged_rows(photograph.alpha, self.scale, rows=(top, bottom))
                pixels = np.concatenate((pixels, alpha[:, :, None]), axis=2)
            yield pixels


def open_restorer(
    folder: Path,
    *,
    task: str | None = None,
    tiling: Tiling = "overlap",
    overlap: int | None = None,
    ensemble: bool = False,
    batch: int | None = None,
    device: torch.device,
) -> Restorer:
    """The model of `folder`, or ModelFileError; RestorerError where the options don't fit it.

    An IPT restores `batch` tiles at a time (32), a DnCNN windows of 512 pixels. `ensemble` averages
    over the eight orientations of every tile or window rather than of the whole image, so that no
    whole image is held; for a DnCNN that is the same.
    """
    if check_model_folder(folder) == "DnCNN":
        if task is not None or tiling != "overlap" or not (overlap is batch is None):
            raise RestorerError(
                f"{folder} is a DnCNN, without tasks and without tiles: "
                "leave out the task, the tiling, its overlap and the batch"
            )
        dncnn = DnCNN.from_pretrained(folder)
        if dncnn.config.channels not in (1, COLOURS):
            raise RestorerError(
                f"{folder} restores {dncnn.config.channels} channels; photographs have 1 or 3"
            )
        return _of_dncnn(dncnn, ensemble=ensemble, device=device)
    ipt = IPT.from_pretrained(folder)
    names = ", ".join(ipt.tasks)
    if task is None and len(ipt.tasks) > 1:
        raise RestorerError(f"no task: {folder} restores {names}; name one of them")
    task = task or ipt.tasks[0]
    if task not in ipt.tasks:
        raise RestorerError(f"task {task!r}: {folder} restores {names}")
    patch_size = ipt.config.size.patch_size
    if overlap is not None and not 0 <= overlap < patch_size:
        raise RestorerError(f"tile overlap {overlap}: between 0 and {patch_size - 1} for {folder}")
    if tiling == "official" and overlap is not None:
        raise RestorerError("tiling official: its overlap is fixed; leave out the overlap")
    if tiling == "official" and patch_size % 4:
        raise RestorerError(
            f"tiling official: its stride is a quarter of a patch, and {folder} has patches of "
            f"{patch_size} pixels; use the tiling overlap"
        )
    model: Model = partial(ipt.to(device), task=task)
    restored = partial(
        restored_bands,
        self_ensemble(model) if ensemble else model,
        scale=ipt.config.scales[task],
        patch_size=patch_size,
        tiling=tiling,
        batch=batch or BATCH,
        overlap=overlap,
    )
    return Restorer(
        scale=ipt.config.scales[task], channels=COLOURS, device=device, restored=restored
    )


def enlarged_rows(alpha: np.ndarray, scale: int, *, rows: tuple[int, int]) -> np.ndarray:
    """`imresize(alpha, scale)[rows]` of (H, W) uint8 or uint16, reading the rows around it only.

    Both ends of `rows` are multiples of the scale.
    """
    top, bottom = rows
    if scale == 1:
        return alpha[top:bottom]
    height, width = alpha.shape
    first = max(0, top // scale - MARGIN)
    part = alpha[first : min(height, bottom // scale + MARGIN)]
    if alpha.dtype == np.uint16:
        part = part.astype(np.float64)
    within = (top - first * scale, bottom - first * scale)
    enlarged = resize_region(part, scale, rows=within, columns=(0, width * scale))
    if alpha.dtype == np.uint16:
        enlarged = np.floor(enlarged + 0.5).clip(0, 65535)
    return enlarged.astype(alpha.dtype)


def _of_dncnn(dncnn: DnCNN, *, ensemble: bool, device: torch.device) -> Restorer:
    folded = fold_batch_norm(dncnn).to(device)
    channels = folded.config.channels
    model: Model = folded
    if channels == 1:

        def model(x: Tensor) -> Tensor:
            return folded(x.transpose(0, 1)).transpose(0, 1)

    return Restorer(
        scale=1,
        channels=channels,
        device=device,
        restored=partial(
            convolved_bands,
            self_ensemble(model) if ensemble else model,
            radius=folded.config.depth,  # of a 3×3 convolution each
        ),
    )
