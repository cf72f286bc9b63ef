"""What the batch script decides when its step has ended, with a fake srun and a fake scontrol."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from demo_run import Run

from launch.submit import submit

# Does what the next line of `steps` says: exit codes of the processes, "progress" for a new
# checkpoint, "hang" for ever, "why" for a sentence; ends with 1 unless all processes end with 0.
SRUN = """#!/bin/bash
here=${0%/*}
attempt=$6
line=$(head -n 1 "$here/steps")
sed -i 1d "$here/steps"
code=0
for word in $line; do
  case $word in
    progress)
      step=$(mktemp -d "$here/../runs/tiny/pretrain/f/checkpoints/step-XXXX")
      touch "$step/manifest.json"
      ;;
    hang) exec /bin/sleep 60 ;;
    why) echo "lanes do not divide" >"$attempt.why" ;;
    *) echo "$word" >>"$attempt.outcome-0" && code=$((word ? 1 : code)) ;;
  esac
done
exit $code
"""
SCONTROL = """#!/bin/bash
here=${0%/*}
[ "$1" != show ] || { echo n1; exit; }
echo "$*" >>"$here/scontrol-calls"
if [ -e "$here/away" ]; then
  sed -i 1d "$here/away"
  [ -s "$here/away" ] || rm "$here/away"
  exit 1
fi
[ "$1" != --oneliner ] || cat "$here/facts"
"""
FAKES = {"srun": SRUN, "scontrol": SCONTROL, "sleep": "#!/bin/bash\nexec /bin/sleep 0.05\n"}


class Batch:
    """The script of pretraining on two nodes, run as SLURM would for every start of a job."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.fakes = folder / "fakes"
        self.jobs = folder / "runs" / "tiny" / "slurm" / "jobs"
        self.jobs.mkdir(parents=True)
        (folder / "runs" / "tiny" / "pretrain" / "f" / "checkpoints").mkdir(parents=True)
        self.fakes.mkdir()
        for name, fake in FAKES.items():
            (self.fakes / name).write_text(fake)
            (self.fakes / name).chmod(0o755)
        self.script = folder / "script.sbatch"
        self.script.write_text(text)
        self.starts = 0

    def start(self, step: str, *, state: str = "RUNNING Reason=None", restarts: int = -1) -> int:
        """The exit code of the next start, in which the step does as `step` says."""
        own = self.starts
        self.starts += 1
        (self.fakes / "steps").write_text(f"{step}\n")
        restarts = own if restarts < 0 else restarts
        facts = f"JobId=7 JobState={state} Dependency=(null) Requeue=1 Restarts={restarts} Batch=1"
        (self.fakes / "facts").write_text(facts + "\n")
        environment = os.environ | {
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(own),
        }
        done = subprocess.run(
            ["bash", self.script], env=environment, capture_output=True, text=True, timeout=60
        )
        assert "line " not in done.stderr or "Killed" in done.stderr, done.stderr
        return done.returncode

    def requeues(self) -> int:
        path = self.fakes / "scontrol-calls"
        calls = path.read_text().splitlines() if path.exists() else []
        return calls.count("requeue 7")

    def last_event(self) -> str:
        return (self.jobs / "7.events").read_text().splitlines()[-1][20:]

    def ended(self) -> str | None:
        path = self.jobs / "7.ended"
        return path.read_text().strip() if path.exists() else None


@pytest.fixture
def batch(tmp_path, capsys) -> Batch:
    run = Run(tmp_path)
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("distributed: {nodes: 2}\nhung_after_seconds: 2")
    submit(run.config, (f"runtime.runs={run.folder.parent}",), cluster, dry_run=True)
    text = capsys.readouterr().out
    (script,) = re.findall(r"^#!/bin/bash\n# pretrain of .*?(?=^\n# sbatch)", text, re.M | re.S)
    return Batch(tmp_path, script)


def test_done_is_when_every_process_says_so(batch):
    assert batch.start("progress 0 0") == 0

    assert (batch.ended(), batch.requeues()) == ("0", 0)
    assert batch.last_event() == "done"


def test_a_step_that_ends_well_with_a_process_missing_is_not_done(batch):
    """srun may say 0 after a node's failure."""
    assert batch.start("progress 0") == 0

    assert (batch.ended(), batch.requeues()) == (None, 1)


def test_stopped_with_a_checkpoint_is_requeued_as_often_as_it_takes(batch):
    for number in range(8):
        assert batch.start("progress 75 75") == 0
        assert batch.requeues() == number + 1
    assert batch.start("progress 0 0") == 0

    assert batch.ended() == "0"


def test_failures_with_progress_are_requeued(batch):
    for _ in range(5):
        assert batch.start("progress 1") == 0

    assert (batch.ended(), batch.requeues()) == (None, 5)


@pytest.mark.parametrize("step", ["1 1", "75 75", ""], ids=["failing", "stopped", "killed"])
def test_starts_without_progress_come_to_an_end(batch, step):
    assert batch.start(f"progress {step}") == 0
    assert batch.start(step) == 0
    assert batch.start(step) == 0
    assert batch.start(step) == 1

    assert (batch.ended(), batch.requeues()) == ("1", 3)
    assert "after 3 starts without progress" in batch.last_event()


def test_progress_in_between_begins_the_count_anew(batch):
    steps = ["1", "1", "progress 1", "1", "1"]

    assert [batch.start(step) for step in steps] == [0] * 5
    assert batch.start("1") == 1


def test_a_config_error_is_never_requeued(batch):
    assert batch.start("progress why 2 2") == 2

    assert (batch.ended(), batch.requeues()) == ("2", 0)
    assert batch.last_event() == ("failed with exit code 2: config or usage: lanes do not divide")


def test_what_hangs_is_ended_and_requeued(batch):
    assert batch.start("progress hang") == 0

    assert batch.requeues() == 1
    assert "nothing has moved for" in (batch.jobs / "7.events").read_text()


def test_a_job_that_is_being_ended_leaves_that_to_slurm(batch):
    assert batch.start("progress 75 75", state="COMPLETING Reason=None") == 1

    assert (batch.ended(), batch.requeues()) == (None, 0)
    assert batch.last_event() == "ended by SLURM"


def test_a_time_limit_that_was_passed_is_a_requeue(batch):
    assert batch.start("progress 75 75", state="COMPLETING Reason=TimeLimit") == 0

    assert batch.requeues() == 1


def test_a_copy_that_slurm_has_given_up_does_not_requeue_the_newer_one(batch):
    assert batch.start("progress 1", restarts=1) == 1

    assert (batch.ended(), batch.requeues()) == (None, 0)
    assert batch.last_event() == "a newer copy is running"


def test_a_controller_that_is_away_is_asked_again(batch):
    (batch.fakes / "away").write_text("1\n" * 5)

    assert batch.start("progress 1") == 0

    assert batch.requeues() == 1


def test_a_controller_that_stays_away_makes_a_failure(batch):
    (batch.fakes / "away").write_text("1\n" * 100)

    assert batch.start("progress why 1") == 1

    assert batch.ended() == "1"
    assert "scontrol could not requeue it: lanes do not divide" in batch.last_event()
