"""`evaluate.benchmarks` of a run: every benchmark of a task that lies there is a test set."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_samples import some_of_rain100l
from evaluate_samples import identity_dncnn, run_stage, save_photographs, sealed, stage_of
from shared_data import needs_data

from launch.inspect_run import print_faults
from pipeline import config
from pipeline.benchmarks import benchmarks_for
from pipeline.config_file import ConfigError
from pipeline.graph import Stage, StageError
from pipeline.tasks import TASKS
from stages.evaluate import evaluate_stage


def stage_scoring(root: Path, task: str = "denoise30", **options) -> Stage:
    return evaluate_stage(
        stage_of("dncnn", f"dncnn-{task}"),
        TASKS[task],
        config.EvaluateConfig(benchmarks=str(root), **options),
        sources={},
        rain_layers=None,
    )


def scored(stage: Stage, tmp_path: Path) -> tuple[dict, dict]:
    """The summary and the scores.json."""
    model = identity_dncnn(tmp_path / "model")
    summary = run_stage(stage, tmp_path / "evaluate", {"model": model})
    return summary, json.loads((tmp_path / "evaluate" / "scores.json").read_text())


def test_a_denoiser_is_measured_at_its_own_level_and_at_those_of_the_paper(tmp_path):
    save_photographs(tmp_path / "b" / "CBSD68", 2)

    summary, scores = scored(stage_scoring(tmp_path / "b"), tmp_path)

    sets = scores["test_sets"]
    names = ["CBSD68-sigma10", "CBSD68", "CBSD68-sigma70"]
    assert sets.keys() == set(names)
    assert [sets[name]["task"] for name in names] == ["denoise10", "denoise30", "denoise70"]
    inputs = [sets[name]["mean"]["corrupted"]["psnr_rgb"] for name in names]
    assert inputs == sorted(inputs, reverse=True)
    assert summary["missing_benchmarks"] == ["Urban100", "Kodak24", "McMaster"]
    # Two of 68 images, of another size: said, and not fatal.
    assert scores["incomplete"]
    assert "CBSD68: number of images: expected 68, found 2" in summary["faults"]
    assert any("CBSD68: sizes: expected 481×321" in fault for fault in summary["faults"])


def test_a_test_set_of_the_same_name_stays_and_levels_can_be_left_out(tmp_path):
    save_photographs(tmp_path / "b" / "CBSD68", 2)
    save_photographs(tmp_path / "mine", 1)
    mine = {"CBSD68": config.TestSetConfig(path=str(tmp_path / "mine"))}

    _, scores = scored(stage_scoring(tmp_path / "b", test_sets=mine, sigmas=()), tmp_path)

    assert list(scores["test_sets"]) == ["CBSD68"]
    assert len(scores["test_sets"]["CBSD68"]["images"]) == 1


def test_without_any_benchmark_there_it_says_which_it_looked_for(tmp_path):
    (tmp_path / "b").mkdir()

    with pytest.raises(StageError, match="none of Urban100, CBSD68, Kodak24, McMaster"):
        scored(stage_scoring(tmp_path / "b"), tmp_path)


def test_tasks_without_benchmarks_still_need_a_test_set(tmp_path):
    assert benchmarks_for(TASKS["motion_blur"]) == ()
    with pytest.raises(ConfigError, match="none is for motion_blur"):
        stage_scoring(tmp_path, "motion_blur")


def test_what_changes_among_the_benchmarks_makes_the_scores_stale(tmp_path):
    save_photographs(tmp_path / "b" / "CBSD68", 1)
    stage = stage_scoring(tmp_path / "b", sigmas=())
    summary, _ = scored(stage, tmp_path)
    manifest = sealed(tmp_path / "evaluate", summary).manifest

    assert stage.stale(stage.config, manifest) is None
    save_photographs(tmp_path / "b" / "Kodak24", 1)
    assert stage.stale(stage.config, manifest) == "benchmark Kodak24 has been added"
    shutil.rmtree(tmp_path / "b" / "Kodak24")
    save_photographs(tmp_path / "b" / "CBSD68", 2)
    assert stage.stale(stage.config, manifest) == "the files of benchmark CBSD68 changed"
    shutil.rmtree(tmp_path / "b")  # taken away once it is scored
    assert stage.stale(stage.config, manifest) is None


def test_the_folder_and_the_levels_are_in_the_fingerprint_only_where_they_count(tmp_path):
    def fingerprint(stage: Stage) -> str:
        return stage.fingerprint({"model": "m"})

    here, there = tmp_path / "here", tmp_path / "there"
    assert fingerprint(stage_scoring(here)) != fingerprint(stage_scoring(there))
    assert fingerprint(stage_scoring(here)) != fingerprint(stage_scoring(here, sigmas=(20,)))
    assert fingerprint(stage_scoring(here, "derain")) == fingerprint(
        stage_scoring(here, "derain", sigmas=(20,))
    )


@needs_data
def test_a_faulty_pair_is_left_out_named_and_makes_the_exit_code_1(tmp_path, capsys):
    folder = some_of_rain100l(tmp_path / "b", "1.png", "2.png")
    (folder / "rainy" / "2.png").write_bytes(b"not an image")

    summary, scores = scored(stage_scoring(tmp_path / "b", "derain"), tmp_path)
    artifact = sealed(tmp_path / "evaluate", summary)

    assert [each["name"] for each in scores["test_sets"]["Rain100L"]["images"]] == ["1"]
    assert len(scores["test_sets"]["Rain100L"]["skipped"]) == 1  # which the report lists
    assert print_faults({"evaluate-dncnn-derain": artifact}) == 1
    assert "2.png" in capsys.readouterr().err
    assert print_faults({}) == 0
