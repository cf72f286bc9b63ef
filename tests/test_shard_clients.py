"""Shards are read by programs that know nothing of this project."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from data_samples import CLEAN, CORRUPTED, KEYS, write_shard

from pipeline.data.shard_reader import open_shards
from pipeline.data.shards import writing_shard


def test_the_tar_program_reads_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path)

    names = subprocess.run(
        ["tar", "-xvf", "train-00000.tar"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    assert names.stderr == ""
    kinds = ("clean.npy", "corrupted.npy", "json")
    assert names.stdout.split() == [f"{key}.{kind}" for key in KEYS for kind in kinds]
    assert np.array_equal(np.load(tmp_path / f"{KEYS[3]}.clean.npy"), CLEAN[3])


@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_stock_webdataset_reads_the_same_arrays(tmp_path: Path, image_format: str) -> None:
    import webdataset

    write_shard(tmp_path, image_format=image_format)
    url = str(tmp_path / "train-00000.tar")

    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"))

    assert [sample["__key__"] for sample in samples] == KEYS
    for sample, clean, corrupted in zip(samples, CLEAN, CORRUPTED, strict=True):
        assert np.array_equal(sample[f"clean.{image_format}"], clean)
        assert np.array_equal(sample[f"corrupted.{image_format}"], corrupted)
        assert sample["json"]["source"] == f"n01/{sample['__key__']} grüße.JPEG"


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_stock_datasets_reads_the_same_arrays(
    tmp_path: Path, image_format: str, streaming: bool
) -> None:
    """As the README has it; the records beside the tars are no samples."""
    import datasets

    for name in ("train-00000", "train-00001"):
        write_shard(tmp_path / "sr2@photos", image_format=image_format, name=name)
    assert (tmp_path / "sr2@photos" / "train-00001.json").exists()

    samples = list(
        datasets.load_dataset(
            "webdataset",
            data_files=f"{tmp_path}/sr2@photos/train-*.tar",
            split="train",
            streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )
    )

    assert [sample["__key__"] for sample in samples] == 2 * KEYS
    for sample, clean, corrupted in zip(samples, 2 * CLEAN, 2 * CORRUPTED, strict=True):
        assert np.array_equal(np.asarray(sample[f"clean.{image_format}"]), clean)
        assert np.array_equal(np.asarray(sample[f"corrupted.{image_format}"]), corrupted)
        assert sample["json"]["box"] == [0, 0, 24, 24]


@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_grey_shards_are_read_by_stock_clients_too(tmp_path: Path, image_format: str) -> None:
    import datasets
    import webdataset

    grey = [image[:, :, :1] for image in CLEAN]
    with writing_shard(tmp_path, "train-00000", image_format=image_format) as writer:
        for key, image in zip(KEYS, grey, strict=True):
            writer.add(key, {"clean": image}, {"source": key, "parameters": {"clip": True}})
        writer.finish()
    tar = str(tmp_path / "train-00000.tar")
    name = f"clean.{image_format}"

    ours = open_shards(tmp_path, "train")
    with_webdataset = webdataset.WebDataset(tar, shardshuffle=False).decode("l8")
    with_datasets = datasets.load_dataset(
        "webdataset",
        data_files={"train": [tar]},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )

    shards, places = np.zeros(5, int), np.arange(5)
    assert np.array_equal(ours.images("clean", shards, places), np.stack(grey))
    assert [each["source"] for each in ours.descriptions(shards, places)] == KEYS
    for client in (with_webdataset, with_datasets):
        images = [np.asarray(sample[name]).reshape(24, 24, 1) for sample in client]
        assert np.array_equal(np.stack(images), np.stack(grey))
