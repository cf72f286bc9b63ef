"""What a training tells: metrics.jsonl first, then the log's plain lines, then the trackers."""

import json
import logging
import resource
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.artifacts import write_atomically

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
GIB = 2**30
Row = dict[str, float | int | None]


class Interval:
    """What happened since the last row. Losses stay on the device: only reading waits for it."""

    def __init__(self) -> None:
        self.tasks: set[str] = set()
        self.waited = 0.0  # seconds, for data
        self._samples = 0
        self._norms: list[float] = []
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._began = time.monotonic()

    def add(self, counts: Mapping[str, int], *, samples: int) -> None:
        """Count a step that trained on these tasks, skipped or not."""
        self.tasks |= counts.keys()
        self._samples += samples

    def add_losses(self, parts: Mapping[str, Tensor], *, gradient_norm: float) -> None:
        """Add what a step that was not skipped measured."""
        self._norms.append(gradient_norm)
        for name, value in parts.items():
            before, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (before + value, count + 1)

    def row(self) -> Row:
        """Means, each over the steps that had the value; the loss is None if all were skipped."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        means = {name: total.item() / count for name, (total, count) in self._sums.items()}
        return {
            "loss": None,
            **means,
            "gradient_norm": sum(self._norms) / len(self._norms) if self._norms else None,
            "samples_per_second": self._samples / seconds,
            "data_wait": self.waited / seconds,  # a fraction of the time
        }


class TrainingLog:
    """The records of rank 0. After a resume at a step, nothing of later steps is left in them."""

    def __init__(self, folder: Path, *, accelerator: Accelerator, resumed_step: int) -> None:
        self.path = folder / METRICS
        self.accelerator = accelerator
        _cut_metrics(self.path, resumed_step)
        accelerator.init_trackers(
            "tensorboard", init_kwargs={"tensorboard": {"purge_step": resumed_step + 1}}
        )

    def write(self, row: Row, *, tasks: frozenset[str], total_steps: int) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        logger.info("%s", plain_line(row, tasks=tasks, total_steps=total_steps))
        step = row["step"]
        values = {
            name: value for name, value in row.items() if name != "step" and value is not None
        }
        for tracker in self.accelerator.trackers:
            tracker.log(values, step=step)

    def write_images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Show images by name, each (N, C, H, W) in [0, 1], clipped here."""
        pixels = {
            name: (image.detach().float().clamp(0, 1) * 255).round().byte().cpu()
            for name, image in images.items()
        }
        arrays = {name: image.permute(0, 2, 3, 1).numpy() for name, image in pixels.items()}
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images(arrays, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: list(each) for name, each in arrays.items()}, step=step)

    def close(self) -> None:
        # Not accelerator.end_training(): it would end the process group, which others still need.
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _cut_metrics(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, and a last line that a kill cut short."""
    if not path.exists():
        path.touch()
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= last_step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def plain_line(row: Row, *, tasks: frozenset[str], total_steps: int) -> str:
    """One interval for the log, always in this order."""
    task = f"task {next(iter(tasks))}" if len(tasks) == 1 else f"{len(tasks)} tasks"
    loss = "loss none" if row["loss"] is None else f"loss {row['loss']:.4g}"
    skipped = f"  skipped {row['skipped']}" if row["skipped"] else ""
    return (
        f"step {row['step']}/{total_steps}  samples {compact(int(row['samples'] or 0))}  {task}  "
        f"{loss}  lr {row['learning_rate']:.1e}  {row['samples_per_second']:.3g} samples/s  "
        f"{row['memory_gib']:.1f} GiB{skipped}"
    )


def compact(count: int) -> str:
    """A count as people say it: 950, 307k, 12.5M."""
    if count < 1000:
        return str(count)
    if count < 1_000_000:
        return f"{count / 1000:.0f}k"
    return f"{count / 1_000_000:.1f}M"


def peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # KiB on Linux
