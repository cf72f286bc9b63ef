"""Tools of SLURM that only keep account of what they are told."""

import os
import re
from pathlib import Path

import pytest
from demo_run import ROOT, Run

from launch.submit import submit

# What real tools take options from; what a job has would reach the jobs that it submits.
REFUSING = r"""#!/bin/bash
if env | grep -E '^_?(SLURM|SRUN|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL)_' |
  grep -Ev '^SLURM_(CONF|CLUSTERS|JWT)='
then
  echo 'options in the environment' >&2
  exit 1
fi
"""
CPU, GPU = ROOT / "configs" / "slurm" / "cpu.yaml", ROOT / "configs" / "slurm" / "gpu.yaml"
# Each call of sbatch is a job: its number, and the queue's line for each of its tasks.
FAKE_SBATCH = """
cd "${0%/*}"
echo "$*" >>calls
job=$((100 + $(wc -l <calls)))
if [ -e full ] && [ "$(wc -l <calls)" -gt "$(cat full)" ]; then
  echo "queue is full" >&2
  exit 1
fi
for option; do
  case $option in
    --comment=*) comment=${option#*=} ;;
    --array=*) array=${option#*=} ;;
    *.sbatch) name=$(sed -n 's/^#SBATCH --job-name=//p' "$option") ;;
  esac
done
IFS=,
ranges=${array%%\\%*}
for range in ${ranges:-N/A}; do
  case $range in
    [0-9]*) tasks=$(seq -s , "${range%-*}" "${range#*-}") ;;
    *) tasks=$range ;;
  esac
  for task in $tasks; do
    echo "$job|$task|PENDING|Dependency|$name|$comment" >>queue
  done
done
echo "$job;cluster"
"""
FAKES = {
    "sbatch": FAKE_SBATCH,
    # Every partition is hidden.
    "squeue": '[[ " $* " != *" --all "* ]] || cat "$(dirname "$0")/queue" 2>/dev/null || true\n',
    "scancel": 'echo "$*" >>"$(dirname "$0")/cancelled"\n'
    'for job; do sed -i "/^$job|/d" "$(dirname "$0")/queue"; done\n',
    # No accounts, unless a test writes some, as `sacct -X --parsable2` prints them.
    "sacct": 'echo "$*" >>"$(dirname "$0")/sacct-calls"\n'
    'cat "$(dirname "$0")/accounts" 2>/dev/null || '
    '{ echo "Slurm accounting storage is disabled" >&2; exit 1; }\n',
    "scontrol": "echo 'MaxArraySize            = 1001'\n",
}


def on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tools in a folder of their own, found before any others."""
    folder.mkdir()
    for name, text in FAKES.items():
        put(folder / name, REFUSING + text)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def put(tool: Path, text: str) -> None:
    tool.write_text(text)
    tool.chmod(0o755)


def calls(fake: Path) -> list[str]:
    path = fake / "calls"
    return path.read_text().splitlines() if path.exists() else []


def waits_for(call: str, how: str = "afterok") -> set[str]:
    found = re.search(rf"--dependency=\S*?\b{how}:([^\s,]+)", call)
    return set(found[1].split(":")) if found else set()


def submit_run(run: Run, cluster: Path = CPU, *overrides: str, dry_run: bool = False) -> int:
    values = (f"runtime.runs={run.folder.parent}", *overrides)
    return submit(run.config, values, cluster, dry_run=dry_run)
