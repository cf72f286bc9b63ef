"""How the parts of array stages are handed in, on clusters that limit them."""

import re
import shutil

import pytest
from demo_run import ROOT
from fake_slurm import CPU, calls, put, submit_run, waits_for

from launch.arrays import arrays, ranges
from launch.cluster import Cluster
from launch.submitted import read_records
from launch.terminal import CommandFailed
from pipeline.config_file import load_config
from stages.recipe import build_graph


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
