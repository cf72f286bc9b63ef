"""Writes checkpoints beside the training: it waits for the copy, not for the disk."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.training.checkpoint_folder import Snapshot

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """A thread that writes snapshots, at most one at a time. What fails in it is raised by `check`
    or `finish`."""

    def __init__(self, write: Callable[[Snapshot], Path]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._under_way: Future[None] | None = None

    def start(self, snapshot: Snapshot, *, paused: float) -> None:
        """Write it from now on; the one before must be finished. `paused` seconds are told of."""
        assert self._under_way is None, "finish the one before first"
        self._under_way = self._thread.submit(self._save, snapshot, paused)

    def _save(self, snapshot: Snapshot, paused: float) -> None:
        began = time.monotonic()
        path = self._write(snapshot)
        wrote = time.monotonic() - began
        logger.info("saved %s in %.2f s; training paused for %.2f s", path.name, wrote, paused)

    def check(self) -> None:
        """Raise what has failed by now."""
        if self._under_way is not None and self._under_way.done():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is under way."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Wait, whatever has happened, so that nobody writes when this returns."""
        self._thread.shutdown()
