"""Beside the official code, in the same run: outputs, time, memory, and whole images.

    python benchmarks/official.py --official CHECKOUT [--out benchmarks/official.md]

CHECKOUT is a clone of huawei-noah/Pretrained-IPT, which needs einops. Both run the six-task model
with the same random weights in float32 on the CPU. Exit code 1 where our outputs differ, or where
our code is slower or takes more memory than theirs.
"""

# N batch, H W height and width, s scale

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import get_args

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from benchmarks.measuring import (
    ACTIONS,
    MEBIBYTE,
    circumstances,
    patches,
    peak_bytes,
    processor,
    saved_bytes_per_patch,
    seconds,
    table,
)
from benchmarks.official_code import SIZES, OfficialIPT, check_checkout
from pipeline.model_configs import Precision
from pipeline.models.ipt import IPT
from pipeline.models.published import from_published
from pipeline.restore import restore
from pipeline.tasks import PUBLISHED_ORDER, TASKS
from pipeline.tiling import Tiling

LIMIT = 1e-4  # of the difference, in largest outputs
TIMED = ("sr2", "sr4")
RESTORED = ("denoise30", "sr2")
HEIGHT, WIDTH = 100, 120  # one is a whole number of their strides, the other isn't
TILES = 64  # at a time, as theirs


@dataclass(kw_only=True)
class Findings:
    """The sections of the page, and what speaks against our code."""

    sections: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, title: str, text: str) -> None:
        self.sections.append(f"## {title}\n\n{text}")
        print(self.sections[-1], flush=True)

    def check(self, ratio: float, what: str) -> None:
        if ratio > 1:
            self.faults.append(f"{what}: {ratio:.3f} times the official code's")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--batch", type=int, default=4, help="patches in a step (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="of each timing (default: 5)")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    options = parser.parse_args()
    if complaint := check_checkout(options.official):
        print(complaint, file=sys.stderr)
        return 1
    size = SIZES[options.size]
    torch.manual_seed(0)
    official = OfficialIPT(options.official, size)
    ours = from_published(official.patchwise.state_dict(), attention_heads=size.attention_heads)
    findings = Findings()
    compare_outputs(ours, official, findings)
    compare_images(ours, official, findings, rounds=options.rounds)
    compare_kept(ours, official, findings)
    # Last: steps change the weights, each model's by its own rounding.
    compare_peaks(ours, official, findings, batch=options.batch)
    compare_steps(ours, official, findings, batch=options.batch, rounds=options.rounds)
    faults = "".join(f"- {fault}\n" for fault in findings.faults)
    findings.add("Verdict", faults or "Equal outputs; nowhere slower or larger.\n")
    if options.out is not None:
        head = f"# Beside the official code\n\n{circumstances(processor())}"
        options.out.write_text("\n".join([head, *findings.sections]))
    return 1 if findings.faults else 0


@torch.no_grad()
def compare_outputs(ours: IPT, official: OfficialIPT, findings: Findings) -> None:
    """Both against each other, and each against their model in float64."""
    x = patches(1, ours.config.size.patch_size)
    results = {task: (ours.eval()(x, task), official.eval()(x, task)) for task in PUBLISHED_ORDER}
    official.double()
    rows = []
    for task, (one, other) in results.items():
        exact = official(x.double(), task)
        pairs = ((one, other), (one, exact), (other, exact))
        largest = exact.abs().max().item()
        differences = [(a.double() - b).abs().max().item() / largest for a, b in pairs]
        rows.append([task, *(f"{each:.1e}" for each in differences)])
        if not differences[0] <= LIMIT:
            findings.faults.append(f"outputs of {task}: differ by {differences[0]:.1e}")
    official.float()
    header = ["task", "ours − official", "ours − float64", "official − float64"]
    note = f"Largest difference, in largest outputs; at most {LIMIT:.0e}.\n\n"
    findings.add("Outputs", note + table(header, rows))


def compare_steps(
    ours: IPT, official: OfficialIPT, findings: Findings, *, batch: int, rounds: int
) -> None:
    x = patches(batch, ours.config.size.patch_size)
    rows = []
    for task in TIMED:
        for name, what in ACTIONS.items():
            actions = [what(model, x, task) for model in (ours, official)]
            times = compare_times(*actions, rounds=rounds)
            findings.check(times.ratio, f"{name} of {task}, time")
            rows.append([name, task, *times.cells])
    header = ["", "task", "ours, s", "official, s", f"ratio (range of {rounds})"]
    findings.add(f"Time of {batch} patches", table(header, rows))


@dataclass(frozen=True, kw_only=True)
class Times:
    ratio: float  # of ours to theirs: the median of pairs taken one after the other
    cells: list[str]


def compare_times(
    ours: Callable[[], object], official: Callable[[], object], *, rounds: int
) -> Times:
    ours(), official()  # allocates, and makes what is made once
    pairs = [(seconds(ours), seconds(official)) for _ in range(rounds)]
    ratios = [one / other for one, other in pairs]
    one, other = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(ratios)
    spread = f"{ratio:.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    return Times(ratio=ratio, cells=[f"{one:.3f}", f"{other:.3f}", spread])


def compare_images(ours: IPT, official: OfficialIPT, findings: Findings, *, rounds: int) -> None:
    image = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    rows = []
    for task in RESTORED:
        ways = {
            "overlap, our default": lambda task=task: restored(ours, image, task, "overlap"),
            "official, ours": lambda task=task: restored(ours, image, task, "official"),
            "official, theirs": lambda task=task: official.restore(image[None], task)[0],
        }
        counts: dict[str, int] = {}
        results: dict[str, Tensor] = {}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(max(2, rounds // 2)):
            for name, way in ways.items():
                body = official.body if "theirs" in name else ours.body
                with counting(body) as count:
                    began = time.perf_counter()
                    results[name] = way()
                    times[name].append(time.perf_counter() - began)
                counts[name] = sum(count)
        expected = results["official, theirs"]
        for name in ways:
            pairs = zip(times[name], times["official, theirs"], strict=True)
            ratios = [one / other for one, other in pairs]
            difference = ((results[name] - expected).norm() / expected.norm()).item()
            if name == "official, ours":
                findings.check(median(ratios), f"whole image of {task}, time")
                if not difference <= LIMIT:
                    findings.faults.append(f"whole image of {task}: differs by {difference:.1e}")
            rows.append(
                [
                    task,
                    name,
                    str(counts[name]),
                    f"{median(times[name]) / (HEIGHT * WIDTH / 1e6):.0f}",
                    f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})",
                    f"{difference:.1e}",
                ]
            )
    header = ["task", "tiling", "patches", "s per megapixel", "ratio of times", "difference"]
    note = (
        f"{WIDTH}×{HEIGHT} pixels, {TILES} patches at a time; megapixels of the input. Differences "
    )
    note += "are root mean squares, in those of the official image.\n\n"
    findings.add("Whole images", note + table(header, rows))


def restored(ours: IPT, image: Tensor, task: str, tiling: Tiling) -> Tensor:
    return restore(
        lambda x: ours.eval()(x, task),
        image,
        scale=TASKS[task].scale,
        patch_size=ours.config.size.patch_size,
        tiling=tiling,
        batch=TILES,
    )


@contextmanager
def counting(body: nn.Module) -> Iterator[list[int]]:
    """How many patches pass a body, batch by batch."""
    counts: list[int] = []
    hook = body.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    try:
        yield counts
    finally:
        hook.remove()


def compare_kept(ours: IPT, official: OfficialIPT, findings: Findings) -> None:
    """What the forward pass of a patch keeps for the backward pass."""
    side = ours.config.size.patch_size
    rows = []
    for task in TIMED:

        def mebibytes(model: nn.Module, task: str = task) -> float:
            return saved_bytes_per_patch(model.train(), lambda x: model(x, task), side) / MEBIBYTE

        theirs = mebibytes(official)
        findings.check(mebibytes(ours) / theirs, f"activations of {task}")
        cells = [f"{theirs:.1f}"]
        for ours.activation_checkpointing in (False, True):
            for ours.precision in get_args(Precision):
                cells.append(f"{mebibytes(ours):.1f}")
        ours.precision, ours.activation_checkpointing = "float32", False
        rows.append([task, *cells])
    header = ["task", "official float32", "float32", "bfloat16"]
    header += ["float32, checkpointed", "bfloat16, checkpointed"]
    findings.add("Kept for the backward pass, MiB a patch", table(header, rows))


def compare_peaks(ours: IPT, official: OfficialIPT, findings: Findings, *, batch: int) -> None:
    x = patches(batch, ours.config.size.patch_size)
    rows = []
    for task in TIMED:
        for name, what in ACTIONS.items():
            mine, theirs = (
                peak_bytes(what(model, x, task)) / MEBIBYTE for model in (ours, official)
            )
            findings.check(mine / theirs, f"peak memory of {name} of {task}")
            rows.append([name, task, f"{mine:.1f}", f"{theirs:.1f}", f"{mine / theirs:.3f}"])
    note = "Tensors, beside weights and Adam's moments.\n\n"
    header = ["", "task", "ours, MiB", "official, MiB", "ratio"]
    findings.add(f"Peak memory of {batch} patches", note + table(header, rows))


if __name__ == "__main__":
    sys.exit(main())
