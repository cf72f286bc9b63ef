"""What a person sees: progress, tables, and one sentence for whatever went wrong."""

import argparse
import errno
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.artifacts import ArtifactError
from pipeline.config_file import ConfigError
from pipeline.graph import Progress, StageError, StoppedWithCheckpoint
from pipeline.signal_handlers import handling

FAILED, USAGE, STOPPED, INTERRUPTED = 1, 2, 75, 130
INTERRUPT = "stopped; the same command goes on where this one was"
SECONDS_BETWEEN_LINES = 10.0


class CommandFailed(Exception):  # noqa: N818
    """A command that ends with this sentence and exit code 1."""


@dataclass
class Outcome:
    code: int = 0
    was_interrupted: bool = False  # by Ctrl-C, at any time


@contextmanager
def exit_code_of() -> Iterator[Outcome]:
    """Turn what can go wrong for a user into one sentence and an exit code."""
    outcome = Outcome()
    try:
        with _noticing_interrupts(outcome):
            yield outcome
    except ConfigError as error:
        outcome.code = _say(error, USAGE)
    except (CommandFailed, StageError, ArtifactError) as error:
        outcome.code = _say(error, FAILED)
    except StoppedWithCheckpoint as stop:
        outcome.code = _say(stop, STOPPED)
    except KeyboardInterrupt as stop:
        outcome.code = _say(str(stop) or INTERRUPT, INTERRUPTED)
    except BrokenPipeError:  # such as `ipt plan demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.code = FAILED
    except OSError as error:
        outcome.code = _say(_explain(error), FAILED)
    except Exception:
        # numpy loses a Ctrl-C that comes while it is imported, and fails on it later.
        if not outcome.was_interrupted:
            raise
        outcome.code = _say(INTERRUPT, INTERRUPTED)


@contextmanager
def _noticing_interrupts(outcome: Outcome) -> Iterator[None]:
    if (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):  # in the background, Ctrl-C isn't for us
        yield
        return

    def interrupt(*_: object) -> None:
        outcome.was_interrupted = True
        raise KeyboardInterrupt

    with handling([signal.SIGINT], interrupt):
        yield


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Stop at SIGTERM, which timeouts and shutdowns send, as at Ctrl-C: leaving nothing behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with handling([signal.SIGTERM], interrupt):
        yield


def _say(message: object, code: int) -> int:
    logging.getLogger(__name__).info("exit code %d: %s", code, message)
    print(message, file=sys.stderr, flush=True)
    return code


def _explain(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EFBIG: "raise the limit on file sizes",
        errno.ENOENT: "choose another runtime.runs folder",
        errno.EROFS: "choose another runtime.runs folder",
        errno.EACCES: "check the permissions, or choose another runtime.runs folder",
        errno.ENOTDIR: "a file is in the way; choose another runtime.runs folder",
        errno.EEXIST: "a file is in the way; choose another runtime.runs folder",
    }.get(error.errno or 0, "mend that")
    return (
        f"{place}{error.strerror or error}; {remedy} and run the same command again: "
        "what is finished is kept"
    )


class PlainProgress:
    """One line every ten seconds, for logs and pipes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.first = 0  # where this execution took up the work
        self.done = math.inf
        self.printed = self.began

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done < self.done:  # the first work, or another
            self.first, self.began = done, now
        self.done = done
        if now - self.printed < SECONDS_BETWEEN_LINES and done < total:
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = f"{(total - done) / rate:.0f} s left" if rate > 0 else "time left unknown"
        print(f"  {self.name}  {done}/{total}  {rate:.1f}/s  {left}  {note}", flush=True)


@contextmanager
def progress_line(name: str) -> Iterator[Progress]:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield PlainProgress(name)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("  [bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
        transient=True,
    ) as bar:
        line = bar.add_task(name, total=None, rate="", note="")

        def progress(done: int, total: int, note: str = "") -> None:
            speed = bar.tasks[line].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bar.update(line, completed=done, total=total, rate=rate, note=note)

        yield progress


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  "
) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for number, row in enumerate([header, *rows]):
        cells = [
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        text = ("  " + "  ".join(cells)).rstrip()
        print(f"\033[1m{text}\033[0m" if number == 0 and sys.stdout.isatty() else text)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "").replace("-", "").strip("+").isdigit() or cell == "–"


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """For a scheduler's array jobs: `--part $SLURM_ARRAY_TASK_ID`."""
    parser.add_argument(
        "--part", type=int, default=0, metavar="I", help="which part of an array this is, from 0"
    )
    parser.add_argument(
        "--parts", type=int, default=1, metavar="N", help="how many parts share the corrupt stages"
    )


def set_up_logging() -> None:
    """What is logged goes to the log files of the stages; warnings also to the terminal."""
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("  %(message)s"))
    logging.getLogger().addHandler(terminal)
