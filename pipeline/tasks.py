"""The restoration tasks. Heads, tails, queries, data streams, metrics and report rows derive from
`TASKS`; a new task is one more row here and, if its corruption is new, one pure function."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Bicubic:
    """MATLAB's `imresize(image, 1/scale)`: bicubic, antialiased, rounded to 8 bits."""

    scale: int
    # Newer MATLAB mirrors beyond the border, older MATLAB repeats the edge.
    border: Literal["symmetric", "replicate"] = "symmetric"


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """clean + N(0, sigma_255), on the scale of 0..255, drawn whenever a sample is read.

    IPT clips the noisy image to [0, 255]; DnCNN and its successors do not. A model trained
    under one convention loses about 1 dB under the other.
    """

    sigma_255: float
    clip: bool = True


@dataclass(frozen=True, kw_only=True)
class RainStreaks:
    """clip(clean + layer): a grey streak layer, cut from the bank of the rain-layers stage."""


Corruption = Bicubic | GaussianNoise | RainStreaks


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    title: str
    corruption: Corruption

    @property
    def scale(self) -> int:
        """How many times larger the clean image is, per side."""
        return self.corruption.scale if isinstance(self.corruption, Bicubic) else 1

    @property
    def stores_corrupted(self) -> bool:
        """Whether shards hold the corrupted image; noise is drawn when a sample is read."""
        return not isinstance(self.corruption, GaussianNoise)

    @property
    def needs_rain_layers(self) -> bool:
        return isinstance(self.corruption, RainStreaks)


# The published order comes first: only it gives the indices in a published checkpoint a meaning.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="sr2", title="Super-resolution ×2", corruption=Bicubic(scale=2)),
        Task(name="sr3", title="Super-resolution ×3", corruption=Bicubic(scale=3)),
        Task(name="sr4", title="Super-resolution ×4", corruption=Bicubic(scale=4)),
        Task(name="derain", title="Deraining", corruption=RainStreaks()),
        Task(name="denoise30", title="Denoising σ 30", corruption=GaussianNoise(sigma_255=30)),
        Task(name="denoise50", title="Denoising σ 50", corruption=GaussianNoise(sigma_255=50)),
    )
}
PUBLISHED_ORDER = ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")


def task_named(
    name: str,
    *,
    clip_noise: bool = True,
    border: Literal["symmetric", "replicate"] = "symmetric",
) -> Task:
    """The row of `TASKS` under the conventions that a run's config chooses."""
    task = TASKS[name]
    match task.corruption:
        case GaussianNoise():
            return replace(task, corruption=replace(task.corruption, clip=clip_noise))
        case Bicubic():
            return replace(task, corruption=replace(task.corruption, border=border))
        case RainStreaks():
            return task
