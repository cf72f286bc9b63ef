"""A folder is done when its manifest says so, and one writer at a time may change it."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import artifacts, locks
from pipeline.artifacts import ArtifactError


def sealed(folder: Path) -> artifacts.Artifact:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(b"12345")
    (folder / "b.txt").write_text("text")
    (folder / "logs").mkdir()
    (folder / "logs" / "log.txt").write_text("line")
    return artifacts.seal(
        folder,
        stage="stage",
        version=1,
        fingerprint="f" * 64,
        config={"x": 1},
        inputs={"role": "identity"},
        summary={"n": 2},
        seconds=1.5,
    )


def test_sealed_folder_opens_as_it_was_sealed(tmp_path):
    written = sealed(tmp_path / "a")

    opened = artifacts.open_artifact(tmp_path / "a")

    assert opened == written
    assert [file.path for file in opened.manifest.files] == ["b.txt", "sub/a.bin"]
    assert artifacts.verify(opened) == []


def test_sealing_tells_how_far_it_is_and_reads_no_file_whose_hash_is_known(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    told = []

    artifact = artifacts.seal(
        tmp_path,
        stage="stage",
        version=1,
        fingerprint="f",
        config={},
        inputs={},
        summary={},
        seconds=0,
        known={"b": "0" * 64},
        progress=lambda done, total: told.append((done, total)),
    )

    assert told == [(0, 3), (1, 3), (2, 3)]
    hashes = {file.path: file.sha256 for file in artifact.manifest.files}
    assert hashes["b"] == "0" * 64
    assert hashes["a"] == artifacts.file_digest(tmp_path / "a")


def test_folder_without_manifest_is_not_an_artifact(tmp_path):
    assert artifacts.open_artifact(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "b.txt").write_text("texx"), "altered"),
        (lambda folder: (folder / "b.txt").write_text("longer"), "6 bytes, sealed with 4"),
        (lambda folder: (folder / "sub" / "a.bin").unlink(), "missing"),
    ],
)
def test_verify_names_the_file_that_was_altered(tmp_path, change, words):
    artifact = sealed(tmp_path / "a")

    change(tmp_path / "a")

    (problem,) = artifacts.verify(artifact)
    assert words in problem
    assert str(tmp_path / "a") in problem


def test_logs_may_change_after_the_seal(tmp_path):
    artifact = sealed(tmp_path / "a")

    (tmp_path / "a" / "logs" / "log.txt").write_text("more lines")

    assert artifacts.verify(artifact) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 99}', "another version"),
        ('{"schema": 1, "files": []}', "not as ipt-pipeline writes it"),
        ('{"schema": 1, "files": [{"name": "a"}]}', "not as ipt-pipeline writes it"),
        ("[]", "another version"),
        ("{", "delete this folder"),
        ("", "delete this folder"),
    ],
)
def test_manifest_that_is_not_ours_is_refused_and_left_alone(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(ArtifactError, match=words):
        artifacts.open_artifact(tmp_path)

    assert (tmp_path / "manifest.json").read_text() == text


def test_atomic_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    artifacts.write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=f"too large: '{path}'"):
            artifacts.write_atomically(path, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import sys
from pathlib import Path
from pipeline.locks import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_writer(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_second_writer_is_told_who_writes_and_stops(tmp_path, other_writer):
    with (
        pytest.raises(ArtifactError, match=f'"pid": {other_writer.pid}'),
        locks.writing(tmp_path),
    ):
        pass

    assert json.loads(locks.holder(tmp_path))["pid"] == other_writer.pid


def test_lock_ends_with_its_holder(tmp_path, other_writer):
    other_writer.kill()
    other_writer.wait()

    with locks.writing(tmp_path):
        pass
    assert locks.holder(tmp_path) is None


def test_parts_of_an_array_share_a_folder_but_keep_a_whole_writer_out(tmp_path):
    with (
        locks.writing(tmp_path, shared=True),
        locks.writing(tmp_path, shared=True),
        pytest.raises(ArtifactError),
        locks.writing(tmp_path),
    ):
        pass


def test_setting_aside_keeps_everything(tmp_path):
    sealed(tmp_path / "a")

    first = artifacts.set_aside(tmp_path / "a")
    sealed(tmp_path / "a")
    second = artifacts.set_aside(tmp_path / "a")

    assert not (tmp_path / "a").exists()
    assert (first / "b.txt").read_text() == (second / "b.txt").read_text() == "text"


def test_digest_does_not_depend_on_the_order_of_keys():
    assert artifacts.canonical_digest({"a": 1, "b": [2, 3]}) == artifacts.canonical_digest(
        {"b": [2, 3], "a": 1}
    )
    assert artifacts.canonical_digest({"a": 1}) != artifacts.canonical_digest({"a": 2})
