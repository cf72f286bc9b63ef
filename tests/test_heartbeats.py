"""Locks where the file system has no flock."""

import errno
import os
import random
import threading
import time
from pathlib import Path

import pytest

from pipeline import heartbeats, locks
from pipeline.artifacts import files_to_seal
from pipeline.data.file_locks import hold
from pipeline.data.listing import replacing
from pipeline.heartbeats import Heartbeat, HeldByAnother
from pipeline.locks import ArtifactError, check_owner, holder, writing

STALE_SECONDS = 1.5


@pytest.fixture(autouse=True)
def _without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.05)
    uniform = random.uniform
    monkeypatch.setattr(locks.random, "uniform", lambda *_: uniform(0.001, 0.02))


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


def test_a_second_run_says_who_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "STALE_SECONDS", STALE_SECONDS)

    with writing(tmp_path):
        assert f'"pid": {os.getpid()}' in holder(tmp_path)
        # It takes longer to know than a lock lasts that is not kept alive.
        with pytest.raises(ArtifactError, match=rf"^{tmp_path}: another run is .*{os.getpid()}"):
            writing(tmp_path).__enter__()
        check_owner(tmp_path)
        assert not list(files_to_seal(tmp_path))

    assert holder(tmp_path) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_lock_that_was_held_is_free_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_flock(monkeypatch, number)

    with writing(tmp_path):
        pass

    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with writing(tmp_path):
        pass


def test_another_error_is_no_missing_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch, errno.EIO)

    with pytest.raises(OSError, match="Input/output"), writing(tmp_path):
        pass


@pytest.mark.parametrize("shared", [False, True])
def test_who_gives_no_beat_loses_the_lock_and_finds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(heartbeats, "STALE_SECONDS", STALE_SECONDS)
    with writing(tmp_path, shared=shared):
        monkeypatch.setattr(heartbeats.os, "utime", lambda path: None)
        began = time.monotonic()

        with writing(tmp_path):
            waited = time.monotonic() - began
            with pytest.raises(ArtifactError, match="another run has taken over"):
                check_owner(tmp_path)

    assert waited >= STALE_SECONDS / 2


def test_parts_share_a_folder_and_keep_whole_stages_out(tmp_path: Path) -> None:
    with writing(tmp_path, shared=True), writing(tmp_path, shared=True):
        check_owner(tmp_path)
        assert holder(tmp_path) is None
        with pytest.raises(HeldByAnother):
            Heartbeat(tmp_path / ".lock", shared=False)
    with writing(tmp_path), pytest.raises(HeldByAnother):
        Heartbeat(tmp_path / ".lock", shared=True)


def test_a_newer_copy_of_a_job_takes_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    with writing(tmp_path):
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with writing(tmp_path):
            with pytest.raises(ArtifactError, match="another run has taken over"):
                check_owner(tmp_path)
            assert '"restart": "1"' in holder(tmp_path)


@pytest.mark.parametrize("shared", [0, 4])
def test_of_many_who_come_at_once_nobody_holds_beside_an_exclusive_one(
    tmp_path: Path, shared: int
) -> None:
    inside: list[str] = []
    wrong: list[list[str]] = []
    held = []

    def hold_often(kind: str) -> None:
        for _ in range(3):
            with writing(tmp_path, shared=kind == "shared", patience=60):
                inside.append(kind)
                time.sleep(0.01)
                seen = list(inside)
                if "exclusive" in seen and len(seen) > 1:
                    wrong.append(seen)
                inside.remove(kind)
                held.append(kind)

    kinds = ["exclusive"] * 4 + ["shared"] * shared
    threads = [threading.Thread(target=hold_often, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(held) == 3 * len(kinds)


def test_a_cache_of_shards_says_where_it_can_be_instead(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"no flock here; set runtime.shard_cache to a local disk: .*/cache/a'"
    ):
        hold(tmp_path / "cache" / "a", wait=True)


def test_a_lock_whose_owner_can_not_be_noted_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(locks, "_write", fill_the_disk)
        with pytest.raises(OSError, match="No space"):
            writing(tmp_path).__enter__()

    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with writing(tmp_path):
        pass


def test_a_lock_that_is_let_go_while_it_is_looked_at_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread looks at the locks of all."""
    is_lost = Heartbeat.is_lost
    ended = threading.Event()

    def slowly(heartbeat: Heartbeat) -> bool:
        looks.set()
        ended.wait(20)
        return is_lost(heartbeat)

    monkeypatch.setattr(Heartbeat, "is_lost", slowly)
    looks, errors = threading.Event(), []

    def look() -> None:
        try:
            check_owner(tmp_path)
        except ArtifactError as error:
            errors.append(error)

    with writing(tmp_path):
        thread = threading.Thread(target=look)
        thread.start()
        looks.wait(20)
    ended.set()
    thread.join()

    assert not errors


def test_who_has_lost_the_lock_writes_into_no_file_of_another(tmp_path: Path) -> None:
    whole, half = tmp_path / "a", replacing(tmp_path / "a")
    slept = half.__enter__()
    slept.write(b"one")
    other = os.fork()
    if other == 0:
        with replacing(whole) as file:
            file.write(b"other")
        os._exit(0)
    os.waitpid(other, 0)
    slept.write(b" more")
    slept.flush()

    assert whole.read_bytes() == b"other"
    with pytest.raises(FileNotFoundError):
        half.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
