"""What `ipt status` shows, with a fake SLURM and without one."""

import re

import pytest
from demo_run import Run
from fake_slurm import on_the_path, submit_run

from launch.submitted import read_records
from pipeline.config_file import load_config
from stages.recipe import build_graph


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return on_the_path(tmp_path / "bin", monkeypatch)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_status_tells_from_folders_what_a_job_said_last(run, fake, monkeypatch):
    submit_run(run)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}["rain-layers"]
    (fake / "queue").unlink()
    events = run.folder / "slurm" / "jobs" / f"{job}.events"
    events.write_text("2026-01-01 00:00:00 start 0 on n1\n2026-01-01 00:00:09 failed: why\n")
    (run.folder / "slurm" / "jobs" / f"{job}.ended").write_text("1\n")
    with_slurm = run("status")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    for output in (with_slurm, run("status")):
        rows = {line.split()[1]: line for line in output.splitlines() if line.startswith("  ")}
        assert re.search(rf"✗  rain-layers +failed +{job}  failed: why", rows["rain-layers"])
        assert re.search(r"✗  pretrain +cancelled", rows["pretrain"])
    assert "SLURM does not answer here" in output


def test_status_has_the_queue_and_the_time_left(run, fake):
    submit_run(run)
    queue = (fake / "queue").read_text()
    queue = queue.replace(
        "0|PENDING|Dependency|tiny:corrupt-sr2@photos", "0|RUNNING|None|tiny:corrupt-sr2@photos"
    )
    (fake / "queue").write_text(queue)

    rows = {line.split()[1]: line for line in run("status").splitlines() if line.startswith("  ")}

    assert "1 running, 3 pending" in rows["corrupt-sr2@photos"]
    assert re.search(r"pretrain +pending +\d+ +Dependency", rows["pretrain"])


def test_status_shows_the_last_step_of_a_training(run, fake):
    run("run", "--before", "pretrain")
    (folder,) = {
        each.folder
        for each in build_graph(load_config(run.config)).resolve(run.folder).values()
        if each.stage.name == "pretrain"
    }
    (folder / "logs").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 2, "samples": 48, "seconds_left": 16.2}\n')
    (folder / "logs" / "log.txt").write_text(
        "2026-01-01 00:00:00 step 2/6  samples 48  loss 5  6 samples/s\n"
        "2026-01-01 00:00:01 saved step-00000002 in 0.1 s\n"
    )

    (row,) = (line for line in run("status").splitlines() if line.startswith("  ·  pretrain "))

    assert "step 2/6  samples 48  loss 5  6 samples/s (" in row
    assert row.endswith("16 s")
