"""What is made of the answers of SLURM's tools, as clusters vary them."""

from pathlib import Path

import pytest
from fake_slurm import put

from launch import slurm
from launch.terminal import CommandFailed


@pytest.mark.parametrize("answer", ["123", "123;main", r"Welcome to x\n5 nodes are down\n123;main"])
def test_a_job_has_the_id_that_sbatch_prints_last(fake, answer):
    put(fake / "sbatch", f"#!/bin/bash\nprintf '{answer}\\n'\n")

    assert slurm.submit(Path("a.sbatch"), options=(), arguments=()) == "123"


@pytest.mark.parametrize("answer", ["", "Submitted batch job 123", r"123\nGood bye"])
def test_an_answer_without_a_job_s_id_is_shown(fake, answer):
    put(fake / "sbatch", f"#!/bin/bash\nprintf '{answer}\\n'\n")

    with pytest.raises(CommandFailed) as caught:
        slurm.submit(Path("a.sbatch"), options=(), arguments=())

    assert repr(answer.replace(r"\n", "\n")) in str(caught.value)


def test_names_and_comments_of_other_jobs_may_be_anything(fake):
    (fake / "queue").write_bytes(
        b"7|N/A|RUNNING|None|two\nlines|first\nsecond|with|as|many|bars|as|it takes\n"
        b"8|N/A|RUNNING|None|a|b|\xe9t\xe9\n"
        b"9|2|PENDING|Dependency|tiny:pretrain|ipt,1,a|b\n"
    )

    jobs = slurm.queued_jobs()

    assert [job.job for job in jobs] == ["8", "9"]
    assert jobs[-1] == slurm.QueuedJob(
        job="9",
        task=2,
        state="PENDING",
        reason="Dependency",
        name="tiny:pretrain",
        comment="ipt,1,a|b",
    )


def test_accounts_are_of_each_task(fake):
    (fake / "accounts").write_text(
        "11|COMPLETED\n12_3|TIMEOUT\n12_0|RUNNING\n12_[4-5,9%2]|CANCELLED by 1000\n"
        "13|NODE_FAIL\n14|\n15|PENDING\n16_[0-4:2]|CANCELLED by 0\n"
    )

    states = slurm.accounted_states(["11", "12", "13", "14", "15", "16"])

    assert states == {
        "11": "COMPLETED",
        "12_3": "TIMEOUT",
        **dict.fromkeys(("12_4", "12_5", "12_9", "16_0", "16_2", "16_4"), "CANCELLED"),
        "13": "NODE_FAIL",
    }
    (call,) = (fake / "sacct-calls").read_text().splitlines()
    assert call.split() == [
        *("-X", "--noheader", "--parsable2", "--format=JobID,State"),
        "--jobs=11,12,13,14,15,16",
    ]


def test_a_cluster_without_accounts_is_no_error(fake):
    assert slurm.accounted_states(["11"]) == {}
