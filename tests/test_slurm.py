"""The graph carried by a real SLURM, on nodes with addresses of their own."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from demo_run import STAGES, TINY
from slurm_cluster import SlurmCluster, wait_until
from slurm_run import SlurmRun, equal_weights, run_without_slurm, short_config

pytestmark = pytest.mark.slurm

TRAININGS = ("pretrain", "finetune-denoise30", "finetune-sr2", "dncnn-denoise30")


@pytest.fixture(scope="module")
def short_without_slurm(tmp_path_factory):
    """Two processes on this machine."""
    folder = tmp_path_factory.mktemp("short")
    return run_without_slurm(folder, short_config(processes=2), "--until", "pretrain")


def test_the_graph_on_two_nodes_ends_with_the_report_and_the_same_weights(slurm, tmp_path):
    engine = ("--set", "runtime.engine=zero1")
    (tmp_path / "slurm").mkdir()
    # Four parts, of which an array of this cluster takes three.
    run = SlurmRun(tmp_path / "slurm", slurm, settings="stages: {corrupt: {parts: 4}}")

    submitted = run.submit(*engine)
    assert set(run.jobs()) == STAGES
    assert "▸ corrupt-sr2@photos" in submitted
    again = run.submit(*engine)
    run.wait_for_end()

    assert "nothing to submit: every stage is done or in the queue" in again
    assert "every stage is done or in the queue" in run.submit(*engine)
    (report,) = run.folder.glob("report/*/report.html")
    assert report.stat().st_size > 10_000
    assert "every file is as it was sealed" in run("verify")
    rows = run("status", *engine).splitlines()
    assert len([row for row in rows if row.startswith("  ✓ ") and " done " in row]) == len(STAGES)
    for stage in TRAININGS:
        assert re.search(r"start 0 on n\[\d[-,]\d\]", run.events(stage))  # two nodes
        assert len(list(run.folder.glob(f"slurm/jobs/{run.jobs()[stage]}-0.outcome-*"))) == 2
    assert "start 0" in run.events("corrupt-sr2@photos")
    (tmp_path / "local").mkdir()
    processes = ("--set", "runtime.processes=2")
    local = run_without_slurm(tmp_path / "local", TINY, *engine, *processes)
    assert all(equal_weights(run, local, stage) for stage in TRAININGS)


def test_a_stopped_training_is_requeued_and_ends_with_the_same_weights(
    slurm, tmp_path, short_without_slurm
):
    """SIGUSR2 to all processes of the step, which is what --signal sends before a time limit."""
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1))
    run.submit()
    job = run.jobs()["pretrain"]
    for restart in range(2):
        before = run.step()
        run.wait(lambda before=before: run.step() > before, 300)
        slurm.sh("scancel", "--signal=USR2", job)
        run.wait(lambda restart=restart: f"start {restart + 1} " in run.events("pretrain"), 120)

    run.wait_for_end()

    events = run.events("pretrain")
    assert events.count("exit codes of the processes: ") == events.count("×75") == 2, events
    assert events.endswith("done\n")
    assert equal_weights(run, short_without_slurm, "pretrain")
    assert list(run.folder.glob("report/*/report.html"))


def test_after_a_failure_the_rest_is_cancelled_and_only_what_is_missing_is_made(slurm, tmp_path):
    layers = tmp_path / "layers"
    layers.mkdir()
    config = short_config(processes=1)
    missing = config.replace("layers: 2, size: 128", f"folder: {layers}, size: 128")
    run = SlurmRun(tmp_path, slurm, config=missing, settings="starts_without_progress: 1")
    run.submit()
    failing = run.jobs()
    run.wait_for_end()

    rows = {
        row.split()[1]: row for row in run("status").splitlines() if "@" in row or "rain" in row
    }
    assert "✗  rain-layers" in rows["rain-layers"]
    assert "failed" in rows["rain-layers"]
    assert str(layers) in rows["rain-layers"]
    assert "cancelled" in rows["corrupt-derain@photos"]
    assert slurm.job(failing["pretrain"], "JobState") == "CANCELLED"
    assert slurm.job(failing["report"], "JobState") == "CANCELLED"

    run.config.write_text(config)
    again = run.submit()
    run.wait_for_end()

    assert "✓ source@photos" in again
    assert "✓ corrupt-denoise30@photos" in again
    assert run.jobs()["corrupt-denoise30@photos"] == failing["corrupt-denoise30@photos"]
    assert run.jobs()["rain-layers"] != failing["rain-layers"]
    assert list(run.folder.glob("report/*/report.html"))


def test_cancel_ends_what_the_run_submitted_and_nothing_else(slurm, tmp_path):
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1))
    wrap = "--wrap=sleep 300"
    other = slurm.sh("sbatch", "--parsable", "--job-name=tiny:pretrain", "-o", "/dev/null", wrap)
    run.submit()
    run.wait(lambda: run.step() > 0, 300)

    cancelled = run("cancel")
    run.wait(lambda: slurm.job(run.jobs()["pretrain"], "JobState") == "CANCELLED", 60)
    run.wait(lambda: len(slurm.sh("squeue", "-h").splitlines()) == 1, 60)

    assert "pretrain" in cancelled
    assert slurm.job(other, "JobState") == "RUNNING"
    assert "requeued" not in run.events("pretrain")
    assert "nothing of tiny is in the queue" in run("cancel")


def test_a_cluster_leaves_no_process_and_no_mount_behind(slurm):
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with SlurmCluster(folder, nodes=2) as cluster:  # beside the other one
        assert cluster.sh("srun", "--nodes=2", "hostname").split() in (["n1", "n2"], ["n2", "n1"])
        assert any(str(folder) in line for line in command_lines())

    assert not [line for line in command_lines() if str(folder) in line]
    assert str(folder) not in Path("/proc/mounts").read_text()
    shutil.rmtree(folder)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from slurm_cluster import SlurmCluster, wait_until
with SlurmCluster(Path(sys.argv[1]), nodes=1):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_cluster_ends_with_tests_that_are_killed(slurm):
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "log" / "slurmctld.log").exists()
    left = lambda: [line for line in command_lines() if str(folder) in line]  # noqa: E731
    wait_until(lambda: not left(), 20, lambda: str(left()))
    shutil.rmtree(folder)


def command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines
