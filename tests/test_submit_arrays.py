"""How the parts of array stages are handed in, on clusters that limit them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from demo_run import ROOT, Run
from fake_slurm import CPU, calls, put, submit_run, waits_for

from launch.arrays import arrays, ranges
from launch.cluster import Cluster
from launch.submitted import read_records
from launch.terminal import CommandFailed
from pipeline.config_file import load_config
from stages.recipe import build_graph

STAGE = "corrupt-sr2@photos"


def test_arrays_are_cut_to_what_the_cluster_takes(run, fake, tmp_path):
    (fake / "scontrol").write_text("#!/bin/bash\necho 'MaxArraySize            = 10'\n")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("array: {parts: 25, at_once: 9}")

    submit_run(run, cluster)

    of_stage = [call for call in calls(fake) if "corrupt-sr2@photos.sbatch" in call]
    arrays = [re.search(r"--array=(\S+)", call)[1] for call in of_stage]
    assert arrays == ["0-9%3", "0-9%3", "0-4%3"]
    assert [call.split()[-1] for call in of_stage] == ["0", "10", "20"]


def test_no_more_parts_run_at_once_than_the_cluster_file_says(run, fake, tmp_path):
    put(fake / "scontrol", "#!/bin/bash\necho 'MaxArraySize            = 10'\n")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("array: {parts: 45, at_once: 3}")

    submit_run(run, cluster)

    of_stage = [call for call in calls(fake) if "corrupt-denoise30@photos.sbatch" in call]
    jobs = [
        each.job
        for each in read_records(run.folder / "slurm")
        if each.stage == "corrupt-denoise30@photos"
    ]
    assert [re.search(r"--array=\S+%(\d+)", call)[1] for call in of_stage] == ["1"] * 5
    first = [waits_for(call, "afterany") for call in of_stage]
    assert first == [set(), set(), set(), {jobs[0]}, {jobs[1]}]
    (pretrain,) = [call for call in calls(fake) if "/pretrain.sbatch" in call]
    assert set(jobs) <= waits_for(pretrain)


def test_parts_that_are_made_again_wait_where_the_cluster_file_limits_them(run, fake, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("array: {parts: 4, at_once: 2}")
    submit_run(run, cluster)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}[
        "corrupt-sr2@photos"
    ]
    kept = [
        line
        for line in (fake / "queue").read_text().splitlines(keepends=True)
        if not line.startswith(f"{job}|2|")
    ]
    (fake / "queue").write_text("".join(kept))

    submit_run(run, cluster)

    again = [call for call in calls(fake) if "corrupt-sr2@photos.sbatch" in call][-1]
    assert "--array=2%2" in again
    assert waits_for(again, "afterany") == {job}


def ended_well(run: Run, fake: Path, job: str, *tasks: int) -> None:
    """As SLURM and its batch script leave a task that is done."""
    queue = (fake / "queue").read_text().splitlines(keepends=True)
    gone = tuple(f"{job}|{task}|" for task in tasks)
    (fake / "queue").write_text("".join(line for line in queue if not line.startswith(gone)))
    for task in tasks:
        (run.folder / "slurm" / "jobs" / f"{job}_{task}.ended").write_text("0\n")


def test_parts_that_are_made_are_not_handed_in_again_while_others_run(run, fake):
    submit_run(run)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}[STAGE]
    ended_well(run, fake, job, 0, 2)
    before = calls(fake)

    submit_run(run)

    assert calls(fake) == before
    assert not (fake / "cancelled").exists()


def test_parts_that_were_made_before_their_stage_was_handed_in_anew_are_made_again(run, fake):
    submit_run(run)
    folder = run.folder / "slurm"
    job = {each.stage: each.job for each in read_records(folder)}[STAGE]
    ended_well(run, fake, job, 0, 1, 2, 3)
    (line,) = re.findall(rf'.*"job": "{job}".*\n', (folder / "jobs.jsonl").read_text())
    record = json.loads(line) | {"job": "99", "tasks": [3], "since": "later"}
    with (folder / "jobs.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with (fake / "queue").open("a") as file:
        file.write(f"99|3|RUNNING|None|{record['name']}|\n")

    submit_run(run)

    again = [call for call in calls(fake) if f"{STAGE}.sbatch" in call][1]
    assert "--array=0-2 " in again


def test_what_may_run_at_once_is_shared_out_to_the_last_part():
    stage = next(
        each
        for each in build_graph(load_config(ROOT / "configs" / "demo.yaml")).stages
        if each.launch == "array"
    )
    cluster = Cluster.model_validate({"array": {"at_once": 8}})

    calls = arrays(stage, range(25), cluster, most=10)

    assert [call.options[0].partition("%")[2] for call in calls] == ["3", "3", "2"]
    assert [call.follows for call in calls] == [None, None, None]


def test_a_cluster_without_arrays_is_told_what_to_do_instead(run, fake):
    put(fake / "scontrol", "#!/bin/bash\necho 'MaxArraySize            = 0'\n")

    with pytest.raises(CommandFailed, match=r"no job arrays .*corrupt-sr2@photos.*`ipt run") as no:
        submit_run(run)

    assert "pretrain" not in str(no.value)
    assert calls(fake) == []


def test_a_cluster_without_arrays_carries_what_needs_none(run, finished, fake):
    put(fake / "scontrol", "#!/bin/bash\necho 'MaxArraySize            = 0'\n")
    shutil.copytree(finished.folder, run.folder)

    submit_run(run, CPU, "finetune.sr2.samples=48")

    assert any("finetune-sr2.sbatch" in call for call in calls(fake))


def test_ranges_are_as_slurm_writes_them():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
