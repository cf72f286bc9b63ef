"""What `ipt status` shows, with a fake SLURM and without one."""

import os
import re
import time
from pathlib import Path

import pytest
from demo_run import Run
from fake_slurm import put, submit_run

from launch.submitted import read_records
from pipeline.config_file import load_config
from stages.recipe import build_graph


def rows_of(run: Run) -> dict[str, str]:
    lines = run.here("status").partition("\nlogs\n")[0].splitlines()
    return {line.split()[1]: line for line in lines if line.startswith("  ")}


def jobs_of(run: Run) -> dict[str, str]:
    return {each.stage: each.job for each in read_records(run.folder / "slurm")}


def say(run: Run, job: str, *events: str) -> Path:
    """What a batch script leaves; the path without a suffix."""
    path = run.folder / "slurm" / "jobs" / job
    lines = [f"2026-01-01 00:00:{second:02d} {event}\n" for second, event in enumerate(events)]
    Path(f"{path}.events").write_text("".join(lines))
    return path


def shut(fake: Path) -> None:
    put(fake / "squeue", "#!/bin/bash\necho 'Unable to contact slurm controller' >&2\nexit 1\n")


def test_without_an_answer_jobs_that_said_nothing_yet_are_submitted(run, fake):
    submit_run(run)
    shut(fake)

    rows = rows_of(run)

    for stage, job in jobs_of(run).items():
        of_array = r"\d " if stage.startswith("corrupt") else ""
        assert re.search(rf"·  {stage} +({of_array})submitted +{job}\s*$", rows[stage]), rows[stage]


@pytest.mark.parametrize(
    ("events", "seconds", "expected"),
    [
        (("start 0 on n1",), None, "▸  {} +started +{}  start 0 on n1"),
        (
            ("start 0 on n1",),
            12,
            r"▸  {} +running +{}  start 0 on n1, last sign of life 1\d s",
        ),
        (("start 0 on n1",), 7300, "▸  {} +started +{}  .*, last sign of life 2 h 01 min ago"),
        (("start 0 on n1", "SIGTERM"), 12, "▸  {} +running +{}  SIGTERM, last sign"),
        (
            ("start 0 on n1", "to be requeued: srun 1"),
            12,
            "▸  {} +started +{}  to be requeued: srun 1",
        ),
        (("start 0 on n1", "ended by SLURM"), 12, "·  {} +stopped +{}  ended by SLURM"),
        (("start 0 on n1", "done"), 12, "·  {} +ended +{}  done"),
    ],
)
def test_without_an_answer_a_job_is_where_it_last_said(run, fake, events, seconds, expected):
    submit_run(run)
    shut(fake)
    job = jobs_of(run)["pretrain"]
    path = say(run, job, *events)
    if seconds is not None:
        alive = Path(f"{path}-0.alive")
        alive.touch()
        os.utime(alive, (time.time() - seconds,) * 2)

    row = rows_of(run)["pretrain"]

    assert re.search(expected.format("pretrain", job), row), row


def test_without_an_answer_the_parts_of_an_array_are_counted(run, fake):
    submit_run(run)
    shut(fake)
    job = jobs_of(run)["corrupt-sr2@photos"]
    Path(f"{say(run, f'{job}_0', 'start 0 on n1')}-0.alive").touch()
    say(run, f"{job}_1", "start 0 on n1", "done")

    rows = rows_of(run)

    assert "1 running, 1 ended, 2 submitted" in rows["corrupt-sr2@photos"]
    assert re.search(r"·  pretrain +submitted", rows["pretrain"])


def test_parts_that_were_handed_in_at_different_times_are_all_counted(run, fake):
    submit_run(run)
    first = jobs_of(run)["corrupt-sr2@photos"]
    queue = (fake / "queue").read_text().splitlines(keepends=True)
    (fake / "queue").write_text("".join(line for line in queue if f"{first}|2|" not in line))
    say(run, f"{first}_2", "start 0 on n1", "failed: the old way")
    (run.folder / "slurm" / "jobs" / f"{first}_2.ended").write_text("1\n")
    submit_run(run)
    shut(fake)

    rows = rows_of(run)
    say(run, f"{first}_1", "start 0 on n1", "failed: why")
    (run.folder / "slurm" / "jobs" / f"{first}_1.ended").write_text("1\n")
    rows_after_failure = rows_of(run)

    job = jobs_of(run)["corrupt-sr2@photos"]
    assert job != first
    row = rows["corrupt-sr2@photos"]
    assert re.search(rf" 4 submitted +{first}, {job}\s*$", row), row
    found = rows_after_failure["corrupt-sr2@photos"]
    assert re.search(r"✗ .* 3 submitted, 1 failed .*  part 1 failed: why\s*$", found)
    # SLURM cancels it when the other parts have ended, too.
    assert re.search(r"·  report +submitted", rows_after_failure["report"])


def test_status_tells_from_folders_what_a_job_said_last(run, fake, monkeypatch):
    submit_run(run)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}["rain-layers"]
    (fake / "queue").unlink()
    events = run.folder / "slurm" / "jobs" / f"{job}.events"
    events.write_text("2026-01-01 00:00:00 start 0 on n1\n2026-01-01 00:00:09 failed: why\n")
    (run.folder / "slurm" / "jobs" / f"{job}.ended").write_text("1\n")
    with_slurm = run.here("status")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    for output in (with_slurm, run.here("status")):
        rows = {line.split()[1]: line for line in output.splitlines() if line.startswith("  ")}
        assert re.search(rf"✗  rain-layers +failed +{job}  failed: why", rows["rain-layers"])
        assert re.search(r"✗  pretrain +cancelled", rows["pretrain"])
    assert "SLURM does not answer here" in output


@pytest.mark.parametrize(
    ("stage", "accounts", "expected"),
    [
        ("pretrain", "{}|CANCELLED by 1000", "✗  {} +cancelled +{}  never began"),
        ("pretrain", "{}|TIMEOUT", "✗  {} +timeout +{}  start 0 on n1"),
        ("pretrain", "{}|NODE_FAIL", "✗  {} +node_fail +{}  start 0 on n1"),
        ("pretrain", "{}|OUT_OF_MEMORY", "✗  {} +out_of_memory +{}  start 0 on n1"),
        # The accounting has not heard of an end that the queue has.
        ("pretrain", "{}|RUNNING", "·  {} +ended +{}  start 0 on n1"),
        (
            "corrupt-sr2@photos",
            "{0}_0|COMPLETED\n{0}_1|TIMEOUT\n{0}_[2-3%2]|CANCELLED by 0",
            "✗  {} +1 completed, 1 timeout, 2 cancelled +{}  ",
        ),
        # The accounting has not heard of the end of part 3, which never said a word.
        (
            "corrupt-sr2@photos",
            "{0}_0|COMPLETED\n{0}_[1-2]|CANCELLED by 1000\n{0}_3|RUNNING",
            "✗  {} +1 completed, 3 cancelled +{}  ",
        ),
    ],
)
def test_status_has_how_jobs_ended_from_the_accounting(run, fake, stage, accounts, expected):
    submit_run(run)
    job = jobs_of(run)[stage]
    (fake / "queue").unlink()
    (fake / "accounts").write_text(f"{job}9|FAILED\n{accounts.format(job)}\n")
    if "CANCELLED" not in accounts:
        say(run, job, "start 0 on n1")

    row = rows_of(run)[stage]

    assert re.search(expected.format(stage, job), row), row


def test_status_does_not_say_of_what_was_cancelled_that_its_inputs_are_missing(run, fake):
    submit_run(run)
    (fake / "queue").unlink()

    rows = rows_of(run)

    assert re.search(r"✗  source@photos +cancelled +\d+  never began\s*$", rows["source@photos"])
    assert "never began: what it waits for was not made" in rows["pretrain"]


def test_status_has_the_queue_and_the_time_left(run, fake):
    submit_run(run)
    queue = (fake / "queue").read_text()
    queue = queue.replace(
        "0|PENDING|Dependency|tiny:corrupt-sr2@photos", "0|RUNNING|None|tiny:corrupt-sr2@photos"
    )
    (fake / "queue").write_text(queue)

    rows = {
        line.split()[1]: line for line in run.here("status").splitlines() if line.startswith("  ")
    }

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

    (row,) = (line for line in run.here("status").splitlines() if line.startswith("  ·  pretrain "))

    assert "step 2/6  samples 48  loss 5  6 samples/s (" in row
    assert row.endswith("16 s")
