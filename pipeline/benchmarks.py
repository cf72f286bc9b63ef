"""The benchmarks of the field, one row each: what they measure, how people's folders of them look,
how many images of which sizes they have, and scores that their inputs are known to have.

A new benchmark is one more row. Imports nothing heavy: a plan lists what is there.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.tasks import Bicubic, GaussianNoise, JpegCompression, RainStreaks, Task

Kind = Literal["super-resolution", "denoising", "grey denoising", "deraining", "JPEG"]
# How a known score was taken; the functions are in benchmark_checks.py.
Measure = Literal["bicubic", "input on rounded Y", "input on RGB", "grey JPEG"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Patterns below the folder of a benchmark; {scale} is that of the task."""

    clean: str
    corrupted: str | None = None  # None: made here, in the task's way


@dataclass(frozen=True, kw_only=True)
class Known:
    """The mean scores of a benchmark's input at one task, to the digits that they are written.

    The bicubic rows are those published since SRCNN and VDSR, Rain100L's that of its papers, the
    JPEG ones those of DnCNN-3's; noise and Rain100H were counted on the sets by this project.
    """

    task: str  # as published tables call it, such as denoise50
    measure: Measure
    psnr: str  # dB
    ssim: str | None = None
    noise: Literal["clipped", "unclipped"] | None = None  # that it is drawn with
    images: int | None = None  # None: of all; else of the part that a row of `parts` names
    # One draw of noise differs from another, and 8 bits from floats: dB.
    within: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    name: str
    kinds: tuple[Kind, ...]
    images: int
    # (width, height), either way round; () where nobody has written them down. Copies that were cut
    # to a multiple of their scale are a few pixels smaller.
    sizes: tuple[tuple[int, int], ...] = ()
    mostly: bool = False  # more than half of the images have those sizes, not all
    layouts: tuple[Layout, ...]
    also: tuple[str, ...] = ()  # other names that people use
    grey_of: str | None = None  # the benchmark whose greyscale version it is, pixel for pixel
    grey: tuple[str, ...] = ()  # how the names of images begin that have one channel
    part: tuple[str, ...] = ()  # names of the images of a smaller copy that is known too
    known: tuple[Known, ...] = ()


# Without corrupted images the task makes them. Where several fit, benchmark_folders.py chooses.
_CLEAN = tuple(
    Layout(clean=f"{folder}*")
    for folder in ("", "HR/", "GTmod12/", "GT/", "original_png/", "original/", "clean/")
)
_SUPER_RESOLUTION = (
    Layout(clean="HR/*", corrupted="LR_bicubic/X{scale}/*"),  # EDSR, SwinIR
    Layout(clean="GTmod12/*", corrupted="LRbicx{scale}/*"),  # BasicSR
    Layout(clean="original/*", corrupted="LRBI/x{scale}/*"),  # RCAN
    Layout(clean="image_SRF_{scale}/*_HR.*", corrupted="image_SRF_{scale}/*_LR.*"),  # SelfExSR
    *_CLEAN,
)
# The photographs in SelfExSR's image_SRF_2 have half of Urban100's size.
_URBAN100 = (
    *(each for each in _SUPER_RESOLUTION if "SRF" not in each.clean),
    Layout(clean="image_SRF_4/*_HR.*"),
)
_RAIN = (
    Layout(clean="clean/*", corrupted="rainy/*"),
    Layout(clean="target/*", corrupted="input/*"),  # Restormer, MPRNet
    Layout(clean="norain-*", corrupted="rainy/rain-*"),  # PReNet
    Layout(clean="norain/*", corrupted="rain/*"),  # JORDER-E
    Layout(clean="norain/*", corrupted="rainy/*"),
    Layout(clean="norain-*", corrupted="rain-*"),  # the IPT release
    Layout(clean="cleancrop/*", corrupted="inputcrop/*"),  # MSPFN
)


def _bicubic(*scores: tuple[str, str]) -> tuple[Known, ...]:
    """Of ×2, ×3 and ×4: the bicubic rows of the tables since SRCNN and VDSR."""
    return tuple(
        Known(task=f"sr{scale}", measure="bicubic", psnr=psnr, ssim=ssim)
        for scale, (psnr, ssim) in enumerate(scores, start=2)
    )


def _noise(noise: Literal["clipped", "unclipped"], **scores: str) -> tuple[Known, ...]:
    return tuple(
        Known(task=task, measure="input on RGB", psnr=psnr, noise=noise, within=0.02)
        for task, psnr in scores.items()
    )


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="Set5",
            kinds=("super-resolution",),
            images=5,
            sizes=((512, 512), (288, 288), (256, 256), (280, 280), (228, 344)),
            layouts=_SUPER_RESOLUTION,
            known=_bicubic(("33.66", "0.9299"), ("30.39", "0.8682"), ("28.42", "0.8104")),
        ),
        Benchmark(
            name="Set14",
            kinds=("super-resolution",),
            images=14,
            sizes=(
                *((500, 480), (720, 576), (512, 512), (352, 288), (250, 361), (276, 276)),
                *((500, 362), (768, 512), (529, 656), (586, 391)),
            ),
            layouts=_SUPER_RESOLUTION,
            grey=("bridge", "img_003"),
            known=_bicubic(("30.23", "0.8687"), ("27.54", "0.7736"), ("26.00", "0.7019")),
        ),
        Benchmark(
            name="B100",
            kinds=("super-resolution",),
            images=100,
            sizes=((481, 321),),
            layouts=_SUPER_RESOLUTION,
            also=("BSD100", "BSDS100"),
            known=_bicubic(("29.56", "0.8431"), ("27.21", "0.7384"), ("25.96", "0.6674")),
        ),
        Benchmark(
            name="Urban100",
            kinds=("super-resolution", "denoising"),
            images=100,
            sizes=((1024, 680),),
            mostly=True,
            layouts=_URBAN100,
            known=_bicubic(("26.87", "0.8401"), ("24.46", "0.7344"), ("23.14", "0.6570")),
        ),
        Benchmark(
            name="CBSD68",
            kinds=("denoising",),
            images=68,
            sizes=((481, 321),),
            layouts=_CLEAN,
            also=("CBSD68-dataset",),
            known=(
                *_noise("unclipped", denoise15="24.62", denoise25="20.18"),
                *_noise("unclipped", denoise30="18.60", denoise50="14.16"),
                *_noise("clipped", denoise15="24.84", denoise25="20.54"),
                *_noise("clipped", denoise30="19.04", denoise50="15.00"),
            ),
        ),
        Benchmark(
            name="Kodak24",
            kinds=("denoising",),
            images=24,
            # The whole photographs, or the centres that FFDNet and its successors score.
            sizes=((768, 512), (500, 500)),
            layouts=_CLEAN,
            also=("Kodak",),
        ),
        Benchmark(
            name="McMaster",
            kinds=("denoising",),
            images=18,
            sizes=((500, 500),),
            layouts=_CLEAN,
            also=("CMcMaster", "McM"),
            known=(  # recipe.md, trap 5
                *_noise("unclipped", denoise30="18.59", denoise50="14.15", denoise70="11.23"),
                *_noise("clipped", denoise30="19.40", denoise50="15.37", denoise70="12.88"),
            ),
        ),
        Benchmark(
            name="Set12",
            kinds=("grey denoising",),
            images=12,
            sizes=((256, 256), (512, 512)),
            layouts=_CLEAN,
        ),
        Benchmark(
            name="BSD68",
            kinds=("grey denoising",),
            images=68,
            sizes=((481, 321),),
            layouts=_CLEAN,
            grey_of="CBSD68",
        ),
        Benchmark(
            name="Rain100L",
            kinds=("deraining",),
            images=100,
            sizes=((481, 321),),
            layouts=_RAIN,
            also=("Rain100L_old",),
            part=tuple(str(number) for number in range(1, 21)),
            known=(
                Known(task="derain", measure="input on rounded Y", psnr="26.90", ssim="0.8384"),
                Known(
                    task="derain",
                    measure="input on rounded Y",
                    psnr="26.175",
                    ssim="0.8136",
                    images=20,
                ),
            ),
        ),
        Benchmark(
            name="Rain100H",
            kinds=("deraining",),
            images=100,
            sizes=((481, 321),),
            layouts=_RAIN,
            also=("Rain100H_old",),
            known=(Known(task="derain", measure="input on rounded Y", psnr="13.55", ssim="0.379"),),
        ),
        Benchmark(
            name="LIVE1",
            kinds=("JPEG",),
            images=29,
            sizes=(
                *((768, 512), (640, 512), (610, 488), (627, 482), (634, 505), (618, 453)),
                *((480, 720), (634, 438), (632, 505)),
            ),
            layouts=_CLEAN,
            known=tuple(
                Known(task=f"jpeg{quality}", measure="grey JPEG", psnr=psnr)
                for quality, psnr in ((10, "27.77"), (20, "30.07"), (30, "31.41"), (40, "32.35"))
            ),
        ),
        Benchmark(
            name="classic5",
            kinds=("JPEG",),
            images=5,
            sizes=((512, 512),),
            layouts=_CLEAN,
            known=(Known(task="jpeg10", measure="grey JPEG", psnr="27.82", ssim="0.7595"),),
        ),
    )
}


def benchmark_named(name: str) -> Benchmark | None:
    """The benchmark that somebody's test set or folder is named after: `cbsd-68` is CBSD68."""
    plain = _plain(name)
    for benchmark in BENCHMARKS.values():
        if plain in map(_plain, (benchmark.name, *benchmark.also)):
            return benchmark
    return None


def kind_of(task: Task) -> Kind | None:
    """What a benchmark must measure to be one for the task; None: the field has none."""
    match task.corruption:
        case Bicubic() if task.channels == 3:
            return "super-resolution"
        case GaussianNoise():
            return "grey denoising" if task.channels == 1 else "denoising"
        case RainStreaks():
            return "deraining"
        case JpegCompression() if task.channels == 3:
            return "JPEG"
    return None


def benchmarks_for(task: Task) -> tuple[Benchmark, ...]:
    kind = kind_of(task)
    return tuple(each for each in BENCHMARKS.values() if kind in each.kinds)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
