"""DnCNN at σ 25, shortened: the pipeline beside a plain PyTorch loop of the same recipe.

    python -m benchmarks.dncnn [--seeds 4] [--steps 120] [--out benchmarks/dncnn.md]

The pipeline runs configs/dncnn.yaml from the photographs to the model. The plain loop shares
nothing with it but torch, the photographs and the measurement. Once it is also given the pipeline's
own batches. Exit code 1 where learning curves differ by more than chance, or rounding, explains.
"""
# N batch, H W height and width; images have one channel and are in [0, 1]

import argparse
import contextlib
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.dncnn_curves import SAME, Judged, Point, Training, furthest, judged, page
from benchmarks.measuring import circumstances, processor
from benchmarks.pages import write_page
from benchmarks.plain_dncnn import (
    PARTS,
    PATCH_SIZE,
    SIGMA_255,
    Photograph,
    PlainLoop,
    Recipe,
)
from benchmarks.published_dncnn import images, mean_scores, rows
from benchmarks.runs import DATA, ROOT, RunError, run_pipeline
from benchmarks.training_samples import first_batches
from launch.export import export
from pipeline.config_file import load_config
from pipeline.data.streams import open_stream
from pipeline.models.dncnn import DnCNN
from pipeline.tasks import task_named
from pipeline.training.objectives import as_images

# A side of what the models in between are measured on: Set12 whole takes as long as training on
# 400 patches.
CENTRE = 128
TASK = "grey25"

Measure = Callable[[Callable[[Tensor], Tensor], bool], float]  # a denoiser, is it final: dB


class Options(argparse.Namespace):
    data: Path
    seeds: int
    steps: int
    batch: int
    depth: int
    features: int
    threads: int
    out: Path | None


def measure_on_set12(data: Path) -> Measure:
    """PSNR of a denoiser in the mean over Set12, as the published figures were measured: noise of
    seed 0 for each image. Final models are measured on whole images, others on their centres."""
    whole = images(data / "benchmarks", "Set12")
    corners = [[(side - CENTRE) // 2 for side in image.shape[-2:]] for image in whole]
    centres = [
        image[..., top : top + CENTRE, left : left + CENTRE]
        for image, (top, left) in zip(whole, corners, strict=True)
    ]
    row = next(row for row in rows() if (row.test_set, row.sigma_255) == ("Set12", SIGMA_255))

    def measure(restore: Callable[[Tensor], Tensor], is_final: bool) -> float:
        return mean_scores(restore, whole if is_final else centres, row, seed=0)[0]

    return measure


def pipeline_training(
    recipe: Recipe, seed: int, *, data: Path, measure: Measure, threads: int, runs: Path
) -> Training:
    photographs = data / "train" / "Train400"
    trained_on = len(list(photographs.glob("*.png"))) - 1  # validation_images
    part = recipe.steps // PARTS
    values = {
        "seed": seed,
        "sources.train400.path": photographs,
        "evaluate.benchmarks": data / "benchmarks",
        "corrupt.crops_per_image": -(-recipe.steps * recipe.batch // trained_on),  # one pass
        f"dncnn.{TASK}.samples": recipe.steps * recipe.batch,
        f"dncnn.{TASK}.batch": recipe.batch,
        f"dncnn.{TASK}.statistics_batch": recipe.batch,
        f"dncnn.{TASK}.model.depth": recipe.depth,
        f"dncnn.{TASK}.model.features": recipe.features,
        "runtime.runs": runs,
        "runtime.threads_per_process": threads,
        "runtime.log_every_steps": part,
        "runtime.checkpoint_every_steps": part,
        "runtime.keep_every_steps": part,
    }
    settings = (f"{name}={value}" for name, value in values.items())
    run_pipeline("dncnn", settings, "--until", f"dncnn-{TASK}")
    (folder,) = (runs / "dncnn" / f"dncnn-{TASK}").glob("[!.]*")
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told] == recipe.ends
    models = [runs / f"step {step}" for step in recipe.ends[:-1]]
    with contextlib.redirect_stdout(io.StringIO()):
        for step, model in zip(recipe.ends, models, strict=False):
            export(folder / "checkpoints" / f"step-{step:08d}", out=model, raw=False)
    psnrs = [measure(DnCNN.from_pretrained(model), False) for model in models]
    return Training(
        fits=[fit_in_db(row["loss"]) for row in told],
        psnrs=[*psnrs, measure(DnCNN.from_pretrained(folder / "model"), True)],
        seconds=told[-1]["seconds"],
    )


def batches_of(recipe: Recipe, seed: int, runs: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """What the pipeline trained on in `runs`: clean patches and their noise, batch by batch."""
    (shards,) = (runs / "dncnn" / f"corrupt-{TASK}@train400").glob("[!.]*")
    stream = open_stream(shards, task_named(TASK, clip_noise=False), split="train")
    config = load_config(ROOT / "configs" / "dncnn.yaml", (f"dncnn.{TASK}.batch={recipe.batch}",))
    for batch in first_batches({TASK: stream}, config.dncnn[TASK], recipe.steps, seed=seed):
        noisy, clean = (as_images(each) for each in batch[TASK])
        yield clean, noisy - clean


def fit_in_db(loss: float) -> float:
    """The PSNR of patches with half of such a squared error."""
    return -10 * math.log10(2 * loss / PATCH_SIZE**2)


def plain_training(
    recipe: Recipe,
    seed: int,
    *,
    photographs: Sequence[Photograph],
    measure: Measure,
    given: Iterator[tuple[Tensor, Tensor]] | None = None,
) -> Training:
    """On batches of its own drawing, or on those that are given, of clean patches and noise."""
    loop = PlainLoop(recipe, seed, photographs=photographs)

    def step(number: int) -> float:
        return loop.step(number) if given is None else loop.step_on(*next(given), number)

    fits: list[float] = []
    psnrs: list[float] = []
    seconds = 0.0
    for end in recipe.ends:
        began = time.perf_counter()
        losses = [step(number) for number in range(end - recipe.steps // PARTS, end)]
        seconds += time.perf_counter() - began
        fits.append(fit_in_db(sum(losses) / len(losses)))
        psnrs.append(measure(loop.restore, end == recipe.steps))
    return Training(fits=fits, psnrs=psnrs, seconds=seconds)


def points_of(recipe: Recipe, ours: Sequence[Training], plain: Sequence[Training]) -> list[Point]:
    """The points of the curves: the loss of every part, then the PSNR after it."""
    firsts = [1, *(end + 1 for end in recipe.ends)]
    names = [f"loss, steps {a}–{b}" for a, b in zip(firsts, recipe.ends, strict=False)]
    names += [f"Set12's centres, step {end}" for end in recipe.ends[:-1]]
    names.append(f"Set12, step {recipe.steps}")
    columns = [
        zip(*(each.fits + each.psnrs for each in side), strict=True) for side in (ours, plain)
    ]
    return [
        Point(where=where, is_loss=where.startswith("loss"), pipeline=left, plain=right)
        for where, left, right in zip(names, *columns, strict=True)
    ]


def parse() -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="train/Train400, benchmarks/Set12")
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each (default: 4)")
    parser.add_argument("--steps", type=int, default=120, help="of a training (default: 120)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--depth",
        type=int,
        default=6,
        help="of the model (default: 6); DnCNN-S's 17 learn nothing in so few steps",
    )
    parser.add_argument("--features", type=int, default=64, help="of the model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the page here")
    options = parser.parse_args(namespace=Options())
    if options.seeds < 2 or options.steps % PARTS:
        parser.error(f"--seeds is at least 2, --steps a multiple of {PARTS}")
    options.data = options.data.resolve()
    return options


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    recipe = Recipe(
        steps=options.steps, batch=options.batch, depth=options.depth, features=options.features
    )
    measure = measure_on_set12(options.data)
    files = sorted((options.data / "train" / "Train400").glob("*.png"))
    photographs = [np.asarray(Image.open(file)) for file in files]
    ours: list[Training] = []
    plain: list[Training] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory(prefix="ipt-dncnn-") as runs:
            ours.append(
                pipeline_training(
                    recipe,
                    seed,
                    data=options.data,
                    measure=measure,
                    threads=options.threads,
                    runs=Path(runs),
                )
            )
            if seed == 0:
                given = batches_of(recipe, seed, Path(runs))
                same = plain_training(
                    recipe, seed, photographs=photographs, measure=measure, given=given
                )
        plain.append(plain_training(recipe, seed, photographs=photographs, measure=measure))
        print(f"seed {seed}: {ours[-1]} beside {plain[-1]}", file=sys.stderr, flush=True)
    found: list[Judged] = judged(points_of(recipe, ours, plain))
    machine = f"{processor()}, {os.cpu_count()} cores, load average {load:.1f} at the start"
    apart = furthest(ours[0], same)
    text = page(circumstances(machine), recipe, found, apart, ours=ours, plain=plain)
    write_page(text, options.out)
    return int(not all(each.agrees for each in found) or not apart <= SAME)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RunError as error:
        sys.exit(str(error))
