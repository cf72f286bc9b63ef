"""What must be known to compare scores with other scores. Imports nothing heavy."""

from collections.abc import Mapping

from pipeline.artifacts import JSON
from pipeline.tasks import Bicubic, GaussianNoise, RainStreaks, Task, ranges

OF_FILES = "of given files"  # the convention of noise that is not drawn here


def protocol(task: Task, *, tiling: str | None, self_ensemble: bool, seed: int) -> dict[str, JSON]:
    """How a model is scored at `task`; `tiling` is None where it restores whole images."""
    corruption = task.corruption
    noise = noise_of(task)
    luma = "BT.601, 16 to 235, unrounded"
    if isinstance(corruption, RainStreaks):
        luma += "; psnr_y_rounded and ssim_y_rounded are of Y rounded to 8 bits"
    return {
        "channels": ["grey"] if task.channels == 1 else ["RGB", "Y"],
        "border": border_of(task),
        "rounding": "uint8",  # of the restored image, before it is scored
        "corrupted_rounding": "none, as drawn" if noise else "uint8",
        "luma": luma,
        "ssim": "Gaussian 11×11, σ 1.5, valid region; RGB is the mean of the channels",
        "mean": "of per-image scores",
        "noise": noise,  # where it is drawn here
        "drawn": {name: list(each) for name, each in ranges(corruption).items()},  # per image
        "seed": seed,
        "seeded_by": "seed, task and the image's name" if noise else None,
        "tiling": tiling,
        "self_ensemble": self_ensemble,
        "precision": "float32",
        "corrupted_shown": "bicubic upscaling" if isinstance(corruption, Bicubic) else "as given",
    }


def noise_of(task: Task) -> str | None:
    if not isinstance(task.corruption, GaussianNoise):
        return None
    return "clipped" if task.corruption.clip else "unclipped"


def border_of(task: Task) -> int:
    """Pixels that are cut off on each side before scoring: the scale, as EDSR and IPT do."""
    return task.scale if task.scale > 1 else 0


def in_words(record: Mapping[str, JSON]) -> str:
    """A protocol in a line."""
    border = f"border of {record['border']} cut" if record["border"] else "no border cut"
    parts = [f"on {' and '.join(record['channels'])}", border]
    parts.append("restored image rounded to 8 bits, the input as drawn or given")
    if record["noise"]:
        parts.append(f"noise {record['noise']}, seed {record['seed']} by {record['seeded_by']}")
    parts.append(f"tiling {record['tiling']}" if record["tiling"] else "whole images, no tiles")
    parts.append(f"{'with' if record['self_ensemble'] else 'without'} self-ensemble")
    return "; ".join([*parts, "means of per-image scores"])
