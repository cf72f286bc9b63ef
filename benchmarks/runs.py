"""Runs of the pipeline that a benchmark starts, as a person starts them. Never imports torch."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"  # imagenet/train, train/Train400, benchmarks


class RunError(Exception):
    """A run that ended otherwise than well; the message has its command and its last words."""


def run_pipeline(config: str, settings: Iterable[str], *options: str) -> str:
    """What `ipt run` prints for the config with `settings`, such as "pretrain.batch=24".

    Raises RunError where it fails.
    """
    command = [sys.executable, "-m", "launch", "run", f"configs/{config}.yaml", *options]
    command += [f"--set={each}" for each in settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout
