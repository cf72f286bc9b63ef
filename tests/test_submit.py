"""What `ipt submit` would tell a cluster, without one: a fake sbatch and squeue keep account."""

import re
import subprocess

import pytest
from demo_run import ROOT, STAGES
from fake_slurm import CPU, calls, put, submit_run, waits_for

from launch import submit as submitting
from launch.submit import submit
from launch.submitted import Submission, read_records, record
from launch.terminal import CommandFailed
from pipeline.config_file import load_config
from stages.recipe import build_graph


def test_every_job_waits_for_what_its_stage_reads(run, fake):
    submit_run(run)

    jobs = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    graph = build_graph(load_config(run.config))
    assert set(jobs) == STAGES
    for call in calls(fake):
        name = re.search(r"/slurm/(\S+)\.sbatch", call)[1]
        assert waits_for(call) == {jobs[each.name] for each in graph.stage(name).inputs.values()}
    assert all(
        "--kill-on-invalid-dep=yes" in (run.folder / "slurm" / f"{stage}.sbatch").read_text()
        for stage in STAGES
    )


def test_submitting_twice_hands_in_nothing_twice(run, fake, capsys):
    submit_run(run)
    before = calls(fake)
    capsys.readouterr()

    submit_run(run)

    assert calls(fake) == before
    assert "nothing to submit" in capsys.readouterr().out


def test_two_submissions_at_once_hand_in_every_stage_once(run, fake):
    command = run.command("submit", "--cluster", str(CPU))
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]

    outputs = [process.communicate(timeout=100)[0].decode() for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(calls(fake)) == len(STAGES)


def test_jobs_whose_records_are_lost_are_known_by_what_they_carry(run, fake):
    submit_run(run)
    before = calls(fake)
    (run.folder / "slurm" / "jobs.jsonl").unlink()

    submit_run(run)

    assert calls(fake) == before


def test_a_record_after_one_that_a_full_disk_cut_short_is_read(tmp_path):
    submissions = [Submission(job=job, stage="a", name="b", content="c") for job in "123"]
    for each in submissions:
        record(tmp_path, each)
        path = tmp_path / "jobs.jsonl"
        if each.job == "2":
            path.write_bytes(path.read_bytes()[:-40])

    assert read_records(tmp_path) == [submissions[0], submissions[2]]


# A squeue that counts its answers, and of whose jobs one ends after the second.
COMPLETING = """#!/bin/bash
cd "${0%/*}"
echo asked >>asked
[ "$(wc -l <asked)" -lt 3 ] || sed -i '/COMPLETING/d' queue
cat queue 2>/dev/null || true
"""


@pytest.mark.parametrize(("name", "asked"), [("tiny:pretrain", 3), ("other:pretrain", 1)])
def test_only_jobs_of_this_run_that_are_ending_are_waited_for(run, fake, name, asked):
    submit_run(run)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}["pretrain"]
    queue = (fake / "queue").read_text()
    ending = re.search(rf"^{job}\|.*\n", queue, re.M)[0].replace("PENDING", "COMPLETING")
    other = ending.replace("tiny:", "other:").replace(str(run.folder), str(run.folder.parent))
    line = ending if name.startswith("tiny:") else other.replace(job, "99")
    (fake / "queue").write_text(queue + line)
    put(fake / "squeue", COMPLETING)

    submit_run(run)

    assert len((fake / "asked").read_text().split()) == asked


def test_a_submission_that_broke_off_is_completed(run, fake):
    (fake / "full").write_text("5")
    with pytest.raises(CommandFailed, match="queue is full"):
        submit_run(run)
    handed_in = [each.stage for each in read_records(run.folder / "slurm")]
    (fake / "full").unlink()

    submit_run(run)

    assert len(handed_in) == 5
    stages = [each.stage for each in read_records(run.folder / "slurm")]
    assert sorted(stages) == sorted(STAGES)


def test_what_waits_for_a_job_that_is_gone_is_handed_in_again(run, fake, capsys):
    submit_run(run)
    first = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    queue = (fake / "queue").read_text().splitlines(keepends=True)
    gone = first["rain-layers"]
    left = "".join(line for line in queue if not line.startswith(gone))
    started = f"{first['pretrain']}|N/A|"
    (fake / "queue").write_text(left.replace(f"{started}PENDING", f"{started}RUNNING"))
    capsys.readouterr()

    submit_run(run)

    second = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    changed = {stage for stage in STAGES if first[stage] != second[stage]}
    graph = build_graph(load_config(run.config))
    assert changed == graph.downstream("rain-layers")
    cancelled = set((fake / "cancelled").read_text().split())
    assert cancelled == {first[stage] for stage in changed - {"rain-layers"}}
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("✗ ")]
    assert {row.split()[1] for row in rows} == changed - {"rain-layers"}
    job = first["pretrain"]
    why = rf"job {job} \(running\) cancelled: it reads what is made again, corrupt-derain@photos"
    assert any(re.search(rf"pretrain +{why}", row) for row in rows), rows


def test_parts_of_an_array_that_are_in_the_queue_are_not_handed_in_again(run, fake):
    submit_run(run)
    queue = (fake / "queue").read_text()
    first = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    job = first["corrupt-sr2@photos"]
    kept = [line for line in queue.splitlines(keepends=True) if not line.startswith(f"{job}|2|")]
    (fake / "queue").write_text("".join(kept))

    submit_run(run)

    records = [
        each for each in read_records(run.folder / "slurm") if each.job not in first.values()
    ]
    assert [(each.stage, each.tasks) for each in records if each.tasks] == [
        ("corrupt-sr2@photos", (2,))
    ]
    # Task 2 of the first array will never end well: the rest of it is waited for by itself.
    (pretrain,) = [each for each in records if each.stage == "pretrain"]
    new = records[0].job
    assert {f"{job}_0", f"{job}_1", f"{job}_3", new} <= set(pretrain.after)
    assert job not in pretrain.after


def test_finished_stages_are_not_handed_in(finished, fake, capsys):
    submit(finished.config, (f"runtime.runs={finished.folder.parent}",), CPU, dry_run=False)

    assert calls(fake) == []
    assert "every stage is done" in capsys.readouterr().out


def test_another_config_is_refused_while_jobs_of_the_first_are_in_the_queue(run, fake):
    submit_run(run)
    before = calls(fake)

    with pytest.raises(CommandFailed, match="in the queue with another config"):
        submit_run(run, CPU, "pretrain.batch=48")
    submit_run(run, CPU, "runtime.log_every_steps=7")  # decides nothing

    assert calls(fake) == before


def test_cancel_names_the_jobs_of_this_run_only(run, fake, capsys):
    submit_run(run)
    (fake / "queue").write_text(
        (fake / "queue").read_text() + "999|N/A|RUNNING|None|tiny:report|\n"
    )

    submitting.cancel(run.config, (f"runtime.runs={run.folder.parent}",))

    cancelled = (fake / "cancelled").read_text().split()
    assert sorted(cancelled) == sorted(each.job for each in read_records(run.folder / "slurm"))
    assert (fake / "queue").read_text().startswith("999|")


def test_what_slurm_did_not_cancel_may_be_requeued_once_it_is_submitted_again(run, fake):
    submit_run(run)
    jobs = [each.job for each in read_records(run.folder / "slurm")]
    queue = (fake / "queue").read_text()
    submitting.cancel(run.config, (f"runtime.runs={run.folder.parent}",))
    marks = run.folder / "slurm" / "jobs"
    assert {path.name for path in marks.glob("*.cancelled")} == {f"{job}.cancelled" for job in jobs}

    (fake / "queue").write_text(queue)
    submit_run(run)

    assert not list(marks.glob("*.cancelled"))


def test_without_slurm_a_sentence_says_what_does_the_same_here(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CommandFailed, match=r"sbatch is not on the PATH: .*`ipt run CONFIG`"):
        submit_run(run)
    assert not run.folder.exists()


def test_a_controller_that_does_not_answer_ends_a_submission_before_it_begins(run, fake):
    (fake / "squeue").write_text(
        "#!/bin/bash\necho 'Unable to contact slurm controller' >&2\nexit 1"
    )

    with pytest.raises(CommandFailed, match="squeue: Unable to contact slurm controller"):
        submit_run(run)

    assert calls(fake) == []
