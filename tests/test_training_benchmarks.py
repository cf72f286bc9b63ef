"""The benchmarks of the training loop, on CPUs and as on a GPU, at a size that takes seconds."""

import json
import math
from pathlib import Path

import pytest
from test_benchmarks import run_script

from benchmarks.gpu import Measured, slower_than_official
from benchmarks.gpu_training import (
    NEEDED,
    LoopRow,
    Request,
    measure_loop,
    page_of_loop,
    requests_of,
    with_pauses,
)
from benchmarks.modes import MODES
from benchmarks.official_code import SIZES
from benchmarks.training import Pairs, judged
from benchmarks.training_samples import Ticks, Times
from pipeline.model_configs import IPTConfig
from pipeline.tasks import PUBLISHED_ORDER, TASKS

REQUEST = Request(mode="float32", size="small", micro_batch=64, batch=256, steps=48, samples=16)


@pytest.mark.slow
def test_gpu_benchmark_measures_the_training_loop_and_keeps_to_its_time(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"

    done = run_script(
        "gpu.py",
        *("--device", "cpu", "--size", "small", "--batch", "8", "--steps", "1"),
        *("--loop-batch", "16", "--loop-steps", "6", "--loop-samples", "16", "--modes", "float32"),
        *("--minutes", "4", "--out", str(out)),
        folder=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    record = json.loads(out.with_suffix(".json").read_text())
    asked = [
        (each["request"]["micro_batch"], each["request"]["deterministic"], len(each["pauses"]))
        for each in record["loop"]
        if not each["why_not"]
    ]
    expected = [(8, False, 1), (8, False, 3), (8, True, 1)]
    assert asked == expected[: len(asked)]
    assert len(record["loop"]) == len(expected)
    scales = {name: TASKS[name].scale for name in PUBLISHED_ORDER}
    costs = IPTConfig(size=SIZES["small"], scales=scales)
    flops = sum(costs.flops(name).total for name in scales)
    for each in record["loop"][: len(asked)]:
        of_one = each["model_tflops"] * 1e12 / each["samples_per_second"]
        assert of_one == pytest.approx(3 * flops / 6, rel=1e-6)
        assert 0 <= each["data_wait"] < 1
        assert each["mfu"] is None
    page = out.read_text()
    assert "## The training loop" in page
    assert "No utilisation is given" in page
    late = [each for each in record["loop"] if each["why_not"]]
    assert all("the time was up" in each["why_not"] for each in late)


def test_gpu_benchmark_plans_a_sweep_and_what_stands_beside_it() -> None:
    requests = list(requests_of(list(MODES), [32, 64, 128, 256], REQUEST))

    rows = [(each.name, each.micro_batch, each.steps) for each in requests]
    assert rows == [
        *(("bfloat16 compiled", size, 48) for size in (256, 128, 64, 32)),
        ("float32", 128, 12),
        ("bfloat16", 128, 48),
        ("bfloat16 compiled, a checkpoint every 24 steps", 128, 72),
        ("bfloat16 compiled, deterministic", 128, 48),
    ]


def test_gpu_benchmark_says_which_package_keeps_it_from_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(NEEDED, "flux-capacitor", "flux_capacitor")

    rows, notes = measure_loop([REQUEST], on_gpu=False, deadline=math.inf)

    assert rows == []
    (note,) = notes
    assert "was not measured: flux-capacitor isn't installed here (pip install" in note
    assert note in page_of_loop(rows, notes)


def test_gpu_benchmark_judges_the_targets_by_what_was_measured() -> None:
    def row(**values: object) -> LoopRow:
        return LoopRow(request=REQUEST, samples_per_second=1.0, step_seconds=256.0, **values)

    fast = page_of_loop([row(mfu=0.41, data_wait=0.01), row(mfu=0.2, data_wait=0.02)], [])
    slow = page_of_loop([row(mfu=0.2, data_wait=0.04)], [])
    nothing = page_of_loop([LoopRow(request=REQUEST, why_not="not begun: the time was up")], [])

    assert "Target of 40% of the peak: reached, with 41.0%" in fast
    assert "a data wait under 3%: met, with 2.00% at most" in fast
    assert "Target of 40% of the peak: missed, with 20.0%" in slow
    assert "under 3%: missed, with 4.00%" in slow
    assert "Target" not in nothing
    assert "| float32 | 64 | not begun: the time was up |" in nothing


def test_a_row_that_there_was_no_time_for_is_not_slower_than_the_official_code() -> None:
    left_out = Measured(
        mode="float32", what="training", checkpointing=False, batch=4, out_of_time=True
    )
    theirs = Measured(
        mode="official float32",
        what="training",
        checkpointing=False,
        batch=4,
        samples_per_second=2.0,
    )

    assert slower_than_official([left_out, theirs]) == []
    assert left_out.speed == "no time"


@pytest.mark.chaos
def test_training_is_measured_beside_the_bare_step_and_in_two_processes(tmp_path: Path) -> None:
    out = tmp_path / "training.md"

    done = run_script(
        "training.py",
        *("--size", "tiny", "--steps", "6", "--repeats", "1", "--launches", "1"),
        *("--samples", "16", "--out", str(out)),
    )

    assert done.returncode in (0, 1), done.stderr  # 1: more than the limit, as on a busy machine
    page = out.read_text()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in page.splitlines() if line.startswith("| "))
    }
    assert rows["bare step"][1::2] == ["+0.0%"] * 3
    for name in ("loop", "loop, a checkpoint every 3 steps", "ddp", "zero1"):
        assert float(rows[name][0]) > 0
    bare, loop = (float(rows[name][0]) for name in ("bare step", "loop"))
    assert float(rows["loop"][1].strip("+%")) == pytest.approx(100 * (loop / bare - 1), abs=2)
    assert "ZeRO 1 / ddp: " in page


def test_step_times_are_compared_task_by_task() -> None:
    times = Times()
    times.add([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 12], [1] * 12)
    times.add([1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6], [1] * 12)

    assert times.median_clock == pytest.approx(3.5)  # neither the 7 nor the 12
    assert times.best_clock == pytest.approx(3.5)


def test_a_cycle_is_compared_with_the_bare_ones_around_it() -> None:
    def ticks(*cycles: float) -> Ticks:
        found = Ticks()
        for seconds in cycles:
            found.clock += [seconds / 6] * 6
            found.processor += [seconds / 12] * 6
        return found

    pairs = Pairs()
    pairs.add(ticks(99, 3, 6), [ticks(1), ticks(3), ticks(5)])  # the first warms up

    assert pairs.clock == pytest.approx([1.5, 1.5])
    assert pairs.processor == pytest.approx([1.5, 1.5])


def test_the_overhead_is_judged_by_the_clock_only_on_a_free_machine() -> None:
    def bare(clock: float, processor: float) -> dict[str, Times]:
        return {"bare step": Times(clock=[clock] * 6, processor=[processor] * 6)}

    assert judged(bare(1.0, 1.0), Pairs(clock=[1.09], processor=[1.2]))[1] is False
    assert judged(bare(1.0, 1.0), Pairs(clock=[1.11], processor=[1.0]))[1] is True
    sentence, is_missed = judged(bare(4.0, 1.0), Pairs(clock=[2.0], processor=[1.05]))
    assert is_missed is False
    assert "met, +5.0% by CPU seconds: other programs took 75%" in sentence


def test_the_rate_with_checkpoints_counts_the_time_that_they_take() -> None:
    record = {"step_seconds": 1.0, "samples_per_second": 256.0, "model_tflops": 40.0, "mfu": None}

    found = with_pauses(record, [1.0, 1.0, 1.0, 3.0, 1.0, 5.0])

    assert found == {"step_seconds": 2.0, "samples_per_second": 128.0, "model_tflops": 20.0}
