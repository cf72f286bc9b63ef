"""The benchmark scripts, started as a person starts them, at a size that takes seconds."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_samples import write_photographs
from demo_run import Run
from torch import nn

from benchmarks.gpu import Measured, slower_than_official
from benchmarks.measuring import peak_bytes, saved_bytes
from benchmarks.modes import MODES
from benchmarks.official_code import SIZES
from pipeline.model_configs import IPTConfig

ROOT = Path(__file__).parents[1]
SMALL_FLOPS = IPTConfig(size=SIZES["small"], scales={"sr2": 2}).flops("sr2").total


def run_script(name: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_gpu_benchmark_measures_every_mode(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"

    done = run_script(
        "gpu.py",
        *("--device", "cpu", "--size", "small", "--batch", "1,2", "--steps", "1"),
        *("--modes", "float32,bfloat16", "--loop-batch", "0", "--out", str(out)),
        folder=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    record = json.loads(out.with_suffix(".json").read_text())
    rows = [(each["mode"], each["what"], each["batch"]) for each in record["measured"]]
    assert len(rows) == 2 * (2 + 3)  # modes; the larger batch also with checkpointing
    assert len(set(rows)) == 2 * 2 * 2
    for each in record["measured"]:
        passes = 3 if each["what"] == "training" else 1
        of_one = each["flops_per_second"] / each["samples_per_second"] / passes
        assert of_one == pytest.approx(SMALL_FLOPS)
    by_what = {each["what"]: each for each in record["agreement"]}
    assert by_what["float32 with that of the CPU"]["output"] == 0
    assert 0 < by_what["bfloat16 with float32"]["output"] < 0.1
    assert "| bfloat16 | training, checkpointed | 2 |" in out.read_text()


@pytest.mark.parametrize(
    ("name", "arguments", "code", "sentence"),
    [
        ("gpu", (), 1, "no GPU that torch can use was found"),
        ("gpu", ("--device", "cpu", "--modes", "fp8"), 1, "--modes fp8: there are float32, "),
        ("gpu", ("--device", "cpu", "--official", "."), 1, ".: not a checkout of huawei-noah/"),
        ("official", ("--official", "absent"), 1, "absent: not a checkout of huawei-noah/"),
        ("tilings", (), 0, "make demo first"),
        ("tilings", ("--weights", "absent"), 1, "absent: no such folder"),
    ],
)
def test_benchmarks_say_what_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    script = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert script.main() == code

    output = capsys.readouterr()
    assert sentence in output.out + output.err


def test_gpu_benchmark_imports_little() -> None:
    """A machine with a GPU has torch and hardly anything else."""
    code = "import sys, benchmarks.gpu; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert {"torch", "pydantic"} <= set(found)
    others = {"accelerate", "deepspeed", "datasets", "webdataset", "simplejpeg", "rich", "h5py"}
    assert not set(found) & others


@pytest.mark.slow
def test_tilings_of_a_trained_model_are_compared(finished: Run) -> None:
    (weights,) = finished.folder.glob("finetune-sr2/*/model")

    done = run_script("tilings.py", "--weights", str(weights))

    assert done.returncode == 0, done.stderr
    row = [cell.strip() for cell in done.stdout.strip().splitlines()[-1].split("|")]
    task, images, overlap, official, difference = row[2:7]
    assert (task, images) == ("sr2", "2")
    assert float(difference) == pytest.approx(float(official) - float(overlap), abs=2e-3)
    assert 0 < abs(float(difference)) < 1


@pytest.mark.slow
def test_loading_is_measured_beside_stock_readers(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 40, height=200, width=220)
    out = tmp_path / "loader.md"

    done = run_script(
        "loader.py",
        *("--source", str(photographs), "--repeats", "1", "--batches", "50", "--out", str(out)),
    )

    assert done.returncode in (0, 1), done.stderr  # 1: a floor that a busy machine misses
    page = out.read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith(("| npy", "| png"))]
    assert len(rows) == 2
    for _, _, stock, naive, ours, times, _ in rows:
        assert float(times) == pytest.approx(float(ours) / float(stock), abs=0.1)
        assert float(naive) > 0
    assert "An index of 100,007,936 samples in 6104 shards" in page


def test_saved_bytes_counts_storages_once_and_no_parameters() -> None:
    linear = nn.Linear(3, 5)
    x = torch.zeros(7, 3)

    assert saved_bytes(lambda: linear(x), linear.parameters()) == 4 * 7 * 3
    assert saved_bytes(lambda: linear(x) + linear(x[:2]).sum(), linear.parameters()) == 4 * 7 * 3


def test_peak_bytes_is_of_what_lives_at_a_time() -> None:
    def action() -> None:
        x = torch.empty(1000)
        y = torch.empty(2000)
        del x
        torch.empty(500)
        del y

    assert peak_bytes(action) == 4 * 3000


def test_utilisation_is_of_the_right_peak() -> None:
    h100 = "NVIDIA H100 80GB HBM3"

    assert MODES["bfloat16"].peak(h100) == MODES["compiled"].peak(h100) == 989e12
    assert MODES["tf32"].peak(h100) == 494.5e12
    assert MODES["float32"].peak(h100) == 66.9e12
    assert MODES["bfloat16"].peak("NVIDIA H100 PCIe") == 756e12
    assert MODES["bfloat16"].peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert MODES["bfloat16"].peak("something else") is None


def test_slower_than_the_official_code_is_said() -> None:
    def row(mode: str, speed: float | None) -> Measured:
        return Measured(
            mode=mode, what="training", checkpointing=False, batch=4, samples_per_second=speed
        )

    theirs = [row("official float32", 2.0), row("official TF32", None)]

    assert slower_than_official([row("float32", 2.1), row("TF32", None), *theirs]) == []
    (sentence,) = slower_than_official([row("float32", 1.9), row("TF32", 9.0), *theirs])
    assert sentence == "Slower than the official code: float32, training, 4."
    assert len(slower_than_official([row("float32", None), *theirs])) == 1
