"""What a stage does for the batch script that watches it: signs of life, answers to signals, and an
end as soon as SLURM has started a newer copy of the same job, or once its work is done."""

import atexit
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.terminal import FAILED
from pipeline.artifacts import write_atomically
from pipeline.config_file import ConfigError
from pipeline.graph import Progress, StageError, StoppedWithCheckpoint
from pipeline.locks import GRACE_SECONDS, ArtifactError, check_owner
from pipeline.repeating import repeated
from pipeline.signal_handlers import handling

logger = logging.getLogger(__name__)

SENTENCES = (ConfigError, StageError, ArtifactError)
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SECONDS_BETWEEN_SIGNS = 2.0
SECONDS_UNTIL_SENT_AGAIN = 0.5
SECONDS_BETWEEN_CHECKS = GRACE_SECONDS / 3


def touching(file: Path, progress: Progress) -> Progress:
    """`progress` that also touches a file, whose age then says how long nothing has moved: stages
    tell their progress while there is none, too."""
    touched, told = 0.0, None

    def both(done: int, total: int, note: str = "") -> None:
        nonlocal touched, told
        if (done, note) != told and time.monotonic() - touched > SECONDS_BETWEEN_SIGNS:
            touched, told = time.monotonic(), (done, note)
            file.touch()
        progress(done, total, note)

    return both


@contextmanager
def accounted(prefix: str | None) -> Iterator[None]:
    """Leave what went wrong, if anything does, in PREFIX.why."""
    try:
        yield
    except StoppedWithCheckpoint:
        raise
    except Exception as error:
        if prefix is not None:
            kind = "" if isinstance(error, SENTENCES) else f"{type(error).__name__}: "
            write_atomically(Path(f"{prefix}.why"), f"{kind}{error}\n")
        raise


@contextmanager
def postponed(number: signal.Signals) -> Iterator[None]:
    """Keep a signal for the handler that comes later: a process needs seconds to begin, and SLURM
    warns of the time limit only once."""

    def send_again(*_: object) -> None:
        timer = threading.Timer(SECONDS_UNTIL_SENT_AGAIN, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    with handling([number], send_again):
        yield


def end_with_parent() -> None:
    """Linux sends SIGTERM to this process when its parent is gone: a training then stops with a
    checkpoint instead of going on unseen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def stopped_by_signals(stage_name: str) -> Iterator[None]:
    """Stop a stage that has no steps at the signals that stop a training."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedWithCheckpoint(
            f"{stage_name}: stopped by {signal.Signals(number).name}; what is finished is kept, "
            "the same command goes on from there"
        )

    with handling((signal.SIGTERM, signal.SIGUSR2), stop):
        yield


@contextmanager
def ended_when_taken_over(folder: Path) -> Iterator[None]:
    """End this process when another one holds its lock on `folder`: between two seals, too, it
    must not write beside its successor."""

    def check() -> None:
        try:
            check_owner(folder)
        except ArtifactError as error:
            logger.error("%s", error)
            sys.stderr.flush()
            os._exit(FAILED)
        except OSError as error:
            logger.warning("%s: %s", folder, error)  # a file system that is away for a moment

    with repeated(check, every=SECONDS_BETWEEN_CHECKS, name="ended-when-taken-over"):
        yield


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without taking Python apart.

    Threads of gloo outlive their process group where something refers to it, as DeepSpeed does.
    One that then lets go of a tensor aborts the process: a training that is done would count as
    failed (https://github.com/pytorch/pytorch/issues/38228).
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python would
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what libraries have printed, such as NCCL
    os._exit(code)
