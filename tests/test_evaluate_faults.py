from pathlib import Path

import pytest
from evaluate_samples import (
    evaluate,
    identity_dncnn,
    photograph,
    run_stage,
    save_photographs,
    sealed,
    stage_of,
)
from PIL import Image

from pipeline import config
from pipeline.artifacts import Artifact
from pipeline.config_file import ConfigError
from pipeline.graph import Stage, StageError
from pipeline.model_configs import DnCNNConfig
from pipeline.models.dncnn import DnCNN
from pipeline.tasks import TASKS
from stages.evaluate import evaluate_stage


def stage_scoring(folder: Path, tasks: tuple[str, ...] | None = None) -> Stage:
    """The stage that scores a DnCNN on the photographs of `folder`, as the test set "mine"."""
    test_set = config.TestSetConfig(path=str(folder), tasks=tasks)
    return evaluate_stage(
        stage_of("dncnn", "dncnn-denoise30"),
        TASKS["denoise30"],
        config.EvaluateConfig(test_sets={"mine": test_set}),
        sources={},
        rain_layers=None,
    )


def test_without_a_test_set_for_its_task_it_says_what_to_add(tmp_path):
    # Already where the graph is built: nothing has started.
    with pytest.raises(ConfigError, match="none is for denoise30; add denoise30"):
        stage_scoring(tmp_path, tasks=("sr2",))


def test_a_damaged_model_is_named(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    model = identity_dncnn(tmp_path / "model")
    (model.folder / "model" / "model.safetensors").write_bytes(b"cut")

    with pytest.raises(StageError, match=r"model\.safetensors"):
        evaluate(
            tmp_path,
            model,
            kind="dncnn",
            task=TASKS["denoise30"],
            test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
        )


def test_a_model_that_diverged_is_refused_and_not_scored_as_perfect(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    model = DnCNN(DnCNNConfig(depth=3, features=4))
    for weights in model.parameters():
        weights.data *= 1e25  # finite, and what they make of an image is not
    model.save_pretrained(tmp_path / "model" / "model")

    with pytest.raises(StageError, match="not numbers: its training diverged"):
        evaluate(
            tmp_path,
            sealed(tmp_path / "model", {}),
            kind="dncnn",
            task=TASKS["denoise30"],
            test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
        )


def test_a_changed_folder_makes_the_scores_stale(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    stage = stage_scoring(tmp_path / "clean")
    summary = run_stage(stage, tmp_path / "evaluate", {"model": identity_dncnn(tmp_path / "model")})
    manifest = sealed(tmp_path / "evaluate", summary).manifest

    assert stage.stale(stage.config, manifest) is None
    Image.fromarray(photograph(9)).save(tmp_path / "clean" / "new.png")
    assert "mine" in stage.stale(stage.config, manifest)
    again = run_stage(
        stage,
        tmp_path / "again",
        {"model": Artifact(folder=tmp_path / "model", manifest=manifest)},
    )
    assert again["identity"] != summary["identity"]


def test_a_folder_that_changes_while_it_is_scored_is_scored_again(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    stage = stage_scoring(tmp_path / "clean")

    summary = run_stage(
        stage,
        tmp_path / "evaluate",
        {"model": identity_dncnn(tmp_path / "model")},
        progress=lambda *_: Image.fromarray(photograph(9)).save(tmp_path / "clean" / "new.png"),
    )

    manifest = sealed(tmp_path / "evaluate", summary).manifest
    assert summary["images"] == 1
    assert "mine" in stage.stale(stage.config, manifest)
