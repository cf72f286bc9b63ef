"""Checks the result of `make demo` in runs/demo; .ci/run calls it by name after the demo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "demo"


@pytest.mark.parametrize("task", ["denoise30", "denoise50"])
@pytest.mark.parametrize("model", ["finetune", "dncnn"])
def test_both_models_beat_the_noisy_photographs_clearly(model, task):
    (path,) = RUN.glob(f"evaluate-{model}-{task}/*/scores.json")

    mean = json.loads(path.read_text())["test_sets"]["held-out"]["mean"]

    for channel in ("psnr_rgb", "psnr_y"):
        assert mean["restored"][channel] > mean["corrupted"][channel] + 3


def test_second_run_makes_nothing():
    command = [sys.executable, "-m", "launch", "run", "configs/demo.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert " made in " not in done.stdout


def test_report_says_what_five_photographs_are_worth():
    (report,) = RUN.glob("report/*/report.html")

    record = json.loads(report.with_name("report.json").read_text())

    assert "smoke test" in report.read_text()
    assert "smoke test" in record["smoke_test"]
    assert {(each["task"], each["test_set"]) for each in record["verdict"]} == {
        (task, "held-out") for task in ("derain", "denoise30", "denoise50")
    }
