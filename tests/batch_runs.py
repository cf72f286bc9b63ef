"""Runs a batch script as SLURM would, with a fake srun and a fake scontrol."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from demo_run import Run
from slurm_cluster import wait_until

from launch.submit import submit

# Does what the next line of `steps` says: exit codes of the processes, "progress" for a new
# checkpoint, "shard-N" for one of an array, "sign" of life, "blink" for one that is away for a
# moment, "late" for one by another clock, "hang" for ever, "why" for a sentence; ends with 1 unless
# all processes end with 0.
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
    shard-*)
      shards=$here/../runs/tiny/corrupt-sr2@photos/f/shards
      mkdir -p "$shards"
      touch "$shards/train-${word#*-}.json"
      ;;
    sign) touch --date='now + 1 second' "$attempt.alive" ;;
    blink)
      mv "$attempt.alive" "$attempt.away"
      /bin/sleep 0.5
      mv "$attempt.away" "$attempt.alive"
      ;;
    late)
      touch --date='1 hour ago' "$attempt.alive"
      /bin/sleep 0.2
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
[ "$1" != --oneliner ] || cat "$here/facts-$4"
[ "$1" != requeue ] || [ ! -e "$here/refused" ] || { cat "$here/refused" >&2; exit 1; }
"""
OTHER_TASK = "JobId=8 ArrayJobId=7 ArrayTaskId=1 JobState=RUNNING Requeue=1 Restarts=0 Batch=1"

# With the fake `sleep`, 400 s, looked at every 5 s, last half a second.
CLUSTER = """
distributed: {nodes: 2}
array: {parts: 4}
hung_after_seconds: 400
"""
TERMINATED = "COMPLETING Reason=None"
FAKES = {"srun": SRUN, "scontrol": SCONTROL, "sleep": "#!/bin/bash\nexec /bin/sleep 0.005\n"}


class Batch:
    """A script, run as SLURM would for every start of job 7, or of task 3 of array 7."""

    def __init__(self, folder: Path, text: str, *, job: str = "7") -> None:
        self.folder = folder
        self.job = job
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

    def start(
        self,
        step: str,
        *,
        facts: str = "",
        state: str = "RUNNING Reason=None",
        restarts: int = -1,
        terminated: bool = False,
        ended_at: Path | None = None,
        arguments: Sequence[str] = (),
        broken: bool = False,
    ) -> int:
        """The exit code of the next start, in which the step does as `step` says; `facts` are
        further ones that SLURM tells; `terminated` by SLURM while the step does, or when there is
        the file `ended_at`; `broken` where the shell may complain."""
        own = self.starts
        self.starts += 1
        (self.fakes / "steps").write_text(f"{step}\n")
        restarts = own if restarts < 0 else restarts
        told = f"JobId=7 JobState={state} Dependency=(null) Requeue=1 Restarts={restarts} Batch=1"
        # What the id of an array alone means, even where it is that of its last task.
        (self.fakes / "facts-7").write_text(f"{told}\n{OTHER_TASK}\n")
        (self.fakes / f"facts-{self.job}").write_text(f"{told} {facts}\n")
        environment = os.environ | {
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(own),
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        process = subprocess.Popen(
            ["bash", self.script, *arguments], env=environment, stderr=subprocess.PIPE, text=True
        )
        if terminated:
            wait_until(lambda: "sign" not in (self.fakes / "steps").read_text(), 20, "the step")
            process.send_signal(signal.SIGTERM)
        if ended_at is not None:
            wait_until(ended_at.exists, 20, "the file")
            process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
        assert "line " not in complaints or "Killed" in complaints or broken, complaints
        return process.returncode

    def requeues(self) -> int:
        path = self.fakes / "scontrol-calls"
        calls = path.read_text().splitlines() if path.exists() else []
        return calls.count(f"requeue {self.job}")

    def events(self) -> str:
        return (self.jobs / f"{self.job}.events").read_text()

    def last_event(self) -> str:
        return self.events().splitlines()[-1][20:]

    def ended(self) -> str | None:
        path = self.jobs / f"{self.job}.ended"
        return path.read_text().strip() if path.exists() else None


def script_of(stage: str, scripts: str) -> str:
    pattern = rf"^#!/bin/bash\n# {stage} of .*?(?=^\n# sbatch)"
    return re.findall(pattern, scripts, re.M | re.S)[0]


def scripts_of(folder: Path, capsys: pytest.CaptureFixture[str], further: str = "") -> str:
    """All scripts of a run, whose cluster file has further lines."""
    run = Run(folder)
    cluster = folder / "cluster.yaml"
    cluster.write_text(CLUSTER + further)
    submit(run.config, (f"runtime.runs={run.folder.parent}",), cluster, dry_run=True)
    return capsys.readouterr().out
