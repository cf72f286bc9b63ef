"""PSNR of the published DnCNNs on Set12, BSD68 and CBSD68 beside the published figures.

    python benchmarks/published_dncnn.py --author DnCNN --kair KAIR --saoyan DnCNN-PyTorch
        [--data FOLDER] [--out benchmarks/published_dncnn.md]

The folders are clones of the public repositories that hold the weights; any may be left out.
Exit code 1 where a figure differs from the published one by more than 0.02 dB under numpy's seed 0,
and in the mean over ten seeds too.
"""
# N batch, C channels, H W height and width

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.measuring import circumstances, processor, table
from benchmarks.pages import write_page
from pipeline.metrics import psnr, quantise, ssim
from pipeline.models.hub import ModelFileError
from pipeline.models.published_dncnn import read_published_dncnn

DATA = Path(__file__).parents[2] / "shared" / "data" / "benchmarks"
REPOSITORIES = {
    "author": "cszn/DnCNN",
    "kair": "cszn/KAIR",
    "saoyan": "SaoYan/DnCNN-PyTorch",
}
LIMIT = 0.02  # dB
# Nobody can draw the published noise again: the author's is of a MATLAB generator that nothing else
# has, SaoYan's had no seed. Where the first draw here misses the limit, the mean of these is held
# to it.
DRAWS = 10
# MATLAB's rgb2gray: BSD68 is CBSD68 through it.
GREY = (0.298936021293775, 0.587043074451121, 0.114020904255103)
EXPLANATION = f"""
Each by the protocol of those who published the figure: the noise is neither clipped nor rounded;
the author's tests draw it anew from the same seed for every image, and clip and round the result to
8 bits; SaoYan's draw on through the set and only clip. PSNR and SSIM of whole images, averaged.
BSD68 is MATLAB's `rgb2gray` of CBSD68. A figure agrees where numpy's seed 0 comes within {LIMIT} dB
of the published one or, as the published noise can't be drawn again, where the mean over seeds 0 to
{DRAWS - 1} does. Where it was needed, that mean and the standard deviation of one seed are given.

"""
HEADER = (
    "model",
    "weights",
    "test set",
    "σ",
    "measured, dB",
    "published",
    "difference",
    f"{DRAWS} seeds",
    "agrees",
    "SSIM",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file of a repository, and what it is published to reach on a test set."""

    model: str
    repository: str
    path: str
    test_set: str
    sigma_255: int
    published: float  # dB

    @property
    def is_saoyans(self) -> bool:
        """Measured as SaoYan's test does, not as the author's and KAIR's."""
        return self.repository == "saoyan"


@dataclass(frozen=True, kw_only=True)
class Score:
    row: Row
    psnrs: tuple[float, ...]  # dB, the mean over the images, for noise of seeds 0, 1, ...
    ssim: float  # for seed 0

    @property
    def difference(self) -> float:
        return self.psnrs[0] - self.row.published

    @property
    def agrees(self) -> bool:
        nearest = min(abs(self.difference), abs(self.mean - self.row.published))
        return nearest <= LIMIT

    @property
    def mean(self) -> float:
        return statistics.mean(self.psnrs)


def rows() -> list[Row]:
    """The published averages, of the READMEs of cszn/DnCNN and SaoYan/DnCNN-PyTorch; for colour of
    the table of cszn/DPIR."""
    published = [
        ("DnCNN-S", "author", "model/specifics/sigma={}.mat", "Set12", (32.859, 30.436, 27.178)),
        ("DnCNN-S", "author", "model/specifics/sigma={}.mat", "BSD68", (31.73, 29.23, 26.23)),
        ("DnCNN-B", "author", "model/GD_Gray_Blind.mat", "Set12", (32.680, 30.362, 27.206)),
        ("DnCNN-B", "author", "model/GD_Gray_Blind.mat", "BSD68", (31.61, 29.16, 26.23)),
        ("CDnCNN-B", "author", "model/GD_Color_Blind.mat", "CBSD68", (33.90, 31.24, 27.95)),
        ("DnCNN-S", "saoyan", "logs/DnCNN-S-{}/net.pth", "Set12", (32.837, 30.404, 27.165)),
        ("DnCNN-S", "saoyan", "logs/DnCNN-S-{}/net.pth", "BSD68", (31.71, 29.21, 26.22)),
        ("DnCNN-B", "saoyan", "logs/DnCNN-B/net.pth", "Set12", (32.725, 30.344, 27.138)),
        ("DnCNN-B", "saoyan", "logs/DnCNN-B/net.pth", "BSD68", (31.60, 29.15, 26.20)),
        ("DnCNN-3", "author", "model/DnCNN3.mat", "BSD68", (None, 29.02, None)),
        ("DnCNN-S", "kair", "model_zoo/dncnn_25.pth", "Set12", (None, 30.436, None)),
        ("DnCNN-S", "kair", "model_zoo/dncnn_25.pth", "BSD68", (None, 29.23, None)),
    ]
    return [
        Row(
            model=model,
            repository=repository,
            path=path.format(sigma),
            test_set=test_set,
            sigma_255=sigma,
            published=value,
        )
        for model, repository, path, test_set, values in published
        for sigma, value in zip((15, 25, 50), values, strict=True)
        if value is not None
    ]


def images(data: Path, test_set: str) -> list[Tensor]:
    """Each (1, C, H, W) in [0, 1]."""
    folder = data / ("CBSD68" if test_set == "BSD68" else test_set)
    files = sorted(folder.glob("*.png"))
    expected = 12 if test_set == "Set12" else 68
    if len(files) != expected:
        sys.exit(f"{folder}: {len(files)} PNG files, not {expected}; name their parent by --data")
    arrays = [np.atleast_3d(np.asarray(Image.open(file))) for file in files]  # (H, W, C)
    if test_set == "BSD68":
        arrays = [np.floor(each @ np.array(GREY) + 0.5)[..., None] for each in arrays]
    return [torch.from_numpy(each / 255).permute(2, 0, 1)[None] for each in arrays]


@torch.inference_mode()
def mean_scores(
    restore: Callable[[Tensor], Tensor], test_images: Sequence[Tensor], row: Row, *, seed: int
) -> tuple[float, float]:
    """PSNR and SSIM, each the mean over the images."""
    scores = []
    draws = np.random.RandomState(seed)  # the generator of KAIR's test
    for clean in test_images:
        if not row.is_saoyans:
            draws = np.random.RandomState(seed)
        noise = draws.normal(0, row.sigma_255 / 255, clean[0].permute(1, 2, 0).shape)  # (H, W, C)
        noisy = clean + torch.from_numpy(noise).permute(2, 0, 1)
        restored = restore(noisy.float()).double()
        restored = restored.clamp(0, 1) if row.is_saoyans else quantise(restored)
        scores.append((psnr(restored, clean).item(), ssim(restored, clean).item()))
    psnrs, ssims = zip(*scores, strict=True)
    return statistics.mean(psnrs), statistics.mean(ssims)


def score(row: Row, checkout: Path, test_images: Sequence[Tensor]) -> Score:
    model = read_published_dncnn(checkout / row.path)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # not in torch's types
    first, similarity = mean_scores(model, test_images, row, seed=0)
    found = Score(row=row, psnrs=(first,), ssim=similarity)
    if found.agrees:
        return found
    others = [mean_scores(model, test_images, row, seed=seed)[0] for seed in range(1, DRAWS)]
    return Score(row=row, psnrs=(first, *others), ssim=similarity)


def cells(found: Score) -> list[str]:
    row = found.row
    draws = ""
    if len(found.psnrs) > 1:
        draws = f"{found.mean:.3f} ± {statistics.stdev(found.psnrs):.3f}"
    return [
        row.model,
        f"`{REPOSITORIES[row.repository]}/{row.path}`",
        row.test_set,
        str(row.sigma_255),
        f"{found.psnrs[0]:.3f}",
        f"{row.published:.{3 if row.test_set == 'Set12' else 2}f}",
        f"{found.difference:+.3f}",
        draws,
        "yes" if found.agrees else "**no**",
        f"{found.ssim:.4f}",
    ]


def page(lines: Sequence[Sequence[str]]) -> str:
    title = "# The published DnCNNs, measured here\n\n"
    return title + circumstances(processor()) + EXPLANATION + table(HEADER, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, repository in REPOSITORIES.items():
        parser.add_argument(f"--{name}", type=Path, help=f"a clone of {repository}")
    parser.add_argument("--data", type=Path, default=DATA, help="holds Set12 and CBSD68")
    parser.add_argument("--out", type=Path, help="also write the page here")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = [row for row in rows() if getattr(arguments, row.repository) is not None]
    if not wanted:
        parser.error(f"give a clone: {', '.join(f'--{name}' for name in REPOSITORIES)}")
    sets = {name: images(arguments.data, name) for name in {row.test_set for row in wanted}}
    scores = []
    for row in wanted:
        try:
            scores.append(score(row, getattr(arguments, row.repository), sets[row.test_set]))
        except ModelFileError as error:
            sys.exit(str(error))
        print(*cells(scores[-1]), sep="  ", file=sys.stderr, flush=True)
    text = page([cells(each) for each in scores])
    write_page(text, arguments.out)
    return int(not all(each.agrees for each in scores))


if __name__ == "__main__":
    sys.exit(main())
