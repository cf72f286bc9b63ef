"""Ends a training in which nothing moves any more.

A rank that is stopped, a network that is cut, a file system that hangs: the others would wait for
it for half an hour, those in DeepSpeed's own groups perhaps for ever.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import Runtime

logger = logging.getLogger(__name__)

USUAL_STEPS = 20  # so many times its usual length may a step take
MOST_TELLING = 10  # seconds
SUSPENDED = 5  # times the interval between two looks: whoever oversleeps was not running
LEARNS = 0.1  # of a new step's length, for the usual one


class Watchdog:
    """Watches the time since the last step, from a thread of its own."""

    def __init__(self, *, rank: int, first: float, least: float, stacks: Path) -> None:
        self.rank = rank
        self.limit = first  # seconds
        self.least = least
        self.stacks = stacks
        self.usual = 0.0  # seconds of a step; the first one, which compiles, doesn't count
        self._steps = 0
        self._last = time.monotonic()
        self._ended = threading.Event()

    def stepped(self) -> None:
        """A step is done, with all that came after the one before."""
        now = time.monotonic()
        took = now - self._last
        self._steps += 1
        self._last = now
        if self._steps == 1:  # it compiles and loads; how long a step takes is not known yet
            return
        self.usual = took if self._steps == 2 else self.usual + LEARNS * (took - self.usual)
        self.limit = max(self.least, USUAL_STEPS * self.usual)

    def watch(self) -> None:
        interval = min(1.0, self.least / 4)
        looked = time.monotonic()
        while not self._ended.wait(interval):
            now = time.monotonic()
            if now - looked > SUSPENDED * interval:  # this process itself stood still
                self._last += now - looked
            looked = now
            if now - self._last > self.limit:
                self._end(now - self._last)

    def _end(self, waited: float) -> None:
        """Tell where every thread stands, and end this process: its threads may never return."""
        # Even where telling hangs, as it may if the file system does.
        faulthandler.dump_traceback_later(MOST_TELLING, exit=True)
        logger.error(
            "rank %d: nothing has moved for %.0f s (a step takes %.3g s): another process hangs, "
            "or the network, or a file system. Ending; the same command goes on from the last "
            "checkpoint. Where each thread stands: %s. Longer steps: runtime.stall_seconds",
            self.rank,
            waited,
            self.usual,
            self.stacks,
        )
        with self.stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        logging.shutdown()
        os._exit(1)

    def end(self) -> None:
        self._ended.set()


@contextmanager
def watched(rank: int, runtime: Runtime, folder: Path) -> Iterator[Watchdog]:
    """Within, `stepped` must be called in time, or this process ends with exit code 1."""
    folder.mkdir(parents=True, exist_ok=True)
    watchdog = Watchdog(
        rank=rank,
        first=runtime.first_step_seconds,
        least=runtime.stall_seconds,
        stacks=folder / f"stalled-rank-{rank}.txt",
    )
    thread = threading.Thread(target=watchdog.watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watchdog
    finally:
        watchdog.end()
        thread.join()
