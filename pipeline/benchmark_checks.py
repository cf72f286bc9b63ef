"""Whether a benchmark is what its name says: number and sizes of its images, what its input scores
where that is known, and low-resolution images that are there."""

# H W height and width, C channels

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction

import numpy as np
import torch

from pipeline.artifacts import JSON
from pipeline.benchmarks import Benchmark, Known, Measure
from pipeline.checks import KNOWN_PART, Check, State
from pipeline.corruptions.bicubic import imresize
from pipeline.corruptions.jpeg import compress_region
from pipeline.metrics import luma, psnr, quantise, ssim
from pipeline.protocol import noise_of
from pipeline.scoring import as_tensor
from pipeline.tasks import Bicubic, GaussianNoise, JpegCompression, Task, published_name

CUT = 12  # pixels a side that a copy cut to a multiple of ×2, ×3 and ×4 may lack
# dB between a given low-resolution image and ours: 58 and more where older MATLAB repeated the
# pixels at the border, 50 to 56 by PIL's bicubic, on Set5.
SAME = 55.0

WHAT: dict[Measure, str] = {
    "bicubic": "bicubic upscaling on Y, 8-bit Y shrunk and enlarged without rounding",
    "input on rounded Y": "input on Y, rounded to 8 bits",
    "input on RGB": "noisy input on RGB",
    "grey JPEG": "compressed grey input",
}


@dataclass
class Checker:
    """Follows an evaluation image by image, and says at its end what was verified."""

    benchmark: Benchmark
    task: Task
    images: list[tuple[str, int, int]] = field(default_factory=list)  # name, width, height
    scores: dict[Measure, list[tuple[float, float]]] = field(default_factory=dict)
    # By name, the dB between a low-resolution image that is given and the clean one shrunk by us.
    small: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        name: str,
        *,
        clean: np.ndarray,
        corrupted: Mapping[str, float | None],
        given: np.ndarray | None = None,
    ) -> None:
        """`clean` is (H, W, C) uint8; `corrupted` are the scores of the input, which is `given`
        where it is a file, uint8 too."""
        is_grey = name.startswith(self.benchmark.grey) if self.benchmark.grey else False
        corruption, other, alike = self.task.corruption, None, None
        if given is not None and isinstance(corruption, Bicubic):
            shrunk = imresize(clean, Fraction(1, corruption.scale), border=corruption.border)
            alike = psnr(as_tensor(given), as_tensor(shrunk)).item()
            other = given if alike < SAME else None
        scores = {
            measure: _measured(
                measure, clean, corrupted, task=self.task, is_grey=is_grey, small=other
            )
            for measure in {known.measure for known in self._known()}
        }
        # Only now: an image that there is no memory for is none of those that were checked.
        self.images.append((name, clean.shape[1], clean.shape[0]))
        for measure, each in scores.items():
            self.scores.setdefault(measure, []).append(each)
        if alike is not None:
            self.small[name] = alike

    @property
    def is_known_part(self) -> bool:
        """Whether the images are those of the smaller copy whose scores are known too."""
        return sorted(name for name, *_ in self.images) == sorted(self.benchmark.part)

    def checks(self) -> list[dict[str, JSON]]:
        """What was expected and found: of the images' number and sizes, and of their scores."""
        found = [self._number(), self._sizes()]
        count = len(self.images)
        for known in self._known():
            if count == (known.images or self.benchmark.images):
                found.append(self._score(known))
        if len(found) == 2:
            expected = f"for {published_name(self.task)} on {count} images"
            found.append(
                Check(
                    what="input",
                    state="not checked",
                    expected=f"no score known {expected}",
                    found="",
                )
            )
        if self.small:
            found.append(self._small())
        return [asdict(each) for each in found]

    def _known(self) -> list[Known]:
        task, noise = published_name(self.task), noise_of(self.task)
        rows = [each for each in self.benchmark.known if each.task == task and each.noise == noise]
        corruption = self.task.corruption
        if not rows and noise == "unclipped" and isinstance(corruption, GaussianNoise):
            sigma = corruption.sigma_255
            if isinstance(sigma, float | int) and sigma > 0:  # by arithmetic
                psnr = f"{20 * math.log10(255 / sigma):.2f}"
                rows = [Known(task=task, measure="input on RGB", psnr=psnr, within=0.02)]
        return rows

    def _number(self) -> Check:
        count = len(self.images)
        state: State = "verified" if count == self.benchmark.images else "differs"
        return Check(
            what="number of images",
            state=state,
            expected=str(self.benchmark.images),
            found=str(count) + (f", {KNOWN_PART}" if self.is_known_part else ""),
        )

    def _sizes(self) -> Check:
        sizes = self.benchmark.sizes
        others = [
            f"{name} {width}×{height}"
            for name, width, height in self.images
            if not any(_fits(width, height, size) for size in sizes)
        ]
        allowed = len(self.images) / 2 if self.benchmark.mostly else 0
        named = ", ".join(f"{width}×{height}" for width, height in sizes)
        return Check(
            what="sizes",
            state="verified" if len(others) <= allowed else "differs",
            expected=f"{'mostly ' if self.benchmark.mostly else ''}{named}",
            found=_listed(others) if len(others) > allowed else "",
        )

    def _small(self) -> Check:
        others = [f"{name} {db:.1f} dB" for name, db in self.small.items() if db < SAME]
        least = min(self.small.values())
        return Check(
            what="low-resolution images",
            state="differs" if others else "verified",
            expected=f"the clean ones shrunk as MATLAB does, equal or by {SAME:.0f} dB",
            found=_listed(others) or ("equal" if least == math.inf else f"{least:.1f} dB or more"),
        )

    def _score(self, known: Known) -> Check:
        of_psnr, of_ssim = zip(*self.scores[known.measure], strict=True)
        values = [(known.psnr, math.fsum(of_psnr) / len(of_psnr), known.within)]
        if known.ssim is not None:
            values.append((known.ssim, math.fsum(of_ssim) / len(of_ssim), known.within))
        is_right = all(
            abs(value - float(text)) <= 0.5 * 10.0 ** -_digits(text) + within + 1e-9
            for text, value, within in values
        )
        return Check(
            what=WHAT[known.measure],
            state="verified" if is_right else "differs",
            expected=" / ".join(text for text, *_ in values),
            found=" / ".join(f"{value:.{_digits(text)}f}" for text, value, _ in values),
        )


def _measured(
    measure: Measure,
    clean: np.ndarray,
    corrupted: Mapping[str, float | None],
    *,
    task: Task,
    is_grey: bool,
    small: np.ndarray | None,
) -> tuple[float, float]:
    """(PSNR in dB, SSIM) of the input of one image; `small` is a low-resolution one of another
    making than ours."""
    match measure:
        case "bicubic":
            return _bicubic(clean, task.scale, is_grey=is_grey, given=small)
        case "grey JPEG":
            assert isinstance(task.corruption, JpegCompression)
            assert isinstance(task.corruption.quality, int)
            return _grey_jpeg(clean, task.corruption.quality)
        case "input on rounded Y":
            names = ("psnr_y_rounded", "ssim_y_rounded")
        case "input on RGB":
            names = ("psnr_rgb", "ssim_rgb")
    first, second = (corrupted[name] for name in names)
    return math.inf if first is None else first, 1.0 if second is None else second


def _bicubic(
    clean: np.ndarray, scale: int, *, is_grey: bool, given: np.ndarray | None
) -> tuple[float, float]:
    """As SRCNN and VDSR took the baseline; what lies there in one channel was its own luma."""
    target = _own_luma(clean) if is_grey else luma(as_tensor(clean), rounded=True)
    if given is None:
        small = imresize(target[0, 0].numpy(), Fraction(1, scale))
    else:
        small = (_own_luma(given) if is_grey else luma(as_tensor(given)))[0, 0].double().numpy()
    restored = quantise(torch.from_numpy(imresize(small, scale))[None, None])
    return psnr(restored, target, scale).item(), ssim(restored, target, scale).item()


def _own_luma(grey: np.ndarray) -> torch.Tensor:
    return as_tensor(grey[:, :, :1]).double()


def _grey_jpeg(clean: np.ndarray, quality: int) -> tuple[float, float]:
    """As DnCNN-3's tests compress: a grey image itself, of a colour image the 8-bit Y."""
    grey = clean[:, :, :1]
    if (clean != grey).any():
        y = luma(as_tensor(clean), rounded=True)[0, 0]
        grey = (y * 255).round().to(torch.uint8).numpy()[:, :, None]
    height, width = grey.shape[:2]
    compressed = compress_region(grey, quality, rows=(0, height), columns=(0, width))
    restored, target = as_tensor(compressed), as_tensor(grey)
    return psnr(restored, target).item(), ssim(restored, target).item()


def _fits(width: int, height: int, size: tuple[int, int]) -> bool:
    return any(
        0 <= whole[0] - width < CUT and 0 <= whole[1] - height < CUT for whole in (size, size[::-1])
    )


def _listed(others: list[str]) -> str:
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"{', '.join(others[:3])}{more}"


def _digits(text: str) -> int:
    return len(text.partition(".")[2])
