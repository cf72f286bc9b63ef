import gzip
import os
import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from data_samples import (
    corrupted,
    corrupting_stage,
    execute,
    index_of,
    listed,
    listing_stage,
    shard_bytes,
)
from source_samples import FORMATS, contents_of, encoded_photographs, tar_bytes, write_folder

from pipeline import config
from pipeline.data.source import SourceError, decode_photograph
from pipeline.data.source_index import SourceIndex
from pipeline.data.testsets import open_test_set
from pipeline.graph import StageError
from pipeline.tasks import TASKS

PHOTOGRAPHS = encoded_photographs(8)
WHOLE = tar_bytes(PHOTOGRAPHS)


@pytest.mark.parametrize("form", FORMATS)
def test_photographs_in_a_tar_are_byte_identical(tmp_path: Path, form: str) -> None:
    names = {f"{'deep/' * 18}{name}": content for name, content in PHOTOGRAPHS.items()}
    if form != "ustar":  # which has 255 bytes for a name, and takes none that isn't ASCII for sure
        names |= {f"{'länge/' * 60}last.png": PHOTOGRAPHS["class0/photograph 0.png"]}
    (tmp_path / "a.tar").write_bytes(tar_bytes(names, form))

    index = index_of(tmp_path / "a.tar", tmp_path / "out")

    assert contents_of(index) == {f"a.tar/{name}": content for name, content in names.items()}


def test_tars_that_webdataset_writes_are_byte_identical(tmp_path: Path) -> None:
    samples = {f"{number:06d}": content for number, content in enumerate(PHOTOGRAPHS.values())}
    for part in range(2):
        with webdataset.TarWriter(str(tmp_path / f"train-{part:03d}.tar")) as writer:
            for key, content in list(samples.items())[part::2]:
                writer.write({"__key__": key, "jpg": content, "json": {"label": 1}, "cls": 3})

    artifact = listed(tmp_path / "train-{000..001}.tar", tmp_path / "out")

    index = SourceIndex(artifact.folder, artifact.manifest.summary["root"])
    expected = {
        f"train-{int(key) % 2:03d}.tar/{key}.jpg": content for key, content in samples.items()
    }
    assert contents_of(index) == expected
    assert artifact.manifest.summary["other_files"] == 16


def test_shards_from_a_tar_equal_those_from_the_same_names_in_a_folder(tmp_path: Path) -> None:
    """Keys are the hashes of names, and the tar's is the first part of them."""
    write_folder(tmp_path / "folder" / "a.tar", PHOTOGRAPHS)
    (tmp_path / "a.tar").write_bytes(tar_bytes(PHOTOGRAPHS))

    from_folder = corrupted("sr2", tmp_path / "folder", tmp_path / "of_folder")
    from_tar = corrupted("sr2", tmp_path / "a.tar", tmp_path / "of_tar", workers=2)

    assert shard_bytes(from_folder.folder) == shard_bytes(from_tar.folder)
    assert from_folder.manifest.summary["train_samples"] == 18


@pytest.mark.parametrize("pattern", ["train-{0..2}.tar", "*.tar", "train-{0,1,2}.tar", "**/*.tar"])
def test_patterns_name_tars(tmp_path: Path, pattern: str) -> None:
    for number, (name, content) in enumerate(list(PHOTOGRAPHS.items())[:3]):
        (tmp_path / f"train-{number}.tar").write_bytes(tar_bytes({name: content}))

    assert len(index_of(tmp_path / pattern, tmp_path / "out", validation_images=1)) == 3


def test_listing_does_not_depend_on_the_order_of_members(tmp_path: Path) -> None:
    for folder, contents in (("a", PHOTOGRAPHS), ("b", dict(reversed(PHOTOGRAPHS.items())))):
        write_folder(tmp_path / folder, {"x.tar": tar_bytes(contents)})

    first, second = (listed(tmp_path / at / "*.tar", tmp_path / f"out_{at}") for at in "ab")

    assert first.identity == second.identity


def test_what_a_tar_calls_here_or_hides_is_as_in_a_folder(tmp_path: Path) -> None:
    names = ("./a.png", "/b.png", "x/./c.png", "../up/d.png", "x//../e.png")
    left_out = ("./._a.png", "./.cache/c.png", "notes.txt")
    photographs = dict(zip(names + left_out, PHOTOGRAPHS.values(), strict=True))
    (tmp_path / "a.tar").write_bytes(tar_bytes(photographs))

    artifact = listed(tmp_path / "a.tar", tmp_path / "out", validation_images=1)

    index = SourceIndex(artifact.folder, artifact.manifest.summary["root"])
    listed_names = {f"a.tar/{name}" for name in ("a.png", "b.png", "x/c.png", "up/d.png", "e.png")}
    assert contents_of(index).keys() == listed_names
    assert artifact.manifest.summary["other_files"] == len(left_out)


def test_links_in_a_tar_are_listed_with_a_reason(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(write_folder(tmp_path / "in", PHOTOGRAPHS), arcname=".")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.png")
            member.type, member.linkname = kind, "class0/photograph 0.png"
            tar.addfile(member)

    summary = listed(tmp_path / "a.tar", tmp_path / "out").manifest.summary

    assert summary["images"] == len(PHOTOGRAPHS)
    paths = [each["path"] for each in summary["unreadable"]]
    assert paths == ["a.tar/link1.png", "a.tar/link2.png"]
    assert all("link" in each["reason"] for each in summary["unreadable"])


def member_offset(content: bytes, name: str) -> int:
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        return tar.getmember(name).offset


def pax_member(header: str) -> bytes:
    """A member with a `key=value` of its own in its extended header."""
    key, _, value = header.partition("=")
    member = tarfile.TarInfo("x.png")
    member.pax_headers = {key: value}
    return member.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("damage", "listed_before", "path", "reason"),
    [
        ("truncated member", 3, "b.tar/class0/photograph 3.jpg", r"truncated \(the tar has 700 of"),
        ("cut between members", 3, "b.tar", r"truncated tar \(no end mark at byte [\d,]+\)"),
        ("header checksum", 3, "b.tar", r"damaged tar \(header at byte [\d,]+; what follows"),
        ("first header", 0, "b.tar", r"damaged tar \("),
        ("two in one", 8, "b.tar", r"damaged tar \(what follows its end mark at byte [\d,]+ is"),
        ("an empty block", 3, "b.tar", r"damaged tar \(what follows its end mark"),
        ("GNU.sparse.map=a,b", 3, "b.tar", r"damaged tar \(invalid literal for int"),
        ("size=-1024", 3, "b.tar", r"damaged tar \(a member of -1024 bytes\)"),
        (f"size={10**23}", 3, "b.tar", r"damaged tar \("),
        ("headers of headers", 3, "b.tar", r"damaged tar \("),
    ],
)
def test_a_damaged_tar_stops_the_listing_unless_the_config_does_without_the_rest(
    tmp_path: Path, damage: str, listed_before: int, path: str, reason: str
) -> None:
    at = member_offset(WHOLE, "class0/photograph 3.jpg")
    broken = {
        "truncated member": WHOLE[: at + 512 + 700],
        "cut between members": WHOLE[:at],
        "header checksum": WHOLE[: at + 5] + b"X" + WHOLE[at + 6 :],
        "first header": b"X" + WHOLE[1:],
        "two in one": WHOLE + WHOLE,
        "an empty block": WHOLE[:at] + bytes(512) + WHOLE[at:],
        "headers of headers": WHOLE[:at] + pax_member("a=b")[:-512] * 1000 + WHOLE[at:],
    }.get(damage) or WHOLE[:at] + pax_member(damage) + WHOLE[at:]
    write_folder(tmp_path, {"a.tar": WHOLE, "b.tar": broken})

    with pytest.raises(StageError, match=rf"^{tmp_path}/b.tar: .* tar \(.*skip_damaged: true"):
        listed(tmp_path / "*.tar", tmp_path / "out")
    summary = listed(tmp_path / "*.tar", tmp_path / "out", skip_damaged=True).manifest.summary

    assert summary["images"] == len(PHOTOGRAPHS) + listed_before
    found = {each["path"]: each["reason"] for each in summary["unreadable"]}
    assert re.match(reason, found[path])


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({"a.tar": b""}, "a.tar", "no photograph in it.*a.tar: damaged tar"),
        ({"a.tar": b"\x1f\x8bxx"}, "a.tar", "it is compressed, unpack it first"),
        (
            {"0.tar": WHOLE} | {f"{number}.tar": gzip.compress(WHOLE) for number in (1, 2, 3)},
            "*.tar",
            r"/1.tar: .*it is compressed, unpack it first\) \(and 2 more\); .* skip_damaged: true",
        ),
        ({"a.tar": tar_bytes({"x.txt": b"1"})}, "a.tar", r"no photograph in it.*\(1 other files\)"),
        ({"a-0.tar": b""}, "a-{0..2}.tar", r"a-1.tar and 1 more: no such file"),
        ({"a.tar": tar_bytes({})}, "b-*.tar", r"b-\*.tar: no such file"),
        (
            {"a/x.tar": tar_bytes(PHOTOGRAPHS), "b/x.tar": tar_bytes(PHOTOGRAPHS)},
            "{a,b}/x.tar",
            "a/x.tar and .*b/x.tar have the same name",
        ),
        (
            {"a.tar": tar_bytes({"n01.tar": tar_bytes(PHOTOGRAPHS), "x.txt": b"1"})},
            "a.tar",
            r"\(2 other files, 1 of them tars\); tars in a tar are not read: unpack the outer one",
        ),
        (
            {"a/n01.tar": tar_bytes(PHOTOGRAPHS), "a/x.txt": b"1"},
            "a",
            r"\(2 other files, 1 of them tars\); .* the path of the source to .*/a/\*.tar, or to ",
        ),
        ({"a.rar": b""}, "a.rar", r"a.rar: not a folder; .*uncompressed tars"),
    ],
)
def test_unusable_tars_are_errors_that_say_why(
    tmp_path: Path, files: dict[str, bytes], path: str, message: str
) -> None:
    write_folder(tmp_path, files)

    with pytest.raises(StageError, match=message):
        listed(tmp_path / path, tmp_path / "out")


def test_a_member_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for content in list(PHOTOGRAPHS.values())[:2]:
            member = tarfile.TarInfo("x.png")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))

    with pytest.raises(StageError, match=r"a.tar/x.png is there twice: the same key"):
        listed(tmp_path / "a.tar", tmp_path / "out")


def test_a_tar_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(PHOTOGRAPHS))
    stage = listing_stage(path)
    artifact = execute(stage, tmp_path / "out")
    assert artifact is not None
    assert stage.stale is not None
    assert stage.stale(stage.config, artifact.manifest) is None

    os.utime(path, ns=(1, 1))

    assert stage.stale(stage.config, artifact.manifest) == f"{path} changed since it was listed"
    with pytest.raises(SourceError, match=r"a.tar: was written to since it was listed: the source"):
        SourceIndex(artifact.folder, path).read(0)
    path.write_bytes(tar_bytes(PHOTOGRAPHS)[:-512])
    with pytest.raises(SourceError, match=r"a.tar: has \d+ bytes, \d+ when listed: the source"):
        SourceIndex(artifact.folder, path).read(0)
    path.unlink()
    assert stage.stale(stage.config, artifact.manifest) is None
    with pytest.raises(SourceError, match=r"a.tar: is gone: the source changed"):
        SourceIndex(artifact.folder, path).read(0)


def test_a_changed_tar_stops_the_corrupt_stage_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(PHOTOGRAPHS))
    source = listed(path, tmp_path / "source")
    os.utime(path, ns=(1, 1))

    with pytest.raises(StageError, match=r"a.tar: was written to .*--until source@photos --force"):
        execute(corrupting_stage("denoise30", path), tmp_path / "out", {"source": source})


def test_validation_photographs_in_a_tar_are_evaluated_on(tmp_path: Path) -> None:
    small = encoded_photographs(3, height=20)
    contents = PHOTOGRAPHS | {f"small/{name}": content for name, content in small.items()}
    (tmp_path / "a.tar").write_bytes(tar_bytes(contents))
    index = index_of(tmp_path / "a.tar", tmp_path / "out", validation_images=3)

    test_set = open_test_set(
        config.TestSetConfig(source="photos"), TASKS["sr2"], seed=0, sources={"photos": index}
    )

    names = [Path(index.name(number)) for number in range(len(index)) if index.validation[number]]
    pairs = {pair.name: pair for pair in test_set}
    assert pairs.keys() == {name.stem for name in names}
    for name in names:
        clean = decode_photograph(contents[str(name.relative_to("a.tar"))])
        assert np.array_equal(pairs[name.stem].clean, clean)


def test_patterns_of_names_hold_out_members(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(PHOTOGRAPHS))

    index = index_of(tmp_path / "a.tar", tmp_path / "out", held_out=("a.tar/class1/*",))

    chosen = {index.name(number) for number in np.flatnonzero(index.validation)}
    assert chosen == {f"a.tar/{name}" for name in PHOTOGRAPHS if name.startswith("class1")}


def test_more_tars_than_may_be_open_are_read(tmp_path: Path) -> None:
    photographs = encoded_photographs(70, height=34, width=34)
    for number, (name, content) in enumerate(photographs.items()):
        (tmp_path / f"{number:02d}.tar").write_bytes(tar_bytes({name: content}))
    index = index_of(tmp_path / "{00..69}.tar", tmp_path / "out")
    before = len(os.listdir("/proc/self/fd"))

    twice = [contents_of(index) for _ in range(2)]

    assert set(twice[0].values()) == set(twice[1].values()) == set(photographs.values())
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    del index
    assert len(os.listdir("/proc/self/fd")) <= before
