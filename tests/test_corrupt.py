import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    SMALL,
    as_nobody,
    corrupted,
    corrupting_stage,
    execute,
    listed,
    photograph,
    shard_bytes,
    sr3_settings,
    write_photographs,
)
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.config import Runtime
from pipeline.corruptions.bicubic import imresize, modcrop
from pipeline.data.shard_making import make_shard, plan_shards
from pipeline.data.shard_reader import open_shards
from pipeline.data.source_index import SourceIndex
from pipeline.graph import Job, StageError


@pytest.fixture(scope="module")
def sr3(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return corrupted("sr3", photographs, tmp_path_factory.mktemp("sr3"))


def samples_of(
    artifact: Artifact, split: str
) -> list[tuple[str, dict[str, object], np.ndarray, np.ndarray | None]]:
    """(key, description, clean, corrupted) of every sample."""
    reader = open_shards(artifact.folder / "shards", split)
    samples = []
    for number, record in enumerate(reader.records):
        places = np.arange(record.samples)
        shards = np.full_like(places, number)
        images = {name: reader.images(name, shards, places) for name in record.images}
        tar = (artifact.folder / "shards" / record.file).read_bytes()
        assert record.stride is not None
        for place, key in enumerate(reader.keys(shards, places)):
            description = json.loads(tar[: (place + 1) * record.stride][-512:])
            corrupted_image = images["corrupted"][place] if "corrupted" in images else None
            samples.append((key, description, images["clean"][place], corrupted_image))
    return samples


def test_crops_are_cut_from_the_photographs_that_they_name(
    sr3: Artifact, photographs: Path
) -> None:
    for split, images in (("train", 12), ("validation", 2)):
        samples = samples_of(sr3, split)

        assert len(samples) == images * SMALL.crops_per_image
        for _, description, clean, _ in samples:
            top, left, height, width = description["box"]
            image = np.asarray(Image.open(photographs / description["source"]))
            assert (top % 3, left % 3, height, width) == (0, 0, 24, 24)
            assert np.array_equal(clean, image[top : top + 24, left : left + 24])


def test_small_patches_equal_the_whole_photograph_resized(sr3: Artifact, photographs: Path) -> None:
    for _, description, _, patch in samples_of(sr3, "train"):
        image = np.asarray(Image.open(photographs / description["source"]))
        whole = imresize(modcrop(image, 3), Fraction(1, 3))
        top, left = (place // 3 for place in description["box"][:2])

        assert np.array_equal(patch, whole[top : top + 8, left : left + 8])


def test_keys_are_those_of_the_photographs_and_never_of_both_splits(
    sr3: Artifact, source: Artifact
) -> None:
    index = SourceIndex(source.folder, Path(source.manifest.summary["root"]))
    training, validation = (
        {key.partition("-")[0] for key, *_ in samples_of(sr3, split)}
        for split in ("train", "validation")
    )

    assert validation == {index.key(number) for number in np.flatnonzero(index.validation)}
    assert training | validation == {index.key(number) for number in range(len(index))}
    assert not training & validation


def test_every_crop_has_a_place_of_its_own(sr3: Artifact) -> None:
    samples = samples_of(sr3, "train")

    assert len({key for key, *_ in samples}) == len(samples)
    boxes = {(each["source"], *each["box"]) for _, each, *_ in samples}
    assert len(boxes) > 0.7 * len(samples)


def test_summary_counts_what_was_made(sr3: Artifact) -> None:
    summary = sr3.manifest.summary

    assert summary["task"] == "sr3"
    assert summary["format"] == "npy"
    assert (summary["train_samples"], summary["validation_samples"]) == (36, 6)
    assert summary["bytes"] == sum(map(len, shard_bytes(sr3.folder).values()))
    assert summary["clip"] is None
    assert sorted(shard_bytes(sr3.folder)) == [
        *(f"train-{number:05d}.tar" for number in range(4)),
        "validation-00000.tar",
    ]


def test_noise_stores_the_clean_image_only_and_rain_both(photographs: Path, tmp_path: Path) -> None:
    noise = corrupted("denoise30", photographs, tmp_path)
    rain = corrupted("derain", photographs, tmp_path)

    assert noise.manifest.summary["clip"] is True
    assert all(patch is None for *_, patch in samples_of(noise, "train"))
    for _, _, clean, patch in samples_of(rain, "train"):
        assert patch is not None
        assert (patch >= clean).all()
        assert (patch > clean).any()


def test_any_number_of_workers_and_parts_gives_the_same_bytes(
    photographs: Path, source: Artifact, sr3: Artifact, tmp_path: Path
) -> None:
    stage = corrupting_stage("sr3", photographs)
    inputs = {"source": source}

    together = execute(stage, tmp_path / "together", inputs, workers=2)
    first = execute(stage, tmp_path / "parts", inputs, part=(1, 2))
    last = execute(stage, tmp_path / "parts", inputs, part=(0, 2))

    assert together is not None
    assert first is None
    assert last is not None
    assert shard_bytes(together.folder) == shard_bytes(last.folder) == shard_bytes(sr3.folder)
    assert last.manifest.summary == sr3.manifest.summary


def test_only_missing_shards_are_made_again(
    photographs: Path, source: Artifact, sr3: Artifact, tmp_path: Path
) -> None:
    shutil.copytree(sr3.folder, tmp_path, dirs_exist_ok=True)
    shards = tmp_path / "shards"
    (shards / "train-00001.json").unlink()
    (shards / "train-00002.tar").write_bytes(b"cut short")
    (shards / ".train-00003.tar.host.1.tmp").write_bytes(b"half a shard")
    kept = (shards / "train-00000.tar").stat().st_mtime_ns

    execute(corrupting_stage("sr3", photographs), tmp_path, {"source": source})

    assert shard_bytes(tmp_path) == shard_bytes(sr3.folder)
    assert (shards / "train-00000.tar").stat().st_mtime_ns == kept
    assert not list(shards.glob(".*"))


def test_odd_photographs_are_converted_and_unusable_ones_counted_and_listed(
    tmp_path: Path,
) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    image = Image.fromarray(photograph(0))
    image.convert("L").save(photographs / "grey.png")
    image.convert("RGBA").save(photographs / "alpha.png")
    image.convert("CMYK").save(photographs / "cmyk.jpg")
    Image.fromarray(photograph(0)[:, :, 0].astype(np.uint16) * 257).save(photographs / "16bit.png")
    image.save(photographs / "misnamed.jpg", "PNG")
    image.crop((0, 0, 44, 23)).save(photographs / "small.png")
    image.save(photographs / "cut.jpg")
    (photographs / "cut.jpg").write_bytes((photographs / "cut.jpg").read_bytes()[:-300])
    image.save(photographs / "cut.png")
    (photographs / "cut.png").write_bytes((photographs / "cut.png").read_bytes()[:-300])
    (photographs / "text.jpg").write_text("no photograph")
    (photographs / "empty.jpg").write_bytes(b"")
    config = SMALL.model_copy(update={"most_skipped": 0.5})

    artifact = corrupted("sr3", photographs, tmp_path, config=config)

    summary = artifact.manifest.summary
    assert summary["skipped_images"] == 5
    assert summary["skipped_by_reason"] == {
        "empty file": 1,
        "not an image in a known format": 1,
        "smaller than a crop of 24 pixels": 1,
        "truncated or damaged": 2,
    }
    reasons = {each["path"]: each["reason"] for each in summary["skipped"]}
    assert sorted(reasons) == ["cut.jpg", "cut.png", "empty.jpg", "small.png", "text.jpg"]
    assert reasons["small.png"] == "smaller than a crop of 24 pixels (44×23)"
    converted = {"grey.png", "alpha.png", "cmyk.jpg", "16bit.png", "misnamed.jpg"}
    samples = samples_of(artifact, "train") + samples_of(artifact, "validation")
    assert len(samples) == 11 * SMALL.crops_per_image
    assert converted < {description["source"] for _, description, *_ in samples}


def test_a_photograph_that_nobody_may_read_is_skipped_and_listed(public: Path) -> None:
    photographs = write_photographs(public / "in", 6)
    config = SMALL.model_copy(update={"most_skipped": 0.5})
    stage = corrupting_stage("sr3", photographs, config)
    source = listed(photographs, public / "source")
    index = SourceIndex(source.folder, photographs)
    secret = int(np.flatnonzero(~index.validation)[0])
    index.path(secret).chmod(0)
    shards = public / "sr3" / "shards"
    shards.mkdir(parents=True)
    shards.chmod(0o777)
    settings = sr3_settings(shards, source, photographs, samples_per_shard=SMALL.samples_per_shard)
    # Here, because not every worker process of another user may read this checkout.
    with as_nobody():
        for unit in plan_shards(6, 2, settings):
            make_shard(settings, unit, after_image=lambda: None)

    artifact = execute(stage, public / "sr3", {"source": source})

    assert artifact is not None
    summary = artifact.manifest.summary
    assert summary["skipped"] == [{"path": index.name(secret), "reason": "permission denied"}]
    assert summary["skipped_by_reason"] == {"permission denied": 1}
    assert summary["train_samples"] == 3 * SMALL.crops_per_image


def test_a_read_only_folder_is_one_sentence(public: Path) -> None:
    photographs = write_photographs(public / "in", 6)
    source = listed(photographs, public / "source")
    folder = public / "sr3"
    folder.mkdir(mode=0o555)

    with (
        as_nobody(),
        pytest.raises(StageError, match=rf"^{folder}.*: Permission denied\. .*run the"),
    ):
        execute(corrupting_stage("sr3", photographs), folder, {"source": source})

    assert list(folder.iterdir()) == []


def test_all_skipped_is_an_error(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 4)
    config = SMALL.model_copy(update={"patch_size": 60, "most_skipped": 1.0})

    with pytest.raises(StageError, match=r"all train photographs were skipped for denoise30"):
        corrupted("denoise30", photographs, tmp_path, config=config)


def test_progress_ends_at_its_total(photographs: Path, source: Artifact, tmp_path: Path) -> None:
    stage = corrupting_stage("sr3", photographs)
    seen: list[tuple[int, int, str]] = []
    job = Job(
        config=stage.config,
        fingerprint="test",
        folder=tmp_path,
        inputs={"source": source},
        runtime=Runtime(workers=0),
        progress=lambda done, total, note="": seen.append((done, total, note)),
    )

    stage.run(job)

    assert seen[-1] == (42, 42, "5 of 5 shards")


def test_fingerprint_follows_what_decides_content_and_nothing_else(tmp_path: Path) -> None:
    def fingerprint(task: str = "sr3", seed: int = 0, **changes: object) -> str:
        config = SMALL.model_copy(update=changes)
        return corrupting_stage(task, tmp_path, config, seed=seed).fingerprint({"source": "x"})

    same = {fingerprint(), fingerprint(clip_noise=False)}
    different = {
        fingerprint(),
        fingerprint("sr2"),
        fingerprint(seed=1),
        fingerprint(crops_per_image=4),
        fingerprint(format="png"),
        fingerprint(samples_per_shard=10),
    }
    assert (len(same), len(different)) == (1, 6)
