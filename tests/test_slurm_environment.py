"""What a user, or the job that a command is given in, has in the environment for SLURM's tools."""

import os

import pytest
from fake_slurm import calls, submit_run

from launch import slurm
from launch import submit as submitting

OF_A_JOB = {
    "SLURM_RESTART_COUNT": "2",
    "SLURM_MEM_PER_CPU": "1000",
    "SLURM_NTASKS": "8",
    "SLURM_TRES_PER_TASK": "cpu=2",
    "SRUN_CPUS_PER_TASK": "2",
    "_SLURM_SPANK_OPTION_pyxis_container_image": "other.sqsh",
}
OF_A_USER = {
    "SBATCH_ACCOUNT": "mine",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_WAIT": "1",
    "SQUEUE_PARTITION": "short",
    "SACCT_STATE": "FAILED",
    "SCANCEL_STATE": "PENDING",
}


@pytest.fixture
def options(monkeypatch):
    for name, value in {**OF_A_JOB, **OF_A_USER, "SLURM_CONF": "/a", "SLURM_CLUSTERS": "b"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("options")
def test_a_run_is_submitted_shown_and_cancelled_whatever_the_environment_has(run, fake):
    (fake / "accounts").write_text("11|COMPLETED\n")

    submit_run(run)
    submit_run(run)
    accounted = slurm.accounted_states(["11"])
    submitting.cancel(run.config, (f"runtime.runs={run.folder.parent}",))

    assert accounted == {"11": "COMPLETED"}
    assert calls(fake)
    assert (fake / "queue").read_text() == ""


@pytest.mark.usefixtures("options")
def test_the_tools_are_still_told_which_cluster_is_meant():
    environment = slurm.environment()

    assert (environment["SLURM_CONF"], environment["SLURM_CLUSTERS"]) == ("/a", "b")
    assert os.environ.items() - environment.items() == {**OF_A_JOB, **OF_A_USER}.items()


@pytest.mark.usefixtures("options")
def test_what_is_left_out_is_said_with_the_key_that_replaces_it(run, fake, caplog):
    submit_run(run)

    (said,) = [record.getMessage() for record in caplog.records if record.name == "launch.slurm"]
    assert "SBATCH_ACCOUNT (instead: account), SBATCH_NO_REQUEUE (instead: options)" in said
    assert "SLURM_" not in said
