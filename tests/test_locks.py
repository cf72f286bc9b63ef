"""Two copies of one job, as SLURM may leave them: only the newer one ever seals."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import locks
from pipeline.artifacts import ArtifactError, open_artifact, seal
from pipeline.locks import check_owner, holder, writing

ROOT = Path(__file__).parents[1]
GRACE_SECONDS = 0.7  # shorter than they are
# Holds the lock of a folder until a line comes, then seals a checkpoint below it.
COPY = """
import sys
from pathlib import Path
from pipeline import locks
from pipeline.artifacts import ArtifactError, seal
from pipeline.locks import writing
folder = Path(sys.argv[1])
locks.GRACE_SECONDS = float(sys.argv[3])
try:
    with writing(folder, name=sys.argv[2]):
        print("held", flush=True)
        sys.stdin.readline()
        inner = folder / "checkpoints" / "step-1"
        inner.mkdir(parents=True, exist_ok=True)
        seal(inner, stage="a", version=1, fingerprint="f", config={}, inputs={}, summary={},
             seconds=0)
        print("sealed", flush=True)
except ArtifactError as error:
    print(error, flush=True)
"""


class Copy:
    """A process of job 7, started by SLURM for the `restart`-th time."""

    def __init__(self, folder: Path, *, restart: int, job: str = "7", name: str = ".lock") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COPY, str(folder), name, str(GRACE_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)},
        )

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def goes_on(self) -> str:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.said()


@pytest.fixture
def start(tmp_path):
    copies = []

    def one(**values):
        copies.append(Copy(tmp_path, **values))
        return copies[-1]

    yield one
    for copy in copies:
        copy.process.kill()
        copy.process.communicate()


@pytest.mark.parametrize("name", [".lock", ".lock-3-of-8"])
def test_a_newer_copy_of_a_job_takes_over_and_the_older_seals_nothing(tmp_path, start, name):
    old = start(restart=0, name=name)
    assert old.said() == "held"

    new = start(restart=1, name=name)

    assert new.said() == "held"
    assert "another run has taken over" in old.goes_on()
    assert open_artifact(tmp_path / "checkpoints" / "step-1") is None
    assert new.goes_on() == "sealed"
    assert open_artifact(tmp_path / "checkpoints" / "step-1").manifest.provenance["restart"] == "1"


def test_an_older_copy_that_comes_late_is_refused(tmp_path, start):
    new = start(restart=2)
    assert new.said() == "held"
    assert "another run is writing here" in start(restart=1).said()
    assert new.goes_on() == "sealed"
    new.process.wait()

    # Nobody holds the lock any more, but its record says who was here.
    assert "a newer copy of this job was here" in start(restart=1).said()
    assert start(restart=3).said() == "held"


def test_a_lock_of_an_older_copy_is_waited_for_even_where_it_seems_free(
    tmp_path, start, monkeypatch
):
    """Where locks hold for one machine only, a free one says nothing about the other."""
    old = start(restart=0)
    assert old.said() == "held"
    assert old.goes_on() == "sealed"
    old.process.wait()
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    waits = []
    monkeypatch.setattr(locks.time, "sleep", waits.append)

    with writing(tmp_path):
        assert waits == [locks.GRACE_SECONDS]
    with writing(tmp_path):  # its own record is nobody's older one
        assert waits == [locks.GRACE_SECONDS]


def test_another_job_takes_nothing_over(start):
    assert start(restart=0).said() == "held"

    assert "another run is writing here" in start(restart=5, job="8").said()


def test_a_lock_that_only_its_machine_honours_is_lost_to_who_writes_last(tmp_path, start):
    """Such as flock on a file system that is mounted with local locks."""
    with writing(tmp_path):
        (tmp_path / ".lock").write_text(json.dumps(locks.owner() | {"host": "elsewhere"}))

        with pytest.raises(ArtifactError, match="elsewhere"):
            seal(
                tmp_path,
                stage="a",
                version=1,
                fingerprint="f",
                config={},
                inputs={},
                summary={},
                seconds=0,
            )
    assert open_artifact(tmp_path) is None


def test_who_waits_for_a_lock_that_is_taken_over_does_not_get_the_old_one(tmp_path, start):
    old = start(restart=0)
    assert old.said() == "held"
    new = start(restart=1)
    assert new.said() == "held"
    old.process.kill()
    old.process.wait()

    assert '"restart": "1"' in holder(tmp_path)
    with pytest.raises(ArtifactError, match="another run is writing"), writing(tmp_path):
        pass


def test_parts_that_share_a_folder_are_no_owners_of_it(tmp_path, start):
    left = start(restart=0)
    assert left.said() == "held"
    left.process.kill()
    left.process.wait()

    with writing(tmp_path, shared=True), writing(tmp_path, shared=True):
        check_owner(tmp_path)

    assert holder(tmp_path) is None


def test_taking_over_gives_the_older_copy_time_to_notice(tmp_path, start):
    assert start(restart=0).said() == "held"
    began = time.monotonic()

    assert start(restart=1).said() == "held"

    assert time.monotonic() - began >= GRACE_SECONDS
