"""A disk that fails while photographs are read: the system names no file then, the sentence does.

Reading /proc/self/mem at its beginning is such an error: EIO, as of a cluster's network disk.
"""

import errno
import os
import pickle
from pathlib import Path

import pytest
from data_samples import corrupting_stage, execute, listed, photograph, write_photographs
from PIL import Image
from source_samples import encoded_photographs, tar_bytes

from pipeline.data import folders, source_index
from pipeline.data.containers import Container, ContainerReader, container_at, reading
from pipeline.graph import StageError

UNREADABLE = Path("/proc/self/mem")
FAILS = r"can't be read \(Input/output error\)"


def test_a_photograph_that_the_disk_fails_to_read_is_named_when_it_is_corrupted(
    tmp_path: Path,
) -> None:
    photographs = write_photographs(tmp_path / "in", 4)
    source = listed(photographs, tmp_path / "source")
    index = source_index.SourceIndex(source.folder, photographs)
    number = int(index.validation.argmin())  # the first that is trained on
    bad = index.path(number)
    bad.unlink()
    bad.symlink_to(UNREADABLE)

    with pytest.raises(StageError, match=rf"^{bad}: {FAILS}\. Finished .* is mended, run") as stop:
        execute(corrupting_stage("sr3", photographs), tmp_path / "out", {"source": source})

    assert "space" not in str(stop.value)


def test_a_photograph_that_the_disk_fails_to_read_is_named_when_it_is_listed(
    tmp_path: Path,
) -> None:
    Image.fromarray(photograph(0)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").symlink_to(UNREADABLE)

    with pytest.raises(StageError, match=rf"^{tmp_path}/bad.png: {FAILS}; the listing stopped"):
        listed(tmp_path, tmp_path / ".out")


def test_a_tar_that_the_disk_fails_to_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(encoded_photographs(2)))
    (tmp_path / "bad.tar").symlink_to(UNREADABLE)

    with pytest.raises(StageError, match=rf"^{tmp_path}/bad.tar: {FAILS}; the listing stopped"):
        listed(tmp_path / "*.tar", tmp_path / "out")


def test_samples_of_files_and_parts_of_containers_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = Container(path=str(UNREADABLE), bytes=0)
    with pytest.raises(OSError, match=FAILS) as of_container:
        ContainerReader(tmp_path, [container]).read(0, 0, 10)
    with pytest.raises(OSError, match=FAILS) as of_file:
        folders._content(os.fsencode(UNREADABLE), 10)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    download = tmp_path / "a.tar"
    download.write_bytes(bytes(10))
    moving = container_at(download, stored_as="a.tar")
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=FAILS) as of_download:
        ContainerReader(tmp_path, [moving]).read(0, 0, 10)
    with pytest.raises(OSError, match=FAILS) as of_sample:
        container_at(download, stored_as="a.tar")

    assert of_container.value.filename == of_file.value.filename == str(UNREADABLE)
    assert of_download.value.filename == of_sample.value.filename == str(download)


def test_the_name_reaches_the_process_that_waits_for_a_worker() -> None:
    with pytest.raises(OSError, match=FAILS) as raised, reading(b"in/\xff.png"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    error = pickle.loads(pickle.dumps(raised.value))
    assert (error.filename, error.errno) == (r"in/\xff.png", errno.EIO)
    assert error.strerror == "can't be read (Input/output error)"
