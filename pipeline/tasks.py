"""The restoration tasks. Heads, tails, queries, data streams, metrics and report rows derive from
`TASKS`; a new task is one more row here and, if its corruption is new, one pure function.

A parameter that is a pair is a range: every sample draws its own value, uniformly; between whole
numbers a whole one (for one of any kind, write 1.0).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Range = tuple[float, float]


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

    sigma_255: float | Range
    clip: bool = True


@dataclass(frozen=True, kw_only=True)
class RainStreaks:
    """clip(clean + layer): a grey streak layer, cut from the bank of the rain-layers stage."""


@dataclass(frozen=True, kw_only=True)
class JpegCompression:
    """Compressed by libjpeg, as MATLAB's `imwrite` does; colour at half the resolution (4:2:0)."""

    quality: int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Convolved with an isotropic Gaussian, rounded to 8 bits."""

    sigma: float | Range  # pixels


@dataclass(frozen=True, kw_only=True)
class MotionBlur:
    """Convolved with MATLAB's `fspecial('motion', length, angle)`, rounded to 8 bits."""

    length: float | Range  # pixels
    angle: float | Range  # degrees from the horizontal, counterclockwise


Corruption = Bicubic | GaussianNoise | RainStreaks | JpegCompression | GaussianBlur | MotionBlur


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    title: str
    corruption: Corruption
    channels: Literal[1, 3] = 3  # 1: photographs become grey first

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


BLIND = (0.0, 55.0)  # the levels that DnCNN-B and CDnCNN-B are trained for
BLIND_LEVELS = (15.0, 25.0, 50.0)  # that they are published at
JPEG_LEVELS = (10, 20, 30, 40)

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
        # Beyond the paper. 10 to 40 are the qualities of the published tables of JPEG artefacts.
        Task(name="jpeg", title="JPEG artefacts", corruption=JpegCompression(quality=(10, 40))),
        # The isotropic part of Real-ESRGAN's first blur.
        Task(
            name="gaussian_blur", title="Gaussian blur", corruption=GaussianBlur(sigma=(0.2, 3.0))
        ),
        # From hardly visible to half of a 48-pixel patch; measured kernels have 13 to 27 pixels.
        # Whole numbers, so that every worker soon has all kernels.
        Task(
            name="motion_blur",
            title="Motion blur",
            corruption=MotionBlur(length=(5, 25), angle=(0, 179)),
        ),
        # DnCNN's own recipe.
        Task(
            name="grey15",
            title="Grey denoising σ 15",
            corruption=GaussianNoise(sigma_255=15),
            channels=1,
        ),
        Task(
            name="grey25",
            title="Grey denoising σ 25",
            corruption=GaussianNoise(sigma_255=25),
            channels=1,
        ),
        Task(
            name="grey50",
            title="Grey denoising σ 50",
            corruption=GaussianNoise(sigma_255=50),
            channels=1,
        ),
        Task(
            name="grey_blind",
            title="Blind grey denoising",
            corruption=GaussianNoise(sigma_255=BLIND),
            channels=1,
        ),
        Task(
            name="colour_blind",
            title="Blind denoising",
            corruption=GaussianNoise(sigma_255=BLIND),
        ),
    )
}
PUBLISHED_ORDER = ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")
IPT_TASKS = tuple(name for name, task in TASKS.items() if task.channels == 3)  # its heads take RGB


def ranges(corruption: Corruption) -> dict[str, Range]:
    """What every sample draws for itself: from where to where, by the name of the parameter."""
    return {name: value for name, value in vars(corruption).items() if isinstance(value, tuple)}


def published_name(task: Task) -> str:
    """What published tables call the task: by its level, where it has one."""
    match task.corruption:
        case GaussianNoise(sigma_255=float() | int() as sigma_255):
            return f"{'grey' if task.channels == 1 else 'denoise'}{sigma_255:g}"
        case JpegCompression(quality=int() as quality):
            return f"jpeg{quality}"
        case Bicubic(scale=scale):
            return f"sr{scale}"
        case RainStreaks():
            return "derain"
    return task.name


def at_levels(task: Task, sigmas: Iterable[float] = (), *, only: bool = False) -> tuple[Task, ...]:
    """The tasks that a model of `task` is measured at on benchmarks.

    Its own; a denoiser's also at `sigmas`, or `only` there; what draws its level from a range at
    those of the published tables.
    """
    match task.corruption:
        case GaussianNoise(sigma_255=own):
            usual = BLIND_LEVELS if isinstance(own, tuple) else (own,)
            levels = {*sigmas} if only else {*usual, *sigmas}
            specs: list[Corruption] = [
                replace(task.corruption, sigma_255=level) for level in sorted(levels)
            ]
        case JpegCompression(quality=tuple()):
            specs = [replace(task.corruption, quality=level) for level in JPEG_LEVELS]
        case _:
            return (task,)
    return tuple(task if spec == task.corruption else _at(task, spec) for spec in specs)


def _at(task: Task, corruption: Corruption) -> Task:
    """`task` with one level, under its published name: everybody meets the same noise there."""
    match corruption:
        case GaussianNoise(sigma_255=float() | int() as level):
            title = f"{'Grey denoising' if task.channels == 1 else 'Denoising'} σ {level:g}"
        case JpegCompression(quality=int() as level):
            title = f"JPEG artefacts, quality {level}"
        case _:
            title = task.title
    row = replace(task, title=title, corruption=corruption)
    return replace(row, name=published_name(row))


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
        case _:
            return task
