"""The training loop on a GPU: `fit` with its loader, noise, log and checkpoints, at full size.

Started by benchmarks/gpu.py. Each row is a process of its own, so that none takes another's memory
or settings, and ends when the time is up: python benchmarks/gpu_training.py REQUEST.json
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, cast

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measuring import table
from benchmarks.modes import MODES

# Beside what gpu.py itself needs: package, module.
NEEDED = {"accelerate": "accelerate", "simplejpeg": "simplejpeg", "pypng": "png"}
OPTIONAL = {"tensorboard": "tensorboard", "deepspeed": "deepspeed"}
CYCLE = 6  # steps in which each task is trained once
NEVER = 10**9
CHECKPOINT_STEPS = 24  # time enough to write one before the next
TARGET, MOST_WAIT = 0.4, 0.03  # model FLOPs utilisation, data wait
LEAST_SECONDS = 20.0  # a row that has less is not begun


@dataclass(frozen=True, kw_only=True)
class Request:
    mode: str  # of MODES
    size: str
    micro_batch: int
    batch: int  # of a step; several micro-batches are accumulated
    steps: int  # after those that warm up
    samples: int  # of each task in its shard
    checkpoint_every: int = NEVER
    deterministic: bool = False
    workers: int = 4

    @property
    def name(self) -> str:
        words = [MODES[self.mode].name]
        words += ["deterministic"] if self.deterministic else []
        if self.checkpoint_every < NEVER:
            words.append(f"a checkpoint every {self.checkpoint_every} steps")
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class LoopRow:
    request: Request
    why_not: str = ""  # measured; else a sentence
    samples_per_second: float | None = None
    step_seconds: float | None = None
    model_tflops: float | None = None
    mfu: float | None = None  # of the peak of the device, where that is known
    data_wait: float | None = None
    memory_gib: float | None = None  # the peak after the steps that warm up
    pauses: tuple[float, ...] = ()  # seconds that the training waited for each checkpoint
    writes: tuple[float, ...] = ()
    trackers: tuple[str, ...] = ()


def requests_of(
    modes: Sequence[str], micro_batches: Sequence[int], first: Request
) -> Iterator[Request]:
    """The sweep in the fastest mode; the others, checkpoints and determinism at one size of it."""
    known = [each for each in modes if not MODES[each].tf32]  # which no config of a run asks for
    fastest = "compiled" if "compiled" in known else known[0]
    for micro_batch in sorted(micro_batches, reverse=True):
        yield replace(first, mode=fastest, micro_batch=micro_batch)
    middle = sorted(micro_batches)[-2:][0]
    beside = replace(first, mode=fastest, micro_batch=middle)
    for mode in known:
        if mode != fastest:  # float32 takes ten times as long
            steps = first.steps if mode == "bfloat16" else 2 * CYCLE
            yield replace(beside, mode=mode, steps=min(first.steps, steps))
    every = min(CHECKPOINT_STEPS, first.steps)
    yield replace(beside, checkpoint_every=every, steps=3 * every)
    yield replace(beside, deterministic=True)


def measure_loop(
    requests: Sequence[Request], *, on_gpu: bool, deadline: float
) -> tuple[list[LoopRow], list[str]]:
    """A row for each request, and sentences for what is missing here; until `deadline`, of
    `time.monotonic`."""
    absent = [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        return [], [
            f"The training loop was not measured: {', '.join(absent)} isn't installed here "
            f"(pip install {' '.join(absent)})."
        ]
    notes = [
        f"{name} isn't installed here: {what}."
        for name, what in {
            "tensorboard": "the log is metrics.jsonl and lines alone",
            "deepspeed": "no ZeRO; one process trains by plain PyTorch",
        }.items()
        if importlib.util.find_spec(OPTIONAL[name]) is None
    ]
    from benchmarks.official_code import SIZES
    from benchmarks.training_samples import make_streams

    rows = []
    with tempfile.TemporaryDirectory(prefix="ipt-gpu-") as name:
        folder = Path(name)
        patch_size = SIZES[requests[0].size].patch_size
        make_streams(folder / "shards", requests[0].samples, patch_size)
        for number, request in enumerate(requests):
            with tempfile.TemporaryDirectory(prefix=f"{number}-", dir=folder) as run:
                row = in_its_process(request, Path(run), on_gpu=on_gpu, deadline=deadline)
            rows.append(row)
            rate = row.why_not or f"{row.samples_per_second:.1f} samples/s"
            print(f"loop, {request.name}, micro-batch {request.micro_batch}: {rate}", flush=True)
    return rows, notes


def in_its_process(request: Request, run: Path, *, on_gpu: bool, deadline: float) -> LoopRow:
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS:
        return LoopRow(request=request, why_not="not begun: the time was up")
    path = run / "request.json"
    path.write_text(json.dumps(asdict(request)))
    environment = os.environ | ({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=left,
        )
    except subprocess.TimeoutExpired:
        return LoopRow(request=request, why_not="not finished: the time was up")
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return LoopRow(request=request, why_not=f"failed: {lines[-1][:200]}")
    record: dict[str, Any] = json.loads((run / "row.json").read_text())
    record |= {name: tuple(record[name]) for name in ("pauses", "writes", "trackers")}
    return LoopRow(request=request, **record)


def main(path: Path) -> None:
    """The process of a row."""
    from benchmarks.official_code import SIZES
    from benchmarks.training_samples import reopened, train, training_config
    from pipeline.config import Runtime

    request = Request(**json.loads(path.read_text()))
    mode = MODES[request.mode]
    trackers = [each for each in ("tensorboard",) if importlib.util.find_spec(each) is not None]
    trained = train(
        reopened(path.parents[1] / "shards"),
        path.parent,
        size=SIZES[request.size],
        config=training_config(
            batch=request.batch,
            samples=request.batch * (CYCLE + request.steps),
            precision=mode.precision,
            deterministic=request.deterministic,
        ),
        runtime=Runtime.model_validate(
            {
                "workers": request.workers,
                "micro_batch": request.micro_batch,
                "compile": mode.compiled,
                "log_every_steps": CYCLE,
                "images_every_steps": NEVER,
                "checkpoint_every_steps": request.checkpoint_every,
                "keep_checkpoints": 2,
                "trackers": trackers,
            }
        ),
    )
    names = ("samples_per_second", "step_seconds", "model_tflops", "mfu", "data_wait")
    record: dict[str, Any] = {name: trained.steady(name) for name in names}
    saves = trained.saves
    if request.checkpoint_every < NEVER:
        saves = saves[:-1]  # at the end, which comes too soon after the one before
        steps = [cast(float, row["step_seconds"]) for row in trained.rows[1:]]
        record |= with_pauses(record, steps)
    record["memory_gib"] = trained.rows[-1]["memory_gib"]
    record["writes"], record["pauses"] = zip(*saves, strict=True)
    record["trackers"] = trackers
    (path.parent / "row.json").write_text(json.dumps(record))


def with_pauses(record: Mapping[str, float | None], steps: Sequence[float]) -> dict[str, float]:
    """The rates of all steps, of which the median leaves out those that wait for a checkpoint."""
    step = record["step_seconds"]
    assert step is not None
    rates = ("samples_per_second", "model_tflops", "mfu")
    slower = {name: value * step / mean(steps) for name in rates if (value := record[name])}
    return {**slower, "step_seconds": mean(steps)}


def page_of_loop(rows: Sequence[LoopRow], notes: Sequence[str]) -> str:
    """The section of the page, with what the targets ask for."""
    parts = ["## The training loop\n"]
    if rows:
        first = rows[0].request
        parts.append(
            f"`fit`, one task in each step, {first.batch} samples a step, contrastive loss, "
            f"{first.workers} workers that read npy shards, noise drawn on the device; medians of "
            f"{CYCLE} steps each, after {CYCLE} that warm up; with checkpoints, the mean.\n"
        )
        header = ["mode", "micro-batch", "samples/s", "ms a step", "model TFLOP/s"]
        header += ["of the peak", "data wait", "GiB"]
        parts.append(table(header, [_cells(each) for each in rows]))
    parts += [*_checkpoint_sentences(rows), *_target_sentences(rows)]
    return "\n".join([*parts, *(f"{each}\n" for each in notes)])


def _cells(row: LoopRow) -> list[str]:
    request = row.request
    cells = [request.name, str(request.micro_batch)]
    if row.why_not:
        return [*cells, row.why_not, *[""] * 5]
    assert row.samples_per_second is not None
    assert row.step_seconds is not None
    return [
        *cells,
        f"{row.samples_per_second:.1f}",
        f"{row.step_seconds * 1000:.0f}",
        _written(row.model_tflops, ".3g"),
        _written(row.mfu, ".1%"),
        _written(row.data_wait, ".2%"),
        _written(row.memory_gib, ".2f"),
    ]


def _written(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _checkpoint_sentences(rows: Sequence[LoopRow]) -> Iterator[str]:
    for row in rows:
        if row.request.checkpoint_every < NEVER and row.pauses:
            first, *later = row.pauses
            yield (
                f"A checkpoint pauses the training for {first:.2f} s the first time, which takes "
                f"the memory for the copy, and for {_written(median(later or [first]), '.2f')} s "
                f"after that (the wait for the one before included); it is written in "
                f"{median(row.writes):.2f} s beside the training.\n"
            )


def _target_sentences(rows: Sequence[LoopRow]) -> Iterator[str]:
    plain = [row for row in rows if row.request.checkpoint_every == NEVER and row.mfu is not None]
    if not plain:
        yield "No utilisation is given: no device was measured whose peak is known here.\n"
        return
    best = max(plain, key=lambda row: row.mfu or 0)
    verdict = "reached" if (best.mfu or 0) >= TARGET else "missed"
    waits = [row.data_wait for row in plain if row.data_wait is not None]
    waited = "met" if max(waits) < MOST_WAIT else "missed"
    yield (
        f"Target of {TARGET:.0%} of the peak: {verdict}, with {best.mfu:.1%} at a micro-batch of "
        f"{best.request.micro_batch} ({best.request.name}). Target of a data wait under "
        f"{MOST_WAIT:.0%}: {waited}, with {max(waits):.2%} at most.\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
