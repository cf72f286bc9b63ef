import json

import numpy as np
import pytest
from evaluate_samples import (
    evaluate,
    identity_dncnn,
    photograph,
    run_stage,
    save_photographs,
    sealed,
    small_ipt,
    stage_of,
)
from PIL import Image

from pipeline import config
from pipeline.scoring import as_tensor, score
from pipeline.tasks import TASKS, task_named
from stages.evaluate import evaluate_stage
from stages.source import source_stage


def test_a_model_that_does_nothing_keeps_the_scores_of_its_input(tmp_path):
    save_photographs(tmp_path / "clean", 2)
    (tmp_path / "rainy").mkdir()
    for number in range(2):
        rainy = np.minimum(photograph(number).astype(int) + 30 * (number + 1), 255)
        Image.fromarray(rainy.astype(np.uint8)).save(tmp_path / "rainy" / f"{number}.png")
    test_set = config.TestSetConfig(
        path=str(tmp_path / "clean"), corrupted=str(tmp_path / "rainy"), tasks=("derain",)
    )

    scores = evaluate(
        tmp_path,
        identity_dncnn(tmp_path / "model"),
        kind="dncnn",
        task=TASKS["derain"],
        test_set=test_set,
    )

    mine = scores["test_sets"]["mine"]
    assert [image["name"] for image in mine["images"]] == ["0", "1"]
    for image in mine["images"]:
        assert image["restored"] == image["corrupted"]
        assert (image["height"], image["width"]) == (60, 70)
    assert mine["mean"]["restored"] == mine["mean"]["corrupted"]
    psnr = [image["corrupted"]["psnr_rgb"] for image in mine["images"]]
    assert mine["mean"]["corrupted"]["psnr_rgb"] == pytest.approx(sum(psnr) / 2, abs=1e-12)
    assert scores["model_name"] == "DnCNN"
    assert scores["protocol"]["noise"] is None
    assert mine["corrupted_is_given"]


def test_noisy_input_is_scored_as_drawn_and_its_restoration_rounded(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    task = task_named("denoise50", clip_noise=False)

    scores = evaluate(
        tmp_path,
        identity_dncnn(tmp_path / "model"),
        kind="dncnn",
        task=task,
        test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
    )

    image = scores["test_sets"]["mine"]["images"][0]
    # 20 log10(255 / 50), within what 12,600 draws allow.
    assert image["corrupted"]["psnr_rgb"] == pytest.approx(14.15, abs=0.1)
    # Rounding to 8 bits clips too, which takes noise away.
    assert image["restored"]["psnr_rgb"] > image["corrupted"]["psnr_rgb"] + 0.3
    assert scores["protocol"]["noise"] == "unclipped"
    assert not scores["test_sets"]["mine"]["corrupted_is_given"]


def test_every_model_meets_the_same_noise(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    options = {
        "task": TASKS["denoise30"],
        "test_set": config.TestSetConfig(path=str(tmp_path / "clean")),
    }

    dncnn = evaluate(tmp_path / "1", identity_dncnn(tmp_path / "1" / "m"), kind="dncnn", **options)
    ipt = evaluate(
        tmp_path / "2", small_ipt(tmp_path / "2" / "m", "denoise30"), kind="finetune", **options
    )

    first, second = (each["test_sets"]["mine"]["images"][0] for each in (dncnn, ipt))
    assert first["corrupted"] == second["corrupted"]
    assert first["restored"] != second["restored"]
    assert ipt["protocol"]["tiling"] == "overlap"
    assert dncnn["protocol"]["tiling"] is None


@pytest.mark.parametrize("self_ensemble", [False, True])
def test_ipt_restores_whole_photographs_by_tiles(tmp_path, self_ensemble):
    save_photographs(tmp_path / "clean", 1)

    scores = evaluate(
        tmp_path,
        small_ipt(tmp_path / "model", "sr3"),
        kind="finetune",
        task=TASKS["sr3"],
        test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
        self_ensemble=self_ensemble,
    )

    image = scores["test_sets"]["mine"]["images"][0]
    assert (image["height"], image["width"]) == (60, 69)
    assert scores["protocol"]["border"] == 3
    assert scores["protocol"]["self_ensemble"] is self_ensemble
    for path in image["pictures"].values():
        with Image.open(tmp_path / "evaluate" / path) as picture:
            assert picture.size == (69, 60)


def test_pictures_are_what_was_scored(tmp_path):
    save_photographs(tmp_path / "clean", 5)

    scores = evaluate(
        tmp_path,
        identity_dncnn(tmp_path / "model"),
        kind="dncnn",
        task=TASKS["denoise30"],
        test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
    )

    images = scores["test_sets"]["mine"]["images"]
    with_pictures = [image for image in images if "pictures" in image]
    assert len(images) == 5
    assert [image["name"] for image in with_pictures] == ["0", "1", "2"]
    pictures = {
        version: np.asarray(Image.open(tmp_path / "evaluate" / path))
        for version, path in images[0]["pictures"].items()
    }
    assert np.array_equal(pictures["clean"], photograph(0))
    restored = score(as_tensor(pictures["restored"]), as_tensor(pictures["clean"]), crop_border=0)
    assert restored == pytest.approx(images[0]["restored"], abs=1e-6)


def test_validation_images_of_a_source_are_scored_and_progress_is_told(tmp_path):
    save_photographs(tmp_path / "photos", 4)
    (tmp_path / "photos" / "held_bad.png").write_bytes(b"not an image")
    source = source_stage(
        "photos",
        config.SourceConfig(path=str(tmp_path / "photos"), held_out=("[01].png", "held_*")),
        seed=0,
        largest_crop=1,
    )
    (tmp_path / "source").mkdir()
    summary = run_stage(source, tmp_path / "source", {})
    task = TASKS["denoise30"]
    stage = evaluate_stage(
        stage_of("dncnn", "dncnn-denoise30"),
        task,
        config.EvaluateConfig(),
        sources={"photos": source},
        rain_layers=None,
    )
    told = []

    result = run_stage(
        stage,
        tmp_path / "evaluate",
        {
            "model": identity_dncnn(tmp_path / "model"),
            "source_photos": sealed(tmp_path / "source", summary),
        },
        progress=lambda done, total, note="": told.append((done, total)),
    )

    scores = json.loads((tmp_path / "evaluate" / "scores.json").read_text())["test_sets"]
    assert stage.inputs.keys() == {"model", "source_photos"}
    assert [image["name"] for image in scores["photos"]["images"]] == ["0", "1"]
    assert result["images"] == 2
    assert told[-1][0] <= told[-1][1]
    assert told == sorted(told)


def test_a_name_that_a_shell_trips_over_becomes_a_plain_file(tmp_path):
    (tmp_path / "clean").mkdir()
    Image.fromarray(photograph(0)).save(tmp_path / "clean" / "a <b> & $(x) 雨.png")

    scores = evaluate(
        tmp_path,
        identity_dncnn(tmp_path / "model"),
        kind="dncnn",
        task=TASKS["denoise30"],
        test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
    )

    image = scores["test_sets"]["mine"]["images"][0]
    assert image["name"] == "a <b> & $(x) 雨"
    for path in image["pictures"].values():
        assert (tmp_path / "evaluate" / path).is_file()
        assert path.isascii()
        assert not set("<>$ ") & set(path)
