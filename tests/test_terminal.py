"""What a person sees when things go wrong: one sentence and an exit code."""

import errno
import os
import signal

import pytest

from launch.terminal import exit_code_of, terminated_as_interrupted
from pipeline.artifacts import ArtifactError
from pipeline.config_file import ConfigError
from pipeline.graph import StageError, StoppedWithCheckpoint


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("pretrain.batch: no"), 2, "pretrain.batch: no"),
        (StageError("no photograph"), 1, "no photograph"),
        (ArtifactError("another run"), 1, "another run"),
        (StoppedWithCheckpoint("after step 3"), 75, "after step 3"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (OSError(errno.ENOSPC, "No space left", "a/b"), 1, "a/b: No space left; free some space"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_went_wrong_is_a_sentence_and_an_exit_code(capsys, error, code, words):
    with exit_code_of() as outcome:
        raise error

    assert outcome.code == code
    assert words in capsys.readouterr().err


@pytest.fixture
def _foreground():
    """Ctrl-C as a terminal's own program has it: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_foreground")
def test_interrupt_that_a_library_swallowed_is_still_an_interrupt(capsys):
    with exit_code_of() as outcome:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("what numpy makes of it") from None

    assert outcome.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_bug_of_ours_keeps_its_traceback():
    with pytest.raises(RecursionError), exit_code_of():
        raise RecursionError


@pytest.mark.usefixtures("_foreground")
def test_termination_can_be_an_interrupt(capsys):
    before = signal.getsignal(signal.SIGTERM)

    with exit_code_of() as outcome, terminated_as_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)

    assert outcome.code == 130
    assert signal.getsignal(signal.SIGTERM) is before
