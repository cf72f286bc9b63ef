import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config
from pipeline.artifacts import Artifact, seal
from pipeline.config_file import ConfigError
from pipeline.corruptions.bicubic import imresize
from pipeline.data import testsets
from pipeline.graph import Job, Stage, StageError
from pipeline.metrics import luma, psnr, ssim
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.scoring import as_tensor, mean_scores, score, score_restoration
from pipeline.tasks import TASKS, Bicubic, GaussianNoise, RainStreaks, task_named
from stages.evaluate import evaluate_stage
from stages.source import source_stage

BENCHMARKS = Path(__file__).parents[2] / "shared" / "data" / "benchmarks"
needs_data = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no shared data")

torch.set_num_threads(1)


def photograph(seed: int, height: int = 60, width: int = 70) -> np.ndarray:
    """Smooth shapes with some texture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def save_photographs(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photograph(number)).save(folder / f"{number}.png")


def stage_of(kind: str, name: str) -> Stage:
    return Stage(name=name, kind=kind, version=1, config=config.Section(), run=lambda job: {})


def sealed(folder: Path, summary: dict) -> Artifact:
    return seal(
        folder,
        stage="model",
        version=1,
        fingerprint="1" * 64,
        config={},
        inputs={},
        summary=summary,
        seconds=1.0,
    )


def identity_dncnn(folder: Path) -> Artifact:
    """A DnCNN that predicts no noise at all: what it restores is its input."""
    model = DnCNN(DnCNNConfig(depth=3, features=4))
    torch.nn.init.zeros_(model.last.weight)
    folder.mkdir(parents=True)
    model.save_pretrained(folder / "model")
    return sealed(folder, {})


def small_ipt(folder: Path, task: str) -> Artifact:
    size = IPTSize(features=2, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=12)
    folder.mkdir(parents=True)
    model = IPT(IPTConfig(size=size, scales={task: TASKS[task].scale}))
    model.save_pretrained(folder / "model")
    return sealed(folder, {})


def run_stage(stage: Stage, folder: Path, inputs: dict[str, Artifact], progress=None) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        config=stage.config,
        fingerprint="2" * 64,
        folder=folder,
        inputs=inputs,
        runtime=config.Runtime(),
        **({"progress": progress} if progress else {}),
    )
    return stage.run(job)


def evaluate(tmp_path: Path, model: Artifact, *, kind: str, task, test_set, **options) -> dict:
    stage = evaluate_stage(
        stage_of(kind, f"{kind}-{task.name}"),
        task,
        config.EvaluateConfig(test_sets={"mine": test_set}, **options),
        sources={},
        rain_layers=None,
    )
    run_stage(stage, tmp_path / "evaluate", {"model": model})
    return json.loads((tmp_path / "evaluate" / "scores.json").read_text())


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


def test_without_a_test_set_for_its_task_it_says_what_to_add(tmp_path):
    test_set = config.TestSetConfig(path=str(tmp_path), tasks=("sr2",))

    # Already where the graph is built: nothing has started.
    with pytest.raises(ConfigError, match="none is for denoise30; add denoise30"):
        evaluate_stage(
            stage_of("dncnn", "dncnn-denoise30"),
            TASKS["denoise30"],
            config.EvaluateConfig(test_sets={"mine": test_set}),
            sources={},
            rain_layers=None,
        )


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


def test_a_changed_folder_makes_the_scores_stale(tmp_path):
    save_photographs(tmp_path / "clean", 1)
    test_set = config.TestSetConfig(path=str(tmp_path / "clean"))
    stage = evaluate_stage(
        stage_of("dncnn", "dncnn-denoise30"),
        TASKS["denoise30"],
        config.EvaluateConfig(test_sets={"mine": test_set}),
        sources={},
        rain_layers=None,
    )
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
    test_set = config.TestSetConfig(path=str(tmp_path / "clean"))
    stage = evaluate_stage(
        stage_of("dncnn", "dncnn-denoise30"),
        TASKS["denoise30"],
        config.EvaluateConfig(test_sets={"mine": test_set}),
        sources={},
        rain_layers=None,
    )

    summary = run_stage(
        stage,
        tmp_path / "evaluate",
        {"model": identity_dncnn(tmp_path / "model")},
        progress=lambda *_: Image.fromarray(photograph(9)).save(tmp_path / "clean" / "new.png"),
    )

    manifest = sealed(tmp_path / "evaluate", summary).manifest
    assert summary["images"] == 1
    assert "mine" in stage.stale(stage.config, manifest)


def test_equal_images_have_no_finite_psnr():
    clean = as_tensor(photograph(0))

    scores = score(clean, clean, crop_border=0)

    assert scores["psnr_rgb"] is None
    assert scores["ssim_rgb"] == 1
    assert mean_scores([scores, scores])["psnr_rgb"] is None


def test_a_model_that_makes_another_size_is_refused():
    with pytest.raises(ValueError, match="restored to"):
        score_restoration(
            photograph(0), photograph(0), corruption=RainStreaks(), restore=lambda x: x[..., :-1]
        )


@needs_data
@pytest.mark.parametrize(
    ("scale", "rounded_luma", "published"),
    [
        # The literature's protocol with 8-bit images and MATLAB's rounded Y, SSIM beside it.
        (2, True, (33.64, 0.9292)),
        (3, True, (30.39, 0.8678)),
        (4, True, (28.42, 0.8101)),
        # Ours, and IPT's: Y unrounded.
        (4, False, (28.431, None)),
    ],
)
def test_bicubic_upscaling_of_set5_has_the_published_scores(scale, rounded_luma, published):
    test_set = testsets.open_test_set(
        config.TestSetConfig(path=str(BENCHMARKS / "Set5" / "HR")),
        TASKS[f"sr{scale}"],
        seed=0,
        sources={},
    )
    corruption = Bicubic(scale=scale)
    if rounded_luma:
        images = [
            score(
                as_tensor(imresize(pair.corrupted, scale)),
                as_tensor(pair.clean),
                crop_border=scale,
                rounded_luma=True,
            )
            for pair in test_set
        ]
    else:
        images = [
            score_restoration(
                pair.corrupted,
                pair.clean,
                corruption=corruption,
                restore=lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3),
            ).corrupted
            for pair in test_set
        ]

    mean = mean_scores(images)

    psnr, ssim = published
    assert mean["psnr_y"] == pytest.approx(psnr, abs=0.012)
    assert ssim is None or mean["ssim_y"] == pytest.approx(ssim, abs=2e-4)


@needs_data
def test_rain100l_input_has_its_known_scores():
    test_set = testsets.open_test_set(
        config.TestSetConfig(
            path=str(BENCHMARKS / "Rain100L" / "clean"),
            corrupted=str(BENCHMARKS / "Rain100L" / "rainy"),
            tasks=("derain",),
        ),
        TASKS["derain"],
        seed=0,
        sources={},
    )

    rounded, structure, unrounded = [], [], []
    for pair in test_set:
        images = as_tensor(pair.corrupted), as_tensor(pair.clean)
        rounded.append(psnr(*(luma(each, rounded=True) for each in images)).item())
        structure.append(ssim(*(luma(each, rounded=True) for each in images)).item())
        unrounded.append(psnr(*(luma(each) for each in images)).item())

    assert len(rounded) == 20
    assert np.mean(rounded) == pytest.approx(26.175, abs=5e-4)
    assert np.mean(structure) == pytest.approx(0.8136, abs=5e-5)
    # What an evaluation of ours says, on Y as it is.
    assert np.mean(unrounded) == pytest.approx(26.178, abs=5e-4)


@needs_data
def test_noise_on_cbsd68_has_the_known_input_scores():
    """Corruption study: 18.60 dB on RGB at σ 30 unclipped; Y reads 4.8 dB more."""
    test_set = testsets.open_test_set(
        config.TestSetConfig(path=str(BENCHMARKS / "CBSD68")),
        task_named("denoise30", clip_noise=False),
        seed=0,
        sources={},
    )
    images = []
    for number, pair in enumerate(test_set):
        if number == 6:
            break
        images.append(
            score_restoration(
                pair.corrupted,
                pair.clean,
                corruption=GaussianNoise(sigma_255=30, clip=False),
                restore=lambda x: x,
            ).corrupted
        )

    mean = mean_scores(images)
    assert mean["psnr_rgb"] == pytest.approx(18.59, abs=0.02)
    assert mean["psnr_y"] == pytest.approx(23.40, abs=0.03)
