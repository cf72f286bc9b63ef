"""Tasks beyond the paper and those of DnCNN's recipe, from photographs to batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import SMALL, corrupted, listed, photograph, sr3_settings
from PIL import Image

from pipeline.artifacts import Artifact, file_digest
from pipeline.config import DataConfig
from pipeline.corruptions.blur import blur_both_ways, blur_once, gaussian_kernel, motion_weights
from pipeline.corruptions.grey import with_channels
from pipeline.corruptions.jpeg import compress_region
from pipeline.data import shard_making
from pipeline.data.loader import training_batches
from pipeline.data.rain_bank import LAYERS_FILE, open_layers
from pipeline.data.shard_reader import open_shards
from pipeline.data.source import read_photograph
from pipeline.data.streams import Stream, open_stream
from pipeline.tasks import TASKS, ranges, task_named


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs whose own compression a second one would change."""
    folder = tmp_path_factory.mktemp("jpegs")
    for number in range(8):
        Image.fromarray(photograph(number)).save(folder / f"{number}.jpg", quality=60)
    return folder


def samples_of(artifact: Artifact) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """(description, images by name) of every training sample."""
    reader = open_shards(artifact.folder / "shards", "train")
    shards = np.repeat(np.arange(len(reader.counts)), reader.counts)
    places = np.concatenate([np.arange(count) for count in reader.counts])
    images = {name: reader.images(name, shards, places) for name in reader.records[0].images}
    descriptions = reader.descriptions(shards, places)
    return [
        (description, {name: each[number] for name, each in images.items()})
        for number, description in enumerate(descriptions)
    ]


@pytest.mark.parametrize(
    ("name", "image_format"),
    [("sr2", "npy"), ("derain", "npy"), ("jpeg", "npy"), ("jpeg", "png"), ("grey25", "png")],
)
def test_targets_are_the_decoded_pixels_never_compressed_again(
    jpegs: Path, tmp_path: Path, name: str, image_format: str
) -> None:
    config = SMALL.model_copy(update={"format": image_format})
    artifact = corrupted(name, jpegs, tmp_path, config=config)

    for description, images in samples_of(artifact):
        top, left, height, width = description["box"]
        whole = with_channels(read_photograph(jpegs / description["source"]), TASKS[name].channels)
        np.testing.assert_array_equal(
            images["clean"], whole[top : top + height, left : left + width]
        )


@pytest.mark.parametrize("name", ["derain", "motion_blur"])
def test_bytes_do_not_depend_on_which_photographs_are_corrupted_together(
    jpegs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = listed(jpegs, tmp_path / "source")
    layers = np.random.default_rng(0).integers(0, 99, (8, 40, 40), dtype=np.uint8)
    np.save(tmp_path / LAYERS_FILE, layers)
    digests = []
    for together in (shard_making.BYTES_TOGETHER, 1):
        monkeypatch.setattr(shard_making, "BYTES_TOGETHER", together)
        shards = tmp_path / str(together)
        shards.mkdir()
        settings = sr3_settings(shards, source, jpegs, samples_per_shard=2**10)
        rain_layers = tmp_path if TASKS[name].needs_rain_layers else None
        settings = replace(settings, task=TASKS[name], rain_layers=rain_layers)
        (unit, _) = shard_making.plan_shards(8, 2, settings)
        shard_making.make_shard(settings, unit, after_image=lambda: None)
        digests.append(file_digest(shards / "train-00000.tar"))

    assert digests[0] == digests[1]


def made_again(whole: np.ndarray, parameters: dict[str, float]) -> np.ndarray:
    """The whole photograph under the parameters that a sample's json names."""
    region = {"rows": (0, whole.shape[0]), "columns": (0, whole.shape[1])}
    match parameters["corruption"]:
        case "JpegCompression":
            return compress_region(whole, parameters["quality"], **region)
        case "GaussianBlur":
            return blur_both_ways(whole, gaussian_kernel(parameters["sigma"]), **region)
        case "MotionBlur":
            kernel = motion_weights(parameters["length"], parameters["angle"])
            return blur_once(whole, kernel, **region)
    raise AssertionError(parameters)


@pytest.mark.parametrize("name", ["jpeg", "gaussian_blur", "motion_blur"])
def test_json_of_a_sample_names_what_its_patch_was_made_with(
    jpegs: Path, tmp_path: Path, name: str
) -> None:
    samples = samples_of(corrupted(name, jpegs, tmp_path))

    expected = ranges(TASKS[name].corruption)
    for description, images in samples:
        parameters = description["parameters"]
        top, left, height, width = description["box"]
        whole = made_again(read_photograph(jpegs / description["source"]), parameters)
        patch = whole[top : top + height, left : left + width]
        np.testing.assert_array_equal(images["corrupted"], patch)
        for key, (low, high) in expected.items():
            assert low <= parameters[key] <= high
    for key, (low, high) in expected.items():
        drawn = [description["parameters"][key] for description, _ in samples]
        assert len(set(drawn)) > len(drawn) / 2
        assert max(drawn) - min(drawn) > (high - low) / 2


def test_json_of_a_rainy_sample_names_the_layer_that_it_has(jpegs: Path, tmp_path: Path) -> None:
    artifact = corrupted("derain", jpegs, tmp_path)
    (bank,) = tmp_path.rglob("layers.npy")
    layers = open_layers(bank.parent, held_out=False)

    samples = samples_of(artifact)

    for description, images in samples:
        layer = layers[description["parameters"]["layer"]]
        clean, rainy = (images[name][..., 0].astype(int) for name in ("clean", "corrupted"))
        pieces = np.lib.stride_tricks.sliding_window_view(layer, clean.shape)
        assert (np.minimum(255, clean + pieces) == rainy).all(axis=(2, 3)).any()
    assert len({description["parameters"]["layer"] for description, _ in samples}) > 1


def one_batch(stream: Stream, *, step: int = 0, **data: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of one pass as one batch, in the order of their clean pixels."""
    (batch,) = training_batches(
        {stream.task.name: stream},
        config=DataConfig(**data),
        tasks_per_step="all",
        batch=stream.samples,
        micro_batch=stream.samples,
        seed=0,
        start_step=step,
        steps=step + 1,
        rank=0,
        world_size=1,
        workers=0,
        device=torch.device("cpu"),
    )
    corrupted_images, clean = batch[stream.task.name]
    order = sorted(range(len(clean)), key=lambda i: clean[i].numpy().tobytes())
    return corrupted_images[order], clean[order]


@pytest.mark.parametrize("name", ["grey_blind", "colour_blind"])
def test_blind_noise_has_a_level_of_its_own_for_every_sample_and_pass(
    jpegs: Path, tmp_path: Path, name: str
) -> None:
    task = task_named(name, clip_noise=False)
    stream = open_stream(corrupted(name, jpegs, tmp_path).folder, task, split="train")

    first, clean = one_batch(stream)
    again, _ = one_batch(stream)
    second, _ = one_batch(stream, step=1)
    fixed = [one_batch(stream, step=step, fresh_noise=False)[0] for step in (0, 1)]

    assert stream.reader.records[0].images == {"clean": [8, 8, task.channels]}
    assert clean.shape[1:] == (task.channels, 8, 8)
    assert torch.equal(again, first)
    assert torch.equal(*fixed)
    levels, later = (
        (noisy * 255 - clean).flatten(1).std(dim=1).numpy() for noisy in (first, second)
    )
    # Levels from 0 to 55, each measured on 64 pixels or more.
    assert levels.min() < 15
    assert 40 < levels.max() < 75
    assert abs(np.corrcoef(levels, later)[0, 1]) < 0.7
