"""`ipt evaluate`: any weights on every benchmark of a folder, whatever is wrong with one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from benchmark_samples import BENCHMARKS, needs_benchmarks, some_of_rain100l, some_of_set12
from PIL import Image

from launch.__main__ import main
from pipeline.benchmark_folders import find_benchmarks
from pipeline.data.testsets import open_benchmark
from pipeline.evaluation import NamedSet, score_sets
from pipeline.graph import report_nothing
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.tasks import task_named

pytestmark = needs_benchmarks


def identity(folder: Path, *, channels: int = 3) -> Path:
    """A DnCNN that restores its input."""
    model = DnCNN(DnCNNConfig(depth=3, features=4, channels=channels))
    torch.nn.init.zeros_(model.last.weight)
    model.save_pretrained(folder)
    return folder


def small_ipt(folder: Path, **scales: int) -> Path:
    size = IPTSize(features=2, encoder_layers=1, decoder_layers=1, attention_heads=2)
    IPT(IPTConfig(size=size, scales=scales)).save_pretrained(folder)
    return folder


def evaluate(weights: Path, benchmarks: Path, out: Path, *options: str) -> tuple[int, dict]:
    """The exit code and the scores.json."""
    command = ["evaluate", "--weights", str(weights), "--benchmarks", str(benchmarks)]
    code = main([*command, "--out", str(out), "--device", "cpu", *options])
    return code, json.loads((out / "scores.json").read_text())


def test_a_whole_benchmark_is_verified_scored_and_put_beside_its_table(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Set12").symlink_to(BENCHMARKS / "Set12")

    code, scores = evaluate(
        identity(tmp_path / "w", channels=1), tmp_path / "b", tmp_path / "out", "--sigma", "25"
    )

    (record,) = scores["records"]
    set12 = record["test_sets"]["Set12-sigma25"]
    assert code == 0
    assert not scores["incomplete"]
    assert [each["state"] for each in set12["benchmark"]["checks"]] == ["verified"] * 3
    assert len(set12["images"]) == 12
    # 20 log10(255 / 25); rounding to 8 bits clips a little noise away.
    assert set12["mean"]["corrupted"]["psnr_rgb"] == pytest.approx(20.17, abs=0.02)
    assert 20.17 < set12["mean"]["restored"]["psnr_rgb"] < 20.6
    assert record["missing_benchmarks"] == ["BSD68"]
    assert record["cost"]["parameters"] == DnCNNConfig(depth=3, features=4, channels=1).parameters
    assert record["cost"]["seconds_per_megapixel"] > 0
    assert record["cost"]["peak_memory"]["bytes"] > 2**20
    printed = capsys.readouterr().out
    assert "12 of 12" in printed
    assert "noisy input on RGB verified (20.17)" in printed
    assert "DnCNN-S      30.44" in printed
    assert "noise unclipped, seed 0" in printed
    assert "INCOMPLETE" not in printed


def test_set5_by_an_ipt_stands_beside_the_published_rows(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Set5").symlink_to(BENCHMARKS / "Set5")
    weights = small_ipt(tmp_path / "w", sr2=2, derain=1)

    code, scores = evaluate(weights, tmp_path / "b", tmp_path / "out")

    (record,) = scores["records"]
    config = IPTConfig(size=IPT.from_pretrained(weights).config.size, scales={"sr2": 2})
    # Tiles of 48 that share 10: 256² take 7², 144² and 140² and 128² 4², 4² and 4², 114×172 3 × 5.
    tiles = 49 + 3 * 16 + 15
    set5 = record["test_sets"]["Set5"]
    pixels = sum(each["height"] * each["width"] for each in set5["images"])
    assert code == 0
    assert scores["without_benchmark"] == ["derain"]
    # 8-bit RGB at every step reads 33.64 on rounded Y (test_metrics.py), and here Y is as it is.
    assert 33.64 < set5["mean"]["corrupted"]["psnr_y"] < 33.69
    assert record["test_sets"]["Set5"]["benchmark"]["checks"][2]["found"] == "33.66 / 0.9299"
    assert record["cost"]["parameters"] == config.parameters
    assert record["cost"]["patch_flops"] == config.flops("sr2").total
    assert record["cost"]["flops_per_megapixel"] == pytest.approx(
        tiles * config.flops("sr2").total / pixels * 1e6
    )
    printed = capsys.readouterr().out
    assert "tiling overlap" in printed
    assert "38.37" in printed
    assert "border of 2 cut" in printed


@pytest.mark.slow
def test_the_part_of_rain100l_that_is_known_is_complete_but_not_comparable(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Rain100L").symlink_to(BENCHMARKS / "Rain100L")

    code, scores = evaluate(
        identity(tmp_path / "w"), tmp_path / "b", tmp_path / "out", "--task", "derain"
    )

    rain = scores["records"][0]["test_sets"]["Rain100L"]
    assert code == 0
    assert rain["mean"]["restored"]["psnr_y_rounded"] == pytest.approx(26.175, abs=0.0006)
    assert rain["mean"]["restored"]["ssim_y_rounded"] == pytest.approx(0.8136, abs=0.00006)
    printed = capsys.readouterr().out
    assert "20 of 100" in printed
    assert "20 of the 100 images of Rain100L" in printed


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


def test_an_image_that_the_model_fails_on_is_named_and_the_rest_is_restored(tmp_path):
    some_of_set12(tmp_path / "b", "01.png", "02.png", "03.png", "04.png")
    task = task_named("grey25", clip_noise=False)
    (found,), _ = find_benchmarks(tmp_path / "b", task)
    test_set = open_benchmark(found, task, seed=0)
    seen = []

    def restore(image):
        seen.append(image)
        if len(seen) == 2:
            raise torch.OutOfMemoryError("out of memory\nand a long trace")
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
    assert first == {"path": "02", "reason": "out of memory"}
    assert second["path"] == "03"
    assert "not numbers" in second["reason"]
    assert scores["Set12"]["incomplete"]


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


def test_denoisers_are_measured_at_the_levels_of_the_paper(tmp_path):
    some_of_set12(tmp_path / "b", "01.png")

    _, scores = evaluate(identity(tmp_path / "w", channels=1), tmp_path / "b", tmp_path / "out")

    sets = scores["records"][0]["test_sets"]
    assert list(sets) == [f"Set12-sigma{level}" for level in (10, 15, 25, 30, 50, 70)]
    inputs = [each["mean"]["corrupted"]["psnr_rgb"] for each in sets.values()]
    assert inputs == sorted(inputs, reverse=True)
    assert {each["noise"] for each in sets.values()} == {"unclipped"}


def test_weights_for_another_task_or_scale_are_refused_by_name(tmp_path, capsys):
    some_of_set12(tmp_path / "b", "01.png")
    ipt = small_ipt(tmp_path / "ipt", sr2=2)
    odd = small_ipt(tmp_path / "odd", sr2=3)
    grey = identity(tmp_path / "grey", channels=1)

    def said(*arguments: str) -> str:
        options = ["--benchmarks", str(tmp_path / "b"), "--out", str(tmp_path / "out")]
        assert main(["evaluate", *options, *arguments]) == 2
        return capsys.readouterr().err

    assert f"--task sr3: {ipt} restores sr2" in said("--weights", str(ipt), "--task", "sr3")
    assert "its tail for sr2 is of scale 3" in said("--weights", str(odd))
    assert "keeps the size" in said("--weights", str(grey), "--task", "sr2")
    assert "3 channels" in said("--weights", str(grey), "--task", "derain")
    assert "--task blur: unknown" in said("--weights", str(grey), "--task", "blur")
    assert "none of B100, Set14, Set5, Urban100" in said("--weights", str(ipt))
    assert "--sigma 10;70: write numbers" in said("--weights", str(grey), "--sigma", "10;70")
    assert "--sigma -1: above 0" in said("--weights", str(grey), "--sigma=-1")
    assert not (tmp_path / "out").exists()


def test_scores_are_not_overwritten_unless_told_to(tmp_path, capsys):
    some_of_set12(tmp_path / "b", "01.png")
    weights = identity(tmp_path / "w", channels=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.json").write_text("{}")
    command = ["evaluate", "--weights", str(weights), "--benchmarks", str(tmp_path / "b")]
    command += ["--out", str(tmp_path / "out"), "--sigma", "25", "--device", "cpu"]

    assert main(command) == 2
    assert "use --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 1
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["records"]


def test_weights_that_are_none_are_an_error_in_a_sentence(tmp_path, capsys):
    some_of_set12(tmp_path / "b", "01.png")

    command = ["evaluate", "--weights", str(tmp_path / "no"), "--benchmarks", str(tmp_path / "b")]
    code = main([*command, "--out", str(tmp_path / "out")])

    assert code == 1
    assert "no: no such folder" in capsys.readouterr().err
