import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import SMALL, execute, imported_by, photograph, shard_bytes
from PIL import Image
from pydantic import ValidationError
from source_samples import PAIRS, listed_pairs, pairs_stage, write_pairs

from pipeline import config
from pipeline.artifacts import Artifact
from pipeline.config import RunConfig, Runtime, SourceConfig
from pipeline.config_file import ConfigError
from pipeline.data.loader import validation_crops
from pipeline.data.order import SampleIds
from pipeline.data.shard_reader import open_shards
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex
from pipeline.data.streams import Drawn, open_stream
from pipeline.data.testsets import open_test_set
from pipeline.graph import StageError
from pipeline.report.facts import samples_section
from pipeline.report.samples import validation_samples
from pipeline.tasks import TASKS
from stages.corrupt import corrupt_stage
from stages.recipe import build_graph, folders_read
from stages.source import source_stage


def cropped(task_name: str, folder: Path, *, workers: int = 1) -> Artifact:
    task = TASKS[task_name]
    source = pairs_stage(folder)
    stage = corrupt_stage(
        task, SMALL, seed=0, source_name="pairs", source=source, rain_layers=None, pairs=True
    )
    inputs = {"source": listed_pairs(folder)}
    artifact = execute(stage, folder / f"{task_name}-{workers}", inputs, workers=workers)
    assert artifact is not None
    return artifact


def samples_of(artifact: Artifact) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """(description, corrupted, clean) of all samples, of both splits."""
    samples = []
    for split in ("train", "validation"):
        reader = open_shards(artifact.folder / "shards", split)
        for shard, record in enumerate(reader.records):
            with tarfile.open(reader.folder / record.file) as tar:
                texts = [tar.extractfile(each).read() for each in tar if each.name.endswith("json")]
            places = np.arange(record.samples)
            shards = np.full_like(places, shard)
            images = (reader.images(name, shards, places) for name in ("corrupted", "clean"))
            samples += zip(map(json.loads, texts), *images, strict=True)
    return samples


def test_the_report_shows_pairs_as_given(tmp_path: Path) -> None:
    artifact = cropped("derain", write_pairs(tmp_path))

    (shown,) = samples_section({artifact.manifest.stage: artifact}, Runtime())

    assert shown["parameters"].startswith("given, scale 1")


@pytest.mark.parametrize(("task", "scale"), [("derain", 1), ("denoise30", 1), ("sr2", 2)])
def test_pairs_are_cut_from_the_same_place_and_not_corrupted(
    tmp_path: Path, task: str, scale: int
) -> None:
    folder = write_pairs(tmp_path, scale=scale)

    artifact = cropped(task, folder)

    samples = samples_of(artifact)
    assert len(samples) == PAIRS * SMALL.crops_per_image
    for description, corrupted, clean in samples:
        top, left, height, width = description["box"]
        assert (height, width) == (8 * scale, 8 * scale)
        assert description["parameters"] == {"corruption": "given"}
        whole = {
            side: np.asarray(Image.open(folder / side / description["source"]))
            for side in ("clean", "corrupted")
        }
        assert np.array_equal(clean, whole["clean"][top:, left:][:height, :width])
        small = whole["corrupted"][top // scale :, left // scale :][:8, :8]
        assert np.array_equal(corrupted, small)
        assert top % scale == left % scale == 0
    assert len({tuple(each["box"]) for each, _, _ in samples}) > PAIRS


def test_a_noise_task_trains_on_stored_pairs(tmp_path: Path) -> None:
    artifact = cropped("denoise30", write_pairs(tmp_path))
    stream = open_stream(artifact.folder, TASKS["denoise30"], split="train")
    first = np.zeros(1, int)
    ids = SampleIds(passes=first, shards=first, places=first)

    corrupted, clean = stream.pair(ids, Drawn(seed=0))

    stored = stream.reader.images("corrupted", ids.shards, ids.places)
    assert np.array_equal(corrupted.permute(0, 2, 3, 1), stored)
    assert not torch.equal(corrupted, clean)
    validation = open_stream(artifact.folder, TASKS["denoise30"], split="validation")
    watched, _ = validation_crops(validation, 99, seed=0)
    assert watched.dtype == torch.uint8
    (shown,) = validation_samples(artifact.folder / "shards", TASKS["denoise30"], 1)
    assert np.array_equal(shown.corrupted, validation.reader.images("corrupted", first, first)[0])


def test_any_number_of_workers_cuts_the_same_pairs(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, scale=2)

    first, second = (cropped("sr2", folder, workers=workers) for workers in (1, 2))

    assert shard_bytes(first.folder) == shard_bytes(second.folder)


def test_evaluation_reads_the_validation_pairs_as_they_are(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, scale=2)
    artifact = listed_pairs(folder)
    index = SourceIndex(artifact.folder, artifact.manifest.summary["root"])

    test_set = open_test_set(
        config.TestSetConfig(source="pairs"), TASKS["sr2"], seed=0, sources={"pairs": index}
    )

    pairs = list(test_set)
    assert len(pairs) == 2
    for pair in pairs:
        for side, image in (("clean", pair.clean), ("corrupted", pair.corrupted)):
            (path,) = (folder / side).rglob(f"{pair.name}.png")
            assert np.array_equal(image, np.asarray(Image.open(path)))


@pytest.mark.parametrize(("task", "scale"), [("derain", 2), ("sr2", 1), ("sr4", 2)])
def test_sizes_that_do_not_fit_the_task_are_an_error(tmp_path: Path, task: str, scale: int) -> None:
    folder = write_pairs(tmp_path, scale=scale, clean="{}.png", corrupted="{}.png")
    times = TASKS[task].scale

    with pytest.raises(
        StageError,
        match=rf"clean/\d.png and .*corrupted/\d.png: \d+×\d+ and \d+×\d+ pixels, but the clean "
        rf"photograph must be {times} times as large",
    ):
        cropped(task, folder)


def test_a_pair_with_a_damaged_side_is_skipped_and_listed(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    index = SourceIndex(listed_pairs(folder).folder, folder / "clean")
    training = index.name(int(np.flatnonzero(~index.validation)[0]))
    (folder / "corrupted" / training).write_bytes(b"no photograph")
    source = pairs_stage(folder)
    tolerant = SMALL.model_copy(update={"most_skipped": 1.0})
    stage = corrupt_stage(
        TASKS["derain"],
        tolerant,
        seed=0,
        source_name="p",
        source=source,
        rain_layers=None,
        pairs=True,
    )

    artifact = execute(stage, folder / "derain", {"source": listed_pairs(folder)})

    assert artifact is not None
    skipped = artifact.manifest.summary["skipped"]
    assert [each["path"] for each in skipped] == [f"corrupted: {training}"]
    assert artifact.manifest.summary["train_samples"] == 3 * (PAIRS - 2 - 1)


def test_a_listing_names_the_side_of_a_pair_that_is_damaged(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    index = SourceIndex(listed_pairs(folder).folder, folder / "clean")
    first = index.name(int(np.flatnonzero(index.validation)[0]))
    (folder / "corrupted" / first).write_bytes(b"no photograph")

    unreadable = listed_pairs(folder).manifest.summary["unreadable"]

    assert [each["path"] for each in unreadable] == [f"corrupted: {first}"]


def test_a_changed_side_makes_the_listing_stale_and_another_identity(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    stage, before = pairs_stage(folder), listed_pairs(folder)
    assert stage.stale is not None
    assert stage.stale(stage.config, before.manifest) is None

    Image.fromarray(photograph(7, height=30, width=30)).save(folder / "corrupted" / "a" / "0.bmp")
    (folder / "corrupted" / "a" / "0.png").unlink()

    assert (
        stage.stale(stage.config, before.manifest)
        == f"{folder}/corrupted/a changed since it was listed"
    )
    assert listed_pairs(folder).identity != before.identity
    plain = SourceConfig(path=str(folder / "clean"), validation_images=2)
    alone = execute(source_stage("pairs", plain, seed=0, largest_crop=8), folder / "alone")
    assert alone is not None
    assert alone.identity != before.identity


def test_a_side_swapped_for_one_of_equal_size_is_noticed(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, corrupted="a/{}.bmp")
    before = listed_pairs(folder)
    index = SourceIndex(before.folder, folder / "clean")
    path = folder / "corrupted" / "a" / "0.bmp"
    image = np.asarray(Image.open(path))

    Image.fromarray(255 - image).save(path)

    number = next(at for at in range(PAIRS) if index.corrupted.path(at) == path)
    with pytest.raises(SourceError, match=r"corrupted/a/0.bmp: was written to since it was listed"):
        index.corrupted.photograph(number)
    assert listed_pairs(folder).identity != before.identity


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clean": "a"}, "real pairs need both clean and corrupted"),
        ({"path": "a", "corrupted": "b"}, "real pairs need both clean and corrupted"),
        ({"path": "a", "clean": "a", "corrupted": "b"}, "either a path, or clean and corrupted"),
        ({}, "either a path, or clean and corrupted"),
    ],
)
def test_a_source_names_one_origin(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig(**values)


def test_a_run_names_pairs_for_one_training(tmp_path: Path) -> None:
    run = RunConfig.model_validate(
        {
            "name": "x",
            "sources": {
                "photos": {"path": "photos"},
                "rain": {"clean": str(tmp_path / "c"), "corrupted": str(tmp_path / "r")},
            },
            "finetune": {"derain": {"source": "rain"}},
        }
    )

    graph = build_graph(run)

    pairs, drawn = (graph.stage(f"corrupt-derain@{name}") for name in ("rain", "photos"))
    assert set(pairs.inputs) == {"source"}
    assert set(drawn.inputs) == {"source", "rain_layers"}
    test_sets = graph.stage("evaluate-finetune-derain").config.test_sets
    assert set(test_sets) == {"photos", "rain"}
    assert test_sets["rain"].tasks == ("derain",)
    assert graph.stage("source@rain").config.largest_crop == 48
    assert graph.stage("source@photos").config.largest_crop == 192
    folders = {key: folder for key, _, folder in folders_read(run)}
    assert folders["sources.rain.clean"] == tmp_path / "c"
    assert folders["sources.rain.corrupted"] == tmp_path / "r"


def test_a_test_set_of_pairs_names_its_tasks() -> None:
    run = RunConfig.model_validate(
        {
            "name": "x",
            "sources": {"rain": {"clean": "c", "corrupted": "r"}},
            "pretrain": {"tasks": ["derain"]},
            "finetune": {"derain": {}},
            "evaluate": {"test_sets": {"held-out": {"source": "rain"}}},
        }
    )

    with pytest.raises(ConfigError, match=r"test_sets.held-out: source rain has real pairs; name"):
        build_graph(run)


def test_what_makes_shards_imports_no_library_of_formats() -> None:
    heavy = {"torch", "webdataset", "datasets", "pyarrow", "huggingface_hub"}

    assert not heavy & imported_by("import pipeline.data.shard_making")


def test_a_place_that_no_pairs_are_read_from_is_refused_by_its_key() -> None:
    source = SourceConfig(clean="s3://bucket/clean", corrupted="corrupted")

    with pytest.raises(ConfigError, match=r"^sources.pairs.clean: s3://bucket/clean: only https"):
        source_stage("pairs", source, seed=0, largest_crop=8)
