"""`ipt evaluate` where something is wrong: it is named, the rest is scored, the exit code is 1."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_samples import save, save_nearest, some_of_rain100l, some_of_set12
from PIL import Image
from shared_data import BENCHMARKS, needs_data
from weights_samples import evaluate, identity, small_ipt

from launch import evaluate_weights
from pipeline import benchmark_checks
from pipeline.benchmark_folders import find_benchmarks
from pipeline.data.testsets import open_benchmark
from pipeline.evaluation import NamedSet, score_sets
from pipeline.graph import report_nothing
from pipeline.tasks import task_named

pytestmark = needs_data


def test_pairs_that_are_missing_extra_misnamed_or_of_another_size_are_named(tmp_path, capsys):
    folder = some_of_rain100l(tmp_path / "b", "1.png", "2.png", "3.png", "4.png", "5.png")
    (folder / "rainy" / "2.png").unlink()
    (folder / "rainy" / "3.png").rename(folder / "rainy" / "three.png")
    with Image.open(folder / "rainy" / "4.png") as image:
        image.crop((0, 0, 100, 90)).save(folder / "rainy" / "4.png")
    shutil.copy(folder / "rainy" / "1.png", folder / "rainy" / "99.png")
    weights = identity(tmp_path / "w")

    code, scores = evaluate(weights, tmp_path / "b", tmp_path / "out", "--task", "derain")

    rain = scores["records"][0]["test_sets"]["Rain100L"]
    assert code == 1
    assert scores["incomplete"]
    assert rain["incomplete"]
    assert [each["name"] for each in rain["images"]] == ["1", "5"]
    faults = {Path(each["path"]).name: each["reason"] for each in rain["faults"]}
    assert "no corrupted image" in faults["2.png"]
    assert "no clean image" in faults["three.png"]
    assert "no clean image" in faults["99.png"]
    assert "100×90 pixels" in faults["4.png"]
    printed = capsys.readouterr().out
    assert "2 of 100 INCOMPLETE" in printed
    for name in ("2.png", "three.png", "99.png", "3.png", "4.png"):
        assert name in printed


def test_an_image_that_is_damaged_in_the_middle_does_not_end_the_others(tmp_path, capsys):
    folder = some_of_set12(tmp_path / "b", "01.png", "02.png", "03.png")
    content = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(content[: len(content) // 2])
    weights = identity(tmp_path / "w", channels=1)

    code, scores = evaluate(
        weights, tmp_path / "b", tmp_path / "out", "--sigma", "25", "--task", "grey25"
    )

    set12 = scores["records"][0]["test_sets"]["Set12"]
    assert code == 1
    assert [each["name"] for each in set12["images"]] == ["01", "03"]
    assert [Path(each["path"]).name for each in set12["faults"]] == ["02.png"]
    assert "02.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("out of memory\nand a long trace"), "out of memory"),
        (MemoryError(), "not enough memory for it"),
        (MemoryError("Unable to allocate 9. GiB"), "Unable to allocate 9. GiB"),
    ],
)
def test_an_image_that_the_model_fails_on_is_named_and_the_rest_is_restored(
    tmp_path, error, reason
):
    some_of_set12(tmp_path / "b", "01.png", "02.png", "03.png", "04.png")
    task = task_named("grey25", clip_noise=False)
    (found,), _ = find_benchmarks(tmp_path / "b", task)
    test_set = open_benchmark(found, task, seed=0)
    seen = []

    def restore(image):
        seen.append(image)
        if len(seen) == 2:
            raise error
        return image * torch.nan if len(seen) == 3 else image

    scores, failed = score_sets(
        [NamedSet(name="Set12", test_set=test_set, found=found)],
        restore,
        folder=tmp_path,
        progress=report_nothing,
    )

    assert failed == {}
    assert [each["name"] for each in scores["Set12"]["images"]] == ["01", "04"]
    first, second = scores["Set12"]["faults"]
    assert first == {"path": "02", "reason": reason}
    assert second["path"] == "03"
    assert "not numbers" in second["reason"]
    assert scores["Set12"]["incomplete"]


def test_an_image_that_there_is_no_memory_to_check_is_named(tmp_path, monkeypatch):
    some_of_set12(tmp_path / "b", "01.png", "02.png", "03.png")
    measured = benchmark_checks._measured

    def full(*given, **named):
        if np.array_equal(given[1][:, :, 0], second):
            raise MemoryError
        return measured(*given, **named)

    second = np.asarray(Image.open(tmp_path / "b" / "Set12" / "02.png"))
    monkeypatch.setattr(benchmark_checks, "_measured", full)
    weights = identity(tmp_path / "w", channels=1)

    code, scores = evaluate(weights, tmp_path / "b", tmp_path / "out", "--sigma", "25")

    set12 = scores["records"][0]["test_sets"]["Set12-sigma25"]
    assert code == 1
    assert [each["name"] for each in set12["images"]] == ["01", "03"]
    assert set12["benchmark"]["checks"][0]["found"] == "2"


def test_tasks_that_are_scored_stay_where_a_later_one_breaks(tmp_path, monkeypatch):
    for folder in ("HR", "LR_bicubic/X2", "LR_bicubic/X3"):
        shutil.copytree(BENCHMARKS / "Set5" / folder, tmp_path / "b" / "Set5" / folder)
    weights = small_ipt(tmp_path / "w", sr2=2, sr3=3)
    score = evaluate_weights._evaluate

    def breaking(task, *given, **named):
        if task.name == "sr3":
            raise RuntimeError("the device is gone")
        return score(task, *given, **named)

    monkeypatch.setattr(evaluate_weights, "_evaluate", breaking)
    with pytest.raises(RuntimeError, match="the device is gone"):
        evaluate(weights, tmp_path / "b", tmp_path / "out")

    broken = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [each["task"] for each in broken["records"]] == ["sr2"]
    assert broken["to_come"] == ["sr3"]
    assert broken["incomplete"]
    assert not broken["records"][0]["incomplete"]
    monkeypatch.undo()
    code, whole = evaluate(weights, tmp_path / "b", tmp_path / "out", "--force")
    assert code == 0
    assert [each["task"] for each in whole["records"]] == ["sr2", "sr3"]
    assert not whole["incomplete"]


def test_small_images_of_another_making_make_the_benchmark_incomplete(tmp_path, capsys):
    for path in (BENCHMARKS / "Set5" / "HR").iterdir():
        save_nearest(path, tmp_path / "b" / "Set5")

    code, scores = evaluate(small_ipt(tmp_path / "w", sr2=2), tmp_path / "b", tmp_path / "out")

    (record,) = scores["records"]
    assert code == 1
    assert record["test_sets"]["Set5"]["incomplete"]
    bicubic, small = record["faults"]
    assert "expected 33.66 / 0.9299, found 29.97" in bicubic
    assert small.startswith("Set5: low-resolution images: expected ")
    printed = capsys.readouterr().out
    assert "5 of 5 INCOMPLETE" in printed
    assert "published, for the same photographs, channel, border and noise" not in printed
    assert "bicubic upscaling on Y" in printed.partition("not comparable")[2]


def test_other_pictures_by_the_name_of_a_benchmark_are_not_compared(tmp_path, capsys):
    for number in range(5):
        save(tmp_path / "b" / "Set5" / f"{number}.png", seed=number, height=100, width=60)

    code, _ = evaluate(small_ipt(tmp_path / "w", sr2=2), tmp_path / "b", tmp_path / "out")

    assert code == 1
    printed = capsys.readouterr().out
    assert "5 of 5 INCOMPLETE" in printed
    assert "published, for the same photographs, channel, border and noise" not in printed
    assert "found 0 60×100, 1 60×100, 2 60×100 and 2 more" in printed.partition("not compar")[2]


def test_faults_beside_a_differing_number_and_size_are_all_said(tmp_path):
    folder = some_of_set12(tmp_path / "b", "01.png", "02.png", "03.png")
    (folder / "02.png").write_bytes(b"not an image")
    with Image.open(folder / "03.png") as image:
        image.crop((0, 0, 100, 90)).save(folder / "03.png")
    weights = identity(tmp_path / "w", channels=1)

    _, scores = evaluate(weights, tmp_path / "b", tmp_path / "out", "--sigma", "25")

    damaged, number, sizes = scores["records"][0]["faults"]
    assert "02.png" in damaged
    assert number == "Set12-sigma25: number of images: expected 12, found 2"
    assert sizes == "Set12-sigma25: sizes: expected 256×256, 512×512, found 03 100×90"


def test_fewer_images_than_the_benchmark_has_are_said_to_be(tmp_path, capsys):
    some_of_set12(tmp_path / "b", "01.png", "02.png")

    code, scores = evaluate(
        identity(tmp_path / "w", channels=1), tmp_path / "b", tmp_path / "out", "--sigma", "25"
    )

    assert code == 1
    assert scores["records"][0]["faults"] == [
        "Set12-sigma25: number of images: expected 12, found 2"
    ]
    assert "INCOMPLETE" in capsys.readouterr().out


def test_an_unusable_benchmark_does_not_end_the_others(tmp_path):
    some_of_set12(tmp_path / "b", "01.png")
    shutil.copy(tmp_path / "b" / "Set12" / "01.png", tmp_path / "b" / "Set12" / "01.bmp")
    (tmp_path / "b" / "BSD68").mkdir()
    shutil.copy(BENCHMARKS / "Set12" / "02.png", tmp_path / "b" / "BSD68" / "test001.png")

    code, scores = evaluate(
        identity(tmp_path / "w", channels=1), tmp_path / "b", tmp_path / "out", "--sigma", "25"
    )

    (record,) = scores["records"]
    assert code == 1
    assert list(record["test_sets"]) == ["BSD68-sigma25"]
    assert "have the same name" in record["failed"]["Set12-sigma25"]
