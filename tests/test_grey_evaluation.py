"""Grey tasks are trained and scored on their one channel, and stand in the report as such."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import corrupted, execute
from evaluate_samples import evaluate, save_photographs, sealed, stage_of
from PIL import Image
from report_samples import small_run
from shared_data import BENCHMARKS, needs_data

from pipeline import config
from pipeline.artifacts import Artifact
from pipeline.corruptions.grey import with_channels
from pipeline.data import testsets
from pipeline.data.loader import validation_crops
from pipeline.data.streams import open_stream
from pipeline.metrics import psnr
from pipeline.model_configs import DnCNNConfig
from pipeline.models.dncnn import DnCNN
from pipeline.report.facts import samples_section
from pipeline.report.verdict import corrupted_name, headline_channel
from pipeline.scoring import as_tensor, score
from pipeline.tasks import TASKS, task_named
from stages.dncnn import dncnn_stage


def grey_identity(folder: Path) -> Artifact:
    model = DnCNN(DnCNNConfig(depth=3, features=4, channels=1))
    torch.nn.init.zeros_(model.last.weight)
    folder.mkdir(parents=True)
    model.save_pretrained(folder / "model")
    return sealed(folder, {})


def grey_scores(tmp_path: Path, name: str) -> dict:
    save_photographs(tmp_path / "clean", 2)
    return evaluate(
        tmp_path,
        grey_identity(tmp_path / "model"),
        kind="dncnn",
        task=task_named(name, clip_noise=False),
        test_set=config.TestSetConfig(path=str(tmp_path / "clean")),
    )


def test_dncnn_trains_on_grey_shards(tmp_path, photographs):
    shards = corrupted("grey_blind", photographs, tmp_path)
    training = config.DnCNNTrainingConfig(
        model=DnCNNConfig(depth=4, features=8, channels=1),
        samples=3200,
        batch=16,
        statistics_batch=16,
    )
    stage = dncnn_stage("grey_blind", training, seed=0, shards=stage_of("corrupt", "corrupt"))

    execute(stage, tmp_path / "dncnn", {"shards": shards}, workers=0)

    model = DnCNN.from_pretrained(tmp_path / "dncnn" / "model")
    stream = open_stream(shards.folder, TASKS["grey_blind"], split="validation")
    noisy, clean = validation_crops(stream, 6, seed=0)
    with torch.inference_mode():
        restored = model.eval()(noisy)
    assert model.config.channels == 1
    assert psnr(restored, clean / 255).mean() > psnr(noisy, clean / 255).mean() + 1
    picture = Image.open(tmp_path / "dncnn" / "images" / "grey_blind-restored.png")
    assert picture.size == (4 * 8, 8)


def test_colour_photographs_are_scored_in_grey_on_one_channel(tmp_path):
    scores = grey_scores(tmp_path, "grey25")

    for image in scores["test_sets"]["mine"]["images"]:
        for version in ("corrupted", "restored"):
            assert image[version]["psnr_y"] == image[version]["psnr_rgb"]
            assert image[version]["ssim_y"] == image[version]["ssim_rgb"]
        # 20 log10(255 / 25), within what 4,200 draws allow.
        assert image["corrupted"]["psnr_rgb"] == pytest.approx(20.17, abs=0.2)
        shown = np.asarray(Image.open(tmp_path / "evaluate" / image["pictures"]["clean"]))
        photograph = np.asarray(Image.open(tmp_path / "clean" / f"{image['name']}.png"))
        np.testing.assert_array_equal(shown, with_channels(photograph, 1).repeat(3, axis=2))
    assert scores["protocol"]["channels"] == ["grey"]
    assert scores["protocol"]["noise"] == "unclipped"
    assert scores["protocol"]["drawn"] == {}


def test_the_levels_of_a_blind_task_are_named_and_differ_from_image_to_image(tmp_path):
    scores = grey_scores(tmp_path, "grey_blind")

    first, second = (
        image["corrupted"]["psnr_rgb"] for image in scores["test_sets"]["mine"]["images"]
    )
    assert abs(first - second) > 0.5
    assert scores["protocol"]["drawn"] == {"sigma_255": [0, 55]}


def test_grey_is_its_own_luma():
    clean = np.random.default_rng(0).integers(0, 200, (20, 20, 1), dtype=np.uint8)

    scores = score(as_tensor(clean + 10), as_tensor(clean), crop_border=0)

    assert scores["psnr_y"] == scores["psnr_rgb"] == pytest.approx(20 * np.log10(25.5))


@needs_data
@pytest.mark.parametrize(
    ("name", "folder", "images"), [("grey15", "Set12", 12), ("grey50", "CBSD68", 68)]
)
def test_noisy_benchmarks_of_dncnn_have_the_input_scores_of_their_level(name, folder, images):
    task = task_named(name, clip_noise=False)
    test_set = testsets.open_test_set(
        config.TestSetConfig(path=str(BENCHMARKS / folder)), task, seed=0, sources={}
    )

    assert len(test_set) == images
    for pair, path in zip(test_set, sorted((BENCHMARKS / folder).iterdir()), strict=True):
        if folder == "Set12":
            np.testing.assert_array_equal(pair.clean[:, :, 0], np.asarray(Image.open(path)))
        assert pair.clean.shape[2] == 1
        error = np.square(pair.corrupted * 255.0 - pair.clean).mean()
        # One draw over 65,536 pixels or more.
        assert 10 * np.log10(255**2 / error) == pytest.approx(
            20 * np.log10(255 / task.corruption.sigma_255), abs=0.09
        )


def test_scores_are_named_after_the_channel_they_are_of():
    channels = {name: headline_channel(task) for name, task in TASKS.items()}

    assert channels["sr2"] == channels["derain"] == channels["jpeg"] == "Y"
    assert channels["denoise30"] == channels["colour_blind"] == channels["motion_blur"] == "RGB"
    assert channels["grey15"] == channels["grey_blind"] == "grey"
    assert [corrupted_name(TASKS[name]) for name in ("jpeg", "motion_blur", "grey25")] == [
        "compressed input",
        "blurred input",
        "noisy input",
    ]


def test_our_grey_scores_stand_in_the_published_grey_table(tmp_path):
    run = small_run(tmp_path)
    path = tmp_path / "evaluate-dncnn-denoise30" / "scores.json"
    record = json.loads(path.read_text())
    mine = record["test_sets"].pop("mine")
    mine |= {"images": mine["images"] * 12, "task": "grey25", "noise": "unclipped"}
    benchmark = {"name": "Set12", "images": 12, "layout": "", "checks": []}
    record["test_sets"] = {"Set12": mine | {"benchmark": benchmark}}
    protocol = record["protocol"] | {"noise": "unclipped", "channels": ["grey"]}
    path.write_text(json.dumps(record | {"task": "grey25", "protocol": protocol}))

    text, _ = run.report()

    tables = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL)
    (body,) = (body for title, body in tables if title.startswith("Grey denoising, DnCNN <"))
    assert "DnCNN, this run" in body
    assert "28.50" in body
    assert "30.436" in body


def test_contact_sheets_are_for_one_channel_too_and_name_what_was_drawn(tmp_path, photographs):
    made = [corrupted(name, photographs, tmp_path / name) for name in ("jpeg", "grey_blind")]

    jpeg, blind = samples_section({each.manifest.stage: each for each in made}, config.Runtime())

    assert jpeg["parameters"] == "JpegCompression, quality [10, 40]"
    qualities = [int(each) for each in jpeg["shown"]["quality"].split(", ")]
    assert len(qualities) == jpeg["count"] == 6
    assert all(10 <= each <= 40 for each in qualities)
    levels = [float(each) for each in blind["shown"]["sigma_255"].split(", ")]
    assert len(set(levels)) == 6
    assert max(levels) <= 55
