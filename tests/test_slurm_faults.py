"""What befalls jobs on a real SLURM: nodes that die or are cut off, limits, restarts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from demo_run import ROOT, Run
from slurm_cluster import wait_until
from slurm_run import (
    SlurmRun,
    cut_off_until,
    equal_weights,
    lasting,
    nodes_of,
    python_that,
    python_without_torch,
    run_without_slurm,
    short_config,
    started,
)

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The short run in so many processes of this machine, each made once."""
    made: dict[tuple[str, ...], Run] = {}

    def of(processes: int, *arguments: str, engine: str = "zero1") -> Run:
        key = (str(processes), engine, *arguments)
        if key not in made:
            config = short_config(processes=processes, engine=engine)
            folder = tmp_path_factory.mktemp("reference")
            made[key] = run_without_slurm(folder, config, "--until", "pretrain", *arguments)
        return made[key]

    return of


@pytest.mark.parametrize("which", [0, 1], ids=["the first node", "the second node"])
def test_training_survives_the_death_of_a_node(slurm, tmp_path, reference, which):
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1))
    job = started(run)
    nodes = nodes_of(slurm, job)

    slurm.power_off(nodes[which])
    run.wait_for_end(600)

    starts = re.findall(r"start (\d+) on (\S+)", run.events("pretrain"))
    assert len(starts) >= 2
    assert nodes[which] not in nodes_of(slurm, job)
    assert list(run.folder.glob("report/*/report.html"))
    assert equal_weights(run, reference(2), "pretrain")


def test_a_time_limit_that_is_too_short_by_far(slurm, tmp_path, reference):
    """SLURM looks at limits every 30 seconds: a start gets 25 to 55, some of them for imports."""
    arguments = lasting(110, reference(2))
    limit = 'stages: {pretrain: {time: "0:01:00"}}\nseconds_before_limit: 5\n'
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=limit)

    run.submit(*arguments)
    run.wait_for_end(1200)

    events = run.events("pretrain")
    assert events.count("requeued: ") >= 2
    assert events.count("×75") >= 2
    assert equal_weights(run, reference(2, *arguments), "pretrain")
    assert list(run.folder.glob("report/*/report.html"))


def test_a_training_that_hangs_at_its_time_limit_is_requeued(slurm, tmp_path, reference):
    """SLURM would end its batch script with it, and all that waits for the job."""
    limit = 'stages: {pretrain: {time: "0:01:00"}}\nseconds_before_limit: 5\n'
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=limit)
    nodes = nodes_of(slurm, started(run))

    cut_off_until(run, nodes, "requeued: ")
    run.wait_for_end(600)

    events = run.events("pretrain")
    assert re.search(r"SIGTERM\n.* requeued: srun 137.*\n.* start 1 ", events), events
    assert equal_weights(run, reference(2), "pretrain")


@pytest.mark.parametrize("partition", ["main", "idle"])
def test_preemption_is_a_requeue(slurm, tmp_path, reference, partition):
    settings = f"stages: {{pretrain: {{partition: {partition}}}}}"
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=settings)
    started(run)

    slurm.sh(
        *("sbatch", "--partition=urgent", "--nodes=3", "--exclusive"),
        *("--output=/dev/null", "--wrap=sleep 3"),
    )
    run.wait_for_end(600)

    events = run.events("pretrain")  # every rank saved
    assert re.search(r"requeued: .* 2×75 , preempted\n.* start 1 ", events), events
    assert equal_weights(run, reference(2), "pretrain")


def test_a_process_that_is_killed_is_no_failure_of_the_job(slurm, tmp_path, reference):
    """As where a node's end is noticed by the training before SLURM calls it a node's failure; and
    where jobs are told nothing of the environment that they are submitted in."""
    settings = 'stages: {pretrain: {options: ["--export=NONE"]}}'
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=settings)
    started(run)

    os.kill(max(run.training_processes()), signal.SIGKILL)
    run.wait_for_end()

    assert "requeued: srun 1" in run.events("pretrain")
    assert "start 1 " in run.events("pretrain")
    assert list(run.folder.glob("report/*/report.html"))
    assert equal_weights(run, reference(2), "pretrain")


def test_a_copy_that_slurm_has_given_up_writes_nothing_more(slurm, tmp_path, reference):
    """Cut off from SLURM, not from the file system, and slow: what two copies at once need."""
    config = short_config(processes=1, engine="launcher")
    run = SlurmRun(tmp_path, slurm, config=config, nodes=1)
    job = started(run)
    (node,) = nodes_of(slurm, job)
    (old,) = run.training_processes()
    os.kill(old, signal.SIGSTOP)
    stopped_at = run.step()

    slurm.unplug(node)
    run.wait(lambda: "start 1 " in run.events("pretrain"), 120)
    run.wait(lambda: run.step() > stopped_at, 240)  # the new copy has taken the lock over
    assert Path(f"/proc/{old}").exists()
    os.kill(old, signal.SIGCONT)
    wait_until(lambda: not Path(f"/proc/{old}").exists(), 60, run.everything)
    run.wait_for_end(600)

    events = run.events("pretrain")
    assert re.findall(r"start (\d+)", events)[:2] == ["0", "1"], events
    assert "another run has taken over" in run.log("pretrain") + "".join(
        path.read_text() for path in run.folder.glob("pretrain/*/logs/log.txt")
    )
    restarts = {
        re.search(r'"restart": "(\d+)"', path.read_text())[1]
        for path in run.folder.glob("pretrain/*/manifest.json")
    }
    assert restarts == {"1"}
    assert equal_weights(run, reference(1, engine="launcher"), "pretrain")


def test_nodes_that_can_not_reach_each_other_are_noticed(slurm, tmp_path, reference):
    limits = "hung_after_seconds: 60\n"
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=limits)
    job = started(run)
    nodes = nodes_of(slurm, job)

    cut_off_until(run, nodes, "nothing has moved")
    run.wait_for_end(600)

    assert "start 1 " in run.events("pretrain")
    assert equal_weights(run, reference(2), "pretrain")


def test_the_controller_restarts_in_the_middle(slurm, tmp_path, reference):
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1))
    started(run)

    slurm.stop_controller()
    status = run("status")
    refused = run.submit(code=1)
    slurm.start_controller()
    run.wait_for_end(600)

    assert "SLURM does not answer here" in status
    assert re.search(r"▸  pretrain +running", status)
    assert re.search(r"·  report +submitted", status)
    assert "squeue: " in refused
    assert list(run.folder.glob("report/*/report.html"))
    assert equal_weights(run, reference(2), "pretrain")


def test_a_part_of_an_array_that_fails_once_is_made_again(slurm, tmp_path):
    once = f'[[ $* != *"--part 1 "* ]] || ! mkdir {tmp_path}/failed 2>/dev/null || kill -KILL $$'
    run = SlurmRun(
        tmp_path,
        slurm,
        config=short_config(processes=1),
        settings=python_that(tmp_path, once),
    )

    run.submit("--set", "pretrain.samples=80")
    run.wait_for_end(400)

    assert (tmp_path / "failed").is_dir()
    records = [*run.folder.glob("slurm/jobs/*_1.events")]
    assert sum("start 1 " in path.read_text() for path in records) == 1
    assert list(run.folder.glob("report/*/report.html"))


def test_a_crash_loop_ends(slurm, tmp_path):
    crash = '[[ $* != *"--stage pretrain"* ]] || kill -KILL $$'
    settings = python_that(tmp_path, crash) + "starts_without_progress: 2\n"
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=settings)

    run.submit()
    run.wait_for_end(400)

    events = run.events("pretrain")
    assert events.count("start ") == 2, events
    assert "after 2 starts without progress" in events
    (row,) = (row for row in run("status").splitlines() if row.startswith("  ✗  pretrain "))
    assert "failed" in row
    assert "after 2 starts without progress" in row
    assert slurm.job(run.jobs()["report"], "JobState") == "CANCELLED"


def test_two_submissions_at_once_run_nothing_twice(slurm, tmp_path):
    folder = tmp_path / "it's two at once"  # as a shell would misread it
    folder.mkdir()
    run = SlurmRun(folder, slurm, config=short_config(processes=1))
    arguments = ("--cluster", str(run.cluster_file), "--set", "pretrain.samples=80")
    both = [run.start("submit", *arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    run.wait_for_end(400)

    assert [process.returncode for process in both] == [0, 0], outputs
    lines = (run.folder / "slurm" / "jobs.jsonl").read_text().splitlines()
    assert len(lines) == len(run.jobs()) == 6
    assert sum("nothing to submit" in output for output in outputs) == 1
    assert list(run.folder.glob("report/*/report.html"))


# What torch does before it compiles an operator: whoever finds a lock there waits for its end.
COMPILE = """
from torch.utils.cpp_extension import _get_build_directory
from torch.utils.file_baton import FileBaton
assert FileBaton(_get_build_directory("fused_adam", False) + "/lock").try_acquire()
"""


def test_a_lock_that_a_killed_compilation_left_stops_nobody(slurm, tmp_path):
    """Every start leaves one here, and is killed once; the next one must not wait for it."""
    (tmp_path / "compile.py").write_text(COMPILE)
    compile_first = (
        'if [[ $* == *"--stage pretrain"* ]]; then\n'
        f"  {sys.executable} {tmp_path}/compile.py || exit\n"
        f"  ! mkdir {tmp_path}/killed 2>/dev/null || kill -KILL $$\nfi"
    )
    settings = python_that(tmp_path, compile_first)
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=settings, nodes=1)

    run.submit("--set", "pretrain.samples=80")
    run.wait_for_end(400)

    assert "start 1 " in run.events("pretrain")
    locks = sorted(run.folder.glob("slurm/extensions/*/fused_adam/lock"))
    assert [path.parts[-3].partition("-")[2] for path in locks] == ["0", "1"]
    assert list(run.folder.glob("report/*/report.html"))


def test_a_login_node_needs_no_torch(slurm, tmp_path):
    python, environment = python_without_torch(tmp_path / "packages")
    settings = f"python: {sys.executable}\n"
    run = SlurmRun(tmp_path, slurm, config=short_config(processes=1), settings=settings)

    def on_login_node(*arguments: str) -> str:
        done = subprocess.run(
            [*python, *arguments],
            cwd=ROOT,
            env=slurm.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "None" in on_login_node(
        "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('numpy'))"
    )

    def ipt(command: str, *arguments: str) -> str:
        return on_login_node("-m", "launch", *run.command(command)[3:], *arguments)

    assert "6 stages to make" in ipt("plan")
    assert "6 jobs submitted" in ipt("submit", "--cluster", str(run.cluster_file))
    run.wait(lambda: run.step() > 0, 400)
    assert re.search(r"pretrain +running +\d+ .*step \d+/200", ipt("status"))
    run.wait_for_end(600)
    assert "✓  report" in ipt("status")
    assert "nothing of tiny is in the queue" in ipt("cancel")
