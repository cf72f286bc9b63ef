"""Signals that ask a training to stop: it saves a checkpoint after the step at hand."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.signal_handlers import handling

# A cluster takes the node back; SLURM nears the time limit; Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
# A Ctrl-C reaches a process twice under torchrun: from the terminal and from the launcher.
PATIENCE = 3


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = 0

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the third Ctrl-C ends the process at once."""
        self.signal = self.signal or signal.Signals(number)
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= PATIENCE:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, the signals only leave a note."""
    request = StopRequest()
    with handling(SIGNALS, request.receive):
        yield request
