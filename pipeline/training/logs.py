"""What a training tells: metrics.jsonl first, then the log's plain lines, then the trackers."""

import json
import logging
import resource
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.artifacts import write_atomically
from pipeline.durations import duration
from pipeline.training.checkpoint import TrainState

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
GIB = 2**30
Row = dict[str, float | int | None]


class Interval:
    """What happened since the last row. Losses stay on the device: only reading waits for it."""

    def __init__(self) -> None:
        self.tasks: set[str] = set()
        self.waited = 0.0  # seconds, for data
        self.paused = 0.0  # seconds, to copy a checkpoint
        self._samples = 0
        self._steps = 0
        self._flops: float | None = 0.0  # None where a task's are unknown
        self._norms: list[float] = []
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._began = time.monotonic()

    def add(self, counts: Mapping[str, int], *, samples: int, flops: float | None) -> None:
        """Count a step that trained on these tasks, skipped or not: the samples of all processes,
        the model FLOPs of this one."""
        self.tasks |= counts.keys()
        self._samples += samples
        self._steps += 1
        self._flops = None if flops is None or self._flops is None else self._flops + flops

    def add_losses(self, parts: Mapping[str, Tensor], *, gradient_norm: float) -> None:
        """Add what a step that was not skipped measured."""
        self._norms.append(gradient_norm)
        for name, value in parts.items():
            before, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (before + value, count + 1)

    def row(self, *, peak_flops: float | None) -> Row:
        """Means, each over the steps that had the value; the loss is None if all were skipped.

        `peak_flops` is what a device can do in a second, where that is known.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        means = {name: total.item() / count for name, (total, count) in self._sums.items()}
        flops = None if self._flops is None else self._flops / seconds
        return {
            "loss": None,
            **means,
            "gradient_norm": sum(self._norms) / len(self._norms) if self._norms else None,
            "samples_per_second": self._samples / seconds,
            "step_seconds": seconds / max(1, self._steps),
            "data_wait": self.waited / seconds,  # a fraction of the time
            "checkpoint_pause": self.paused,  # seconds
            "model_tflops": None if flops is None else flops / 1e12,  # in a second, by a device
            "mfu": flops / peak_flops if flops is not None and peak_flops else None,
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

    def write(
        self, row: Row, state: TrainState, *, tasks: Collection[str], total_steps: int
    ) -> None:
        row = row | {
            "step": state.step,
            "samples": state.samples,
            "seconds": round(state.seconds, 3),
            "seconds_left": (total_steps - state.step) * (row["step_seconds"] or 0.0),
            "skipped": state.skipped,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        logger.info("%s", plain_line(row, tasks=tasks, total_steps=total_steps))
        values = {
            name: value for name, value in row.items() if name != "step" and value is not None
        }
        for tracker in self.accelerator.trackers:
            tracker.log(values, step=state.step)

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


def plain_line(row: Row, *, tasks: Collection[str], total_steps: int) -> str:
    """One interval for the log, always in this order."""
    number = {name: float(value) for name, value in row.items() if value is not None}
    words = [
        f"step {row['step']}/{total_steps}",
        f"samples {compact(int(number['samples']))}",
        f"task {next(iter(tasks))}" if len(tasks) == 1 else f"{len(tasks)} tasks",
        f"loss {number['loss']:.4g}" if "loss" in number else "loss none",
        f"lr {number['learning_rate']:.1e}",
        f"{number['samples_per_second']:.3g} samples/s",
    ]
    if "mfu" in number:
        words.append(f"{number['mfu']:.0%} MFU")
    words += [f"data wait {number['data_wait']:.0%}", f"{number['memory_gib']:.1f} GiB"]
    if row["skipped"]:
        words.append(f"skipped {row['skipped']}")
    return "  ".join([*words, f"{duration(number['seconds_left'])} left"])


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
