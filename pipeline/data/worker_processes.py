"""What worker processes need: no signals of others, one thread for numerics, an end with the
process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

# What a terminal or a scheduler sends to all processes of a job and only the first one answers.
FOR_THE_PARENT = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@contextmanager
def blocked_in_children(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Processes started meanwhile never see `signals`; those that come to this one come later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        # The first process of multiprocessing starts this one too, and afterwards unblocks SIGINT
        # and SIGTERM, whatever they were before.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Processes started meanwhile compute with one thread each; libraries read this at import."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def exit_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it went.

    A worker waits for its next order on a pipe whose writing end it holds itself, so that a parent
    that was killed leaves it waiting for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
