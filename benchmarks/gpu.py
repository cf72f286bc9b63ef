"""What a GPU makes of the model: agreement with the CPU, samples per second, utilisation, memory.

    python benchmarks/gpu.py [--batch 32,64,128,256] [--official CHECKOUT] [--out gpu.md]

The training loop first, then the model alone, as far as --minutes reach. Needs torch, numpy,
pydantic, huggingface_hub and safetensors, for the loop also accelerate, pillow, simplejpeg and
pypng, and no installation of this project. Weights and patches are random, the loop reads crops of
the demo's photographs. Exit code 1 where a result disagrees.
"""

# N batch, H W height and width

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from benchmarks.gpu_training import LoopRow, Request, measure_loop, page_of_loop, requests_of
from benchmarks.measuring import (
    ACTIONS,
    circumstances,
    patches,
    processor,
    seconds,
    table,
)
from benchmarks.modes import MODES, Agreement, Mode, built, compare, set_tf32
from benchmarks.official_code import SIZES, check_checkout
from benchmarks.pages import write_page
from pipeline.data.noise import noisy
from pipeline.model_configs import IPTConfig
from pipeline.models.ipt import IPT
from pipeline.tasks import PUBLISHED_ORDER, TASKS, GaussianNoise
from pipeline.training.model_facts import TRAINING_PASSES

ROW_SECONDS = 45.0  # that compiling and timing one may take: none is begun later
PASSES = {"inference": 1, "training": TRAINING_PASSES}


@dataclass(frozen=True, kw_only=True)
class Measured:
    mode: str
    what: str
    checkpointing: bool
    batch: int
    samples_per_second: float | None = None  # None: out of memory, or of time
    flops_per_second: float | None = None
    utilisation: float | None = None  # of the peak of the device, where that is known
    peak_bytes: int | None = None  # None on the CPU
    out_of_time: bool = False

    @property
    def speed(self) -> str:
        return written(
            self.samples_per_second, ".1f", "no time" if self.out_of_time else "out of memory"
        )


class Options(argparse.Namespace):
    device: str
    size: str
    task: str
    batch: str
    modes: str
    steps: int
    loop_batch: int
    loop_steps: int
    loop_samples: int
    minutes: float
    official: Path | None
    out: Path | None


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--task", choices=PUBLISHED_ORDER, default="sr2")
    parser.add_argument("--batch", default="32,64,128,256", metavar="N,N", help="patches at a time")
    # The first to be measured first: there may be no time for the last.
    modes = ",".join(reversed(MODES))
    parser.add_argument("--modes", default=modes, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="of each timing (default: 10)")
    parser.add_argument("--loop-batch", type=int, default=256, help="of a step; 0: no loop")
    parser.add_argument("--loop-steps", type=int, default=48, help="of the loop (default: 48)")
    parser.add_argument("--loop-samples", type=int, default=768, help="of each task's shard")
    parser.add_argument("--minutes", type=float, default=9, help="for all (default: 9)")
    parser.add_argument("--official", type=Path, metavar="CHECKOUT", help="their code beside ours")
    parser.add_argument("--out", type=Path, help="a Markdown file; JSON is written beside it")
    return parser.parse_args(namespace=Options())


def complaint_about(options: Options) -> str | None:
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        return "no GPU that torch can use was found; --device cpu measures the CPU"
    unknown = sorted(set(options.modes.split(",")) - set(MODES))
    if unknown:
        return f"--modes {', '.join(unknown)}: there are {', '.join(MODES)}"
    return check_checkout(options.official) if options.official else None


def main() -> int:
    options = parse()
    deadline = time.monotonic() + 60 * options.minutes
    if complaint := complaint_about(options):
        print(complaint, file=sys.stderr)
        return 1
    device = torch.device(options.device)
    config = IPTConfig(
        size=SIZES[options.size], scales={task: TASKS[task].scale for task in PUBLISHED_ORDER}
    )
    modes = [MODES[each] for each in options.modes.split(",")]
    agreements = [noise_agreement(device), *compare(config, options.task, modes, device)]
    modes += [Mode(official=True, tf32=each) for each in (False, True) if options.official]
    batches = [int(each) for each in options.batch.split(",")]
    loop, notes = training_loop(options, batches, deadline)
    measured = []
    for mode in modes:
        model = built(mode, config, options.official).to(device)
        for row in measure(model, mode, config, batches, options, deadline):
            print(f"{row.mode}, {row.what}, batch {row.batch}: {row.speed}", flush=True)
            measured.append(row)
        del model
    slower = slower_than_official(measured)
    page = f"# On a GPU\n\n{circumstances(device_name(device))}\n{page_of(agreements, measured)}"
    if loop or notes:
        page += f"\n{page_of_loop(loop, notes)}"
    page += "".join(f"\n{each}\n" for each in slower)
    write_page(page, options.out)
    if options.out is not None:
        record = {"device": device_name(device), "agreement": [asdict(each) for each in agreements]}
        record |= {"measured": [asdict(each) for each in measured]}
        record |= {"loop": [asdict(each) for each in loop], "notes": notes}
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(each.holds for each in agreements) and not slower else 1


def noise_agreement(device: torch.device) -> Agreement:
    """The noise that a training draws on the device, with that of the CPU: the same bits."""
    keys = torch.arange(-8, 8) * 0x0123456789ABCDEF
    clean = (patches(len(keys), 48) * 255).round().to(torch.uint8)
    differ = 0
    for clip in (False, True):
        spec = GaussianNoise(sigma_255=(0.0, 55.0), clip=clip)
        on_device = noisy(clean.to(device), keys.to(device), spec).cpu()
        on_cpu = noisy(clean, keys, spec).view(torch.int32)
        differ += int((on_device.view(torch.int32) != on_cpu).sum())
    return Agreement(
        what="noise with that of the CPU, numbers whose bits differ",
        output=float(differ),
        gradient=0.0,
        output_limit=0.0,
        gradient_limit=None,
    )


def training_loop(
    options: Options, batches: Sequence[int], deadline: float
) -> tuple[list[LoopRow], list[str]]:
    """Rows of the loop, with what `--batch` lists as its micro-batches, and what is missing."""
    if not options.loop_batch:
        return [], []
    first = Request(
        mode="float32",
        size=options.size,
        micro_batch=max(batches),
        batch=options.loop_batch,
        steps=options.loop_steps,
        samples=options.loop_samples,
    )
    requests = list(requests_of(options.modes.split(","), batches, first))
    on_gpu = options.device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()  # other processes need the memory now
    return measure_loop(requests, on_gpu=on_gpu, deadline=deadline)


def measure(
    model: nn.Module,
    mode: Mode,
    config: IPTConfig,
    batches: Sequence[int],
    options: Options,
    deadline: float,
) -> Iterator[Measured]:
    """Inference and training at every batch size; at the largest, also with checkpointing."""
    set_tf32(mode.tf32)
    for batch in batches:
        torch.compiler.reset()  # else the compiler gives up at its eighth variant
        kinds = [("inference", False), ("training", False)]
        if batch == max(batches) and not mode.official:
            kinds.append(("training", True))
        for what, checkpointing in kinds:
            if isinstance(model, IPT):  # the official code knows none
                model.activation_checkpointing = checkpointing
            x = patches(batch, config.size.patch_size).to(options.device)
            row = Measured(mode=mode.name, what=what, checkpointing=checkpointing, batch=batch)
            if time.monotonic() > deadline - ROW_SECONDS:
                yield replace(row, out_of_time=True)
                continue
            try:
                took, peak = timed(ACTIONS[what](model, x, options.task), x.device, options.steps)
            except torch.cuda.OutOfMemoryError:
                yield row
                continue
            finally:
                model.zero_grad()
            flops = PASSES[what] * config.flops(options.task).total * batch / took
            of_peak = mode.peak(device_name(x.device))
            yield replace(
                row,
                samples_per_second=batch / took,
                flops_per_second=flops,
                utilisation=flops / of_peak if of_peak else None,
                peak_bytes=peak,
            )


def timed(action: Callable[[], None], device: torch.device, steps: int) -> tuple[float, int | None]:
    """Seconds of one action, after three to warm up, and the most memory that was allocated."""
    on_gpu = device.type == "cuda"

    def run(times: int) -> None:
        for _ in range(times):
            action()
        if on_gpu:
            torch.cuda.synchronize(device)

    run(3)
    if on_gpu:  # not before: compiling tries kernels out
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    took = seconds(lambda: run(steps)) / steps
    return took, torch.cuda.max_memory_allocated(device) if on_gpu else None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def slower_than_official(measured: Sequence[Measured]) -> list[str]:
    """A sentence per measurement in which the official code is faster at the same precision."""
    ours = {(each.mode, each.what, each.batch): each for each in measured if not each.checkpointing}
    sentences = []
    for each in measured:
        mode = each.mode.removeprefix("official ")
        mine = ours.get((mode, each.what, each.batch))
        if mode == each.mode or mine is None or mine.out_of_time or not each.samples_per_second:
            continue
        if mine.samples_per_second is None or mine.samples_per_second < each.samples_per_second:
            sentences.append(f"Slower than the official code: {mode}, {each.what}, {each.batch}.")
    return sentences


def page_of(agreements: Sequence[Agreement], measured: Sequence[Measured]) -> str:
    def limited(value: float, limit: float | None) -> str:
        return f"{value:.1e}" + (f" (at most {limit:.0e})" if limit is not None else "")

    agreement_rows = [
        [
            each.what,
            limited(each.output, each.output_limit),
            limited(each.gradient, each.gradient_limit),
        ]
        for each in agreements
    ]
    rows = [
        [
            each.mode,
            each.what + (", checkpointed" if each.checkpointing else ""),
            str(each.batch),
            each.speed,
            written(each.flops_per_second, ".2e"),
            written(each.utilisation, ".1%"),
            written(each.peak_bytes and each.peak_bytes / 2**30, ".2f"),
        ]
        for each in measured
    ]
    header = ["mode", "what", "batch", "samples/s", "model FLOP/s", "of the peak", "GiB"]
    return (
        f"## Agreement\n\n{table(['', 'output', 'gradient'], agreement_rows)}\n"
        f"## Speed and memory\n\n{table(header, rows)}"
    )


def written(value: float | None, form: str, otherwise: str = "–") -> str:
    return otherwise if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
