"""What SLURM is asked and told: sbatch, squeue, sacct, scancel, scontrol."""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.terminal import CommandFailed

logger = logging.getLogger(__name__)

TIMEOUT = 120  # seconds, of one answer
DEFAULT_MAX_ARRAY_SIZE = 1001
FIELDS = "%F|%K|%T|%r|%j|%k"  # last what people choose, with "|" in it if they like

# SLURM's tools take options from the environment too: what the job has in which this may run would
# reach every job submitted, SBATCH_… go before the lines of a script, and others hide jobs.
OPTIONS = re.compile("_?(SLURM|SRUN|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")  # where, and as whom
REPLACED_BY = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CLUSTERS": "the variable SLURM_CLUSTERS",
    "SBATCH_GPUS_PER_NODE": "gpus",
    "SBATCH_MEM_PER_NODE": "memory",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
}

# Ends of a job in the accounting.
ENDED_BADLY = (
    *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job, or one task of an array, that SLURM has not finished with."""

    job: str
    task: int | None  # of an array
    state: str  # such as PENDING
    name: str
    reason: str
    comment: str

    @property
    def is_waiting(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")


def is_here() -> bool:
    return shutil.which("sbatch") is not None


def require() -> None:
    if not is_here():
        raise CommandFailed(
            "sbatch is not on the PATH: give this command on a login node of the cluster, or "
            "`ipt run CONFIG`, which makes the same graph on this machine"
        )


def environment() -> dict[str, str]:
    """What SLURM's tools are given, and so the jobs that they start."""
    return {
        name: value for name, value in os.environ.items() if name in KEPT or not OPTIONS.match(name)
    }


def warn_of_variables() -> None:
    """Say which options a user has in the environment for sbatch, as they may be relied on."""
    names = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if names:
        replaced = [f"{name} (instead: {REPLACED_BY.get(name, 'options')})" for name in names]
        logger.warning(
            "left out of the environment, where the cluster file alone is to decide: %s",
            ", ".join(replaced),
        )


def _ask(command: Sequence[str]) -> str:
    """The output of a tool; CommandFailed with what it says itself."""
    try:
        done = subprocess.run(
            command,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(
            f"{command[0]}: no answer within {TIMEOUT} s; is the controller away? Give the same "
            "command again, it goes on"
        ) from None
    except OSError as error:
        raise CommandFailed(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise CommandFailed(f"{command[0]}: {said}")
    return done.stdout


def queued_jobs() -> list[QueuedJob]:
    """All jobs of this user that wait, run or are being ended; each task of an array by itself."""
    user = str(os.getuid())
    # --all: also those in hidden partitions.
    options = ["--all", "--noheader", "--array", f"--user={user}", f"--format={FIELDS}"]
    output = _ask(["squeue", *options])
    jobs = []
    for line in output.splitlines():
        fields = line.split("|", 5)
        if len(fields) < 6 or not fields[0].isdigit():
            continue  # cut by a newline in another job's name or comment; ours have none
        job, task, state, reason, name, comment = fields
        number = int(task) if task.isdigit() else None
        jobs.append(
            QueuedJob(job=job, task=number, state=state, name=name, reason=reason, comment=comment)
        )
    return jobs


def submit(script: Path, *, options: Sequence[str], arguments: Sequence[str]) -> str:
    """Hand in a batch script; the id of its job."""
    output = _ask(["sbatch", "--parsable", *options, str(script), *arguments]).strip()
    last_line = output.rpartition("\n")[2]  # a site's own sbatch may print something before it
    found = re.fullmatch(r"(\d+)(;.*)?", last_line.strip())  # the cluster's name may follow
    if not found:
        raise CommandFailed(
            f"sbatch printed no job's id on its last line, but {output!r}; if it took "
            f"{script.name} all the same, the same command, given again, finds that job and goes on"
        )
    return found[1]


def cancel(jobs: Sequence[str]) -> None:
    _ask(["scancel", *jobs])


def max_array_size() -> int:
    """One more than the largest index of an array's task; 0 where there are no arrays."""
    if shutil.which("scontrol") is None:
        return DEFAULT_MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]), re.M)
    return int(found[1]) if found else DEFAULT_MAX_ARRAY_SIZE


def accounted_states(jobs: Sequence[str]) -> dict[str, str]:
    """How jobs ended as the accounting has it, by id, each task of an array as 12_3; nothing of
    those that it takes for alive, and none where there is no sacct."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State"]
    try:
        output = _ask([*command, f"--jobs={','.join(jobs)}"])
    except CommandFailed:  # many clusters keep no accounts
        return {}
    states: dict[str, str] = {}
    for line in output.splitlines():
        ids, _, words = line.partition("|")
        state = words.partition(" ")[0]  # of "CANCELLED by 1000", say
        if state in (*ENDED_BADLY, "COMPLETED"):
            states |= dict.fromkeys(_tasks(ids), state)
    return states


def _tasks(ids: str) -> list[str]:
    """Of 12_[4-6,9%2] or 12_[0-8:2], tasks that never began, each by itself."""
    job, bracket, ranges = ids.partition("_[")
    if not bracket:
        return [ids]
    tasks: list[str] = []
    found = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", ranges.partition("%")[0])
    for first, last, step in found:
        numbers = range(int(first), int(last or first) + 1, int(step or 1))
        tasks += [f"{job}_{number}" for number in numbers]
    return tasks
