"""Fetches shards before a training needs them. Never imports torch nor webdataset."""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from pipeline.data.shard_cache import FetchCancelled, ShardCache
from pipeline.data.shards import ShardError, ShardRecord

logger = logging.getLogger(__name__)

TOUCH_SECONDS = 10.0  # between two uses counted for the shards that are being held
MOST_HELD = 1024  # needs: enough far ahead, where all shards of a small set fit many times
CLOSE_SECONDS = 2.0  # after which a thread that a server keeps waiting is left to itself


@dataclass(frozen=True, kw_only=True)
class Need:
    """A shard and the steps that read it."""

    first_step: int
    last_step: int
    url: str
    record: ShardRecord


class Prefetcher:
    """Fetches the shards that come next, ahead of a training, in the order in which they are
    needed.

    `needs`, in the order of their first steps, may be endless. As many are held as have `budget`
    bytes, at least one: each from when its fetch begins to the end of its last step. A shard that
    can't be fetched is logged, and left to its reader to fetch or to fail for.
    """

    def __init__(
        self,
        cache: ShardCache,
        needs: Iterator[Need],
        *,
        budget: int,
        threads: int = 2,
        touch_seconds: float = TOUCH_SECONDS,
    ) -> None:
        self._cache = cache
        self._needs = needs
        self._budget = budget
        self._touch_seconds = touch_seconds
        self._step = 0
        self._held: list[tuple[int, int, Need]] = []  # a heap: last step, turn, need
        self._held_bytes = 0
        self._taken = 0
        self._turn = threading.Lock()  # of the one thread that chooses what to fetch next
        self._advanced = threading.Event()
        self._closed = threading.Event()
        targets = [self._keep_fetching] * threads + [self._keep_touching]
        # Daemons: an interpreter that ends doesn't wait for a server.
        self._threads = [
            threading.Thread(target=target, name="prefetch", daemon=True) for target in targets
        ]
        for thread in self._threads:
            thread.start()

    def advance(self, step: int) -> None:
        """Say that the training has reached `step`. Never blocks, costs a microsecond."""
        self._step = step
        self._advanced.set()

    def close(self) -> None:
        """End the threads, also in the middle of a download. May be called again."""
        self._closed.set()
        self._advanced.set()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _keep_fetching(self) -> None:
        while (need := self._next()) is not None:
            try:
                self._cache.fetch(need.url, need.record, cancelled=self._closed)
            except ShardError as error:
                logger.warning("not fetched ahead: %s", error)
            except FetchCancelled:
                return

    def _next(self) -> Need | None:
        """The next need, once there is room for it; None where there are no more, or at the end."""
        with self._turn:
            for need in self._needs:
                while True:
                    self._advanced.clear()  # before looking, so that no change is missed
                    if self._closed.is_set():
                        return None
                    if need.last_step < self._step:
                        break
                    if self._has_room(need):
                        heappush(self._held, (need.last_step, self._taken, need))
                        self._taken += 1
                        self._held_bytes += need.record.bytes
                        return need
                    self._advanced.wait()
        return None

    def _has_room(self, need: Need) -> bool:
        while self._held and self._held[0][0] < self._step:
            self._held_bytes -= heappop(self._held)[2].record.bytes
        if len(self._held) >= MOST_HELD:
            return False
        return not self._held or self._held_bytes + need.record.bytes <= self._budget

    def _keep_touching(self) -> None:
        while not self._closed.wait(self._touch_seconds):
            # Backwards, so that of these the one needed last would be the first to be evicted.
            for _, _, need in sorted(self._held, key=lambda each: each[1], reverse=True):
                if need.last_step >= self._step:
                    self._cache.touch(need.record)
