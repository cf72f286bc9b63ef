"""`ipt evaluate`: any weights on every benchmark of a folder."""

import json

import pytest
from benchmark_samples import some_of_set12
from shared_data import BENCHMARKS, needs_data
from weights_samples import evaluate, identity, small_ipt

from launch.__main__ import main
from pipeline.model_configs import DnCNNConfig, IPTConfig
from pipeline.models.ipt import IPT

pytestmark = needs_data


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
