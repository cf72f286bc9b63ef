"""A login node may see only after a minute what a job has made."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from demo_run import STAGES, Run
from fake_slurm import calls, submit_run

from launch import sight
from launch.submitted import read_records
from pipeline.artifacts import MANIFEST

STAGE = "source@photos"


@pytest.fixture
def manifest(run: Run, fake: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a stage that a job has just made, and others wait to read."""
    monkeypatch.setattr(sight, "SECONDS_BETWEEN_LOOKS", 0.1)
    submit_run(run)
    run("run", "--until", STAGE)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}[STAGE]
    lines = (fake / "queue").read_text().splitlines(keepends=True)
    (fake / "queue").write_text("".join(line for line in lines if not line.startswith(job)))
    (run.folder / "slurm" / "jobs" / f"{job}.ended").write_text("0\n")
    (manifest,) = run.folder.glob(f"{STAGE}/*/{MANIFEST}")
    return manifest


def test_what_a_job_has_just_sealed_is_waited_for(run, fake, manifest, capsys):
    hidden = manifest.rename(manifest.with_name(".hidden"))
    timer = threading.Timer(1, hidden.rename, (manifest,))
    timer.start()

    submit_run(run)

    assert not timer.is_alive()
    assert len(calls(fake)) == len(STAGES)
    assert capsys.readouterr().out.count("there is no manifest.json in") == 1


def test_what_never_comes_into_sight_is_made_again(run, fake, manifest, monkeypatch, capsys):
    monkeypatch.setattr(sight, "SECONDS_UNTIL_SEEN", 0.5)
    shutil.rmtree(manifest.parents[1])
    began = time.monotonic()

    submit_run(run)

    assert time.monotonic() - began >= 0.5
    assert f"{STAGE}.sbatch" in calls(fake)[len(STAGES)]
    assert f"in {manifest.parent} 0 s later: it is made again" in capsys.readouterr().out


def test_what_was_sealed_long_ago_and_removed_is_made_again_at_once(run, fake, manifest, capsys):
    shutil.rmtree(manifest.parents[1])
    (ended,) = (run.folder / "slurm" / "jobs").glob("*.ended")
    os.utime(ended, (time.time() - 130,) * 2)

    submit_run(run)

    assert f"{STAGE}.sbatch" in calls(fake)[len(STAGES)]
    assert "no manifest.json" not in capsys.readouterr().out
