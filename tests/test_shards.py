import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_samples import CLEAN, CORRUPTED, KEYS, imported_by, largest_file, write_shard

from pipeline.data.shard_reader import ShardReader, open_shards
from pipeline.data.shards import (
    BLOCK,
    DESCRIPTION_BYTES,
    ShardError,
    description_bytes,
    member_header,
    read_record,
    sample_bytes,
    writing_shard,
)


@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_reader_returns_what_was_written_in_any_order(tmp_path: Path, image_format: str) -> None:
    write_shard(tmp_path, image_format=image_format)
    write_shard(tmp_path, image_format=image_format, name="train-00001")
    reader = open_shards(tmp_path, "train")
    shards, places = np.array([1, 0, 1, 0, 0]), np.array([4, 0, 1, 3, 0])

    assert reader.counts == [5, 5]
    assert np.array_equal(
        reader.images("clean", shards, places), np.stack([CLEAN[place] for place in places])
    )
    assert np.array_equal(
        reader.images("corrupted", shards, places), np.stack([CORRUPTED[place] for place in places])
    )
    assert reader.keys(shards, places) == [KEYS[place] for place in places]


@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_same_content_gives_same_bytes(tmp_path: Path, image_format: str) -> None:
    first = write_shard(tmp_path / "a", image_format=image_format)
    second = write_shard(tmp_path / "b", image_format=image_format)

    tars = [(tmp_path / folder / "train-00000.tar").read_bytes() for folder in "ab"]
    assert tars[0] == tars[1]
    assert first.sha256 == second.sha256
    assert len(tars[0]) == first.bytes


def test_npy_samples_have_a_constant_stride(tmp_path: Path) -> None:
    record = write_shard(tmp_path)

    assert record.stride == sample_bytes(record.images)
    assert record.offsets is None
    tar = (tmp_path / record.file).read_bytes()
    for number, key in enumerate(KEYS):
        assert tar[number * record.stride :].startswith(f"{key}.clean.npy".encode())


def test_headers_are_those_of_tarfile() -> None:
    import tarfile

    member = tarfile.TarInfo("0123456789abcdef-7.clean.npy")
    member.size = 7040

    assert member_header(member.name, 7040) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    "source", ["short.jpg", "long/" * 300 + "end.jpg", "ü写" * 200 + "end.jpg", "\\udcff.jpg"]
)
def test_descriptions_have_one_size_and_keep_the_end_of_the_name(source: str) -> None:
    content = description_bytes({"source": source, "box": [0, 1, 2, 3], "task": "sr2"})

    assert len(content) == DESCRIPTION_BYTES
    record = json.loads(content)
    assert record["box"] == [0, 1, 2, 3]
    assert record["source"].endswith(source[-7:])
    assert len(record["source"]) > 40 or record["source"] == source


@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_a_shard_of_nothing_is_a_shard(tmp_path: Path, image_format: str) -> None:
    with writing_shard(tmp_path, "train-00000", image_format=image_format) as writer:
        writer.finish([{"path": "a.jpg", "kind": "empty file", "reason": "empty file"}])

    write_shard(tmp_path, name="train-00001", image_format=image_format)
    reader = open_shards(tmp_path, "train")

    reader.check([0, 1], contents=True)
    assert reader.counts == [0, len(KEYS)]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writing_shard(tmp_path, "train-00000", image_format="npy") as writer:
            writer.add(KEYS[0], {"clean": CLEAN[0]}, {"source": "a.jpg"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(4096), pytest.raises(OSError, match="File too large") as raised:
        write_shard(tmp_path)

    assert raised.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_without_its_record_a_shard_is_unfinished(tmp_path: Path) -> None:
    write_shard(tmp_path)
    assert read_record(tmp_path, "train-00000") is not None

    (tmp_path / "train-00000.json").unlink()

    assert read_record(tmp_path, "train-00000") is None
    with pytest.raises(ShardError, match="the shards of train are not complete"):
        open_shards(tmp_path, "train")


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path, name="train-00000")
    write_shard(tmp_path, name="train-00002")

    with pytest.raises(ShardError, match=r"not complete \(2 records found\)"):
        open_shards(tmp_path, "train")


def test_more_shards_than_five_digits_count_are_not_left_out(tmp_path: Path) -> None:
    write_shard(tmp_path, name="train-00000")
    write_shard(tmp_path, name="train-100000")

    with pytest.raises(ShardError, match=r"not complete \(2 records found\)"):
        open_shards(tmp_path, "train")


def test_a_truncated_tar_is_found_before_it_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path)
    tar = tmp_path / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])

    with pytest.raises(ShardError, match=r"train-00000.tar: missing, or not of the size"):
        open_shards(tmp_path, "train")


def test_a_tar_that_goes_away_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path)
    reader = open_shards(tmp_path, "train")
    (tmp_path / "train-00000.tar").unlink()

    with pytest.raises(ShardError, match=r"train-00000.tar: can't be opened"):
        reader.keys(np.array([0]), np.array([0]))


def test_an_index_that_does_not_match_its_tar_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path)
    path = tmp_path / "train-00000.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"stride": record["stride"] - BLOCK}))
    reader = open_shards(tmp_path, "train")

    with pytest.raises(ShardError, match="sample 4 is not where its record says"):
        reader.images("clean", np.array([0]), np.array([0]))


def test_a_tar_cut_short_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    record = write_shard(tmp_path)
    reader = open_shards(tmp_path, "train")
    reader.keys(np.array([0]), np.array([0]))

    os.truncate(tmp_path / record.file, 3 * record.stride)

    with pytest.raises(ShardError, match=r"train-00000.tar: ends at byte \d+, its record says"):
        reader.images("clean", np.array([0]), np.array([4]))


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    record = write_shard(tmp_path)
    content = bytearray((tmp_path / record.file).read_bytes())
    content[130] ^= 64  # in the octal digits of the first image's size
    (tmp_path / record.file).write_bytes(content)

    with pytest.raises(ShardError, match="the header of sample 0 is damaged"):
        open_shards(tmp_path, "train").check([0], contents=False)


def test_offsets_of_another_tar_are_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path, image_format="png")
    path = tmp_path / "train-00000.offsets.npy"
    np.save(path, np.load(path)[:3])

    with pytest.raises(ShardError, match="places of 3 samples, the record of its tar says 5"):
        open_shards(tmp_path, "train").check([0], contents=False)


def test_shards_of_other_images_are_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path)
    path = tmp_path / "train-00000.json"
    other = json.loads(path.read_text()) | {"file": "train-00001.tar"}
    other["images"]["clean"] = [48, 12, 3]
    (tmp_path / "train-00001.tar").write_bytes((tmp_path / "train-00000.tar").read_bytes())
    (tmp_path / "train-00001.json").write_text(json.dumps(other))

    with pytest.raises(ShardError, match=r"train-00001.tar: its images are .*\[48, 12, 3\]"):
        open_shards(tmp_path, "train")


@pytest.mark.parametrize("content", ["{", "[]", '{"file": "x"}', "null"])
def test_a_damaged_record_is_an_error(tmp_path: Path, content: str) -> None:
    write_shard(tmp_path)
    (tmp_path / "train-00000.json").write_text(content)

    with pytest.raises(ShardError, match=r"not a shard record .*delete it, then .* --force"):
        open_shards(tmp_path, "train")


def test_a_damaged_png_names_its_sample(tmp_path: Path) -> None:
    write_shard(tmp_path, image_format="png")
    tar = tmp_path / "train-00000.tar"
    content = bytearray(tar.read_bytes())
    offset = int(np.load(tmp_path / "train-00000.offsets.npy")[2, 0, 0])
    content[offset + 40 : offset + 80] = bytes(40)
    tar.write_bytes(content)

    with pytest.raises(ShardError, match="the png of sample 2 is damaged"):
        open_shards(tmp_path, "train").images("clean", np.array([0]), np.array([2]))


def test_a_reader_travels_to_other_processes_without_its_open_files(tmp_path: Path) -> None:
    write_shard(tmp_path)
    reader = open_shards(tmp_path, "train")
    first = reader.images("clean", np.array([0]), np.array([1]))

    copy = pickle.loads(pickle.dumps(reader))

    assert isinstance(copy, ShardReader)
    assert len(pickle.dumps(reader)) < 5000
    assert np.array_equal(copy.images("clean", np.array([0]), np.array([1])), first)


def test_many_shards_are_read_with_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write_shard(tmp_path, name=f"train-{number:05d}")
    monkeypatch.setattr("pipeline.data.shard_reader.most_open_shards", lambda: 2)
    reader = open_shards(tmp_path, "train")

    images = reader.images("clean", np.arange(6), np.arange(6) % 5)

    assert np.array_equal(images, np.stack([CLEAN[number % 5] for number in range(6)]))
    assert len(reader._open) == 2


def test_nothing_that_writes_or_reads_shards_imports_torch() -> None:
    imported = imported_by(
        "import pipeline.data.shards, pipeline.data.shard_reader, pipeline.data.shard_making, "
        "pipeline.data.listing"
    )

    assert not {"torch", "webdataset"} & imported
