"""What the batch script makes of the site it runs on: preemption, clocks, refusals, setup."""

import json
from datetime import datetime, timedelta

import pytest
from batch_runs import TERMINATED, Batch, script_of, scripts_of

from launch.submitted import note_cancelled


@pytest.fixture
def batch(tmp_path, capsys) -> Batch:
    return Batch(tmp_path, script_of("pretrain", scripts_of(tmp_path, capsys)))


def test_a_preemption_with_time_of_grace_is_no_start_that_counts(batch):
    """A stage without checkpoints, such as evaluate, may be preempted as often as it happens."""
    for number in range(1, 5):
        assert batch.start("75 75", facts=_preempted(seconds=1)) == 0
        assert batch.requeues() == number
    assert "exit codes of the processes: 2×75 , preempted" in batch.last_event()


def test_where_preemption_is_a_cancellation_the_job_is_requeued(batch):
    assert batch.start("75 75", state=TERMINATED, facts=_preempted(seconds=1)) == 0

    assert (batch.ended(), batch.requeues()) == (None, 1)


def test_a_preemption_that_slurm_itself_requeues_is_no_start_that_counts(batch):
    """It raises Restarts then, not when the job starts again."""
    for number in range(1, 5):
        assert batch.start("75 75", state=TERMINATED, restarts=number) == 1
        assert batch.last_event() == "ended by SLURM"
    assert batch.start("1") == 0


def test_a_preemption_of_an_earlier_start_is_past(batch):
    assert batch.start("75 75", state=TERMINATED, facts=_preempted(seconds=-60)) == 1

    assert batch.last_event() == "ended by SLURM"


def test_a_job_that_was_cancelled_while_it_was_preempted_stays_so(batch):
    note_cancelled(batch.jobs.parent, ["7"])

    assert batch.start("75 75", state=TERMINATED, facts=_preempted(seconds=1)) == 1

    assert (batch.ended(), batch.requeues()) == (None, 0)
    assert batch.last_event() == "ended by SLURM"


def test_what_hangs_while_a_preemption_cancels_it_is_ended_in_time(batch):
    facts = _preempted(seconds=1)

    assert batch.start("sign hang", state=TERMINATED, facts=facts, terminated=True) == 0

    assert batch.requeues() == 1
    assert "nothing has moved" not in batch.events()


def test_a_controller_that_is_away_does_not_hide_a_preemption(batch):
    (batch.fakes / "away").write_text("1\n" * 5)

    assert batch.start("75 75", state=TERMINATED, facts=_preempted(seconds=1)) == 0

    assert batch.requeues() == 1


def _preempted(*, seconds: int) -> str:
    """What SLURM says of a job that was preempted so long after now."""
    at = datetime.now() + timedelta(seconds=seconds)  # local, as SLURM says it
    return f"PreemptEligibleTime=2026-11-01T12:00:00 PreemptTime={at:%Y-%m-%dT%H:%M:%S} Shared=NO"


def test_what_moves_does_not_hang_whatever_the_clocks_say(batch):
    """As after a suspension, or with a file server whose clock is another."""
    assert batch.start("progress late late 0 0") == 0

    assert "nothing has moved" not in batch.events()
    assert batch.ended() == "0"


def test_a_requeue_that_slurm_refuses_is_a_failure_that_says_so(batch):
    (batch.fakes / "refused").write_text("Requested operation is presently disabled\n")

    assert batch.start("progress 75 75") == 1

    assert (batch.ended(), batch.requeues()) == ("1", 8)
    assert "SLURM refuses to requeue it: Requested operation is" in batch.last_event()


def test_a_controller_that_does_not_answer_is_no_refusal(batch):
    (batch.fakes / "refused").write_text("Unable to contact slurm controller (connect failure)\n")

    assert batch.start("progress 75 75") == 1

    assert batch.requeues() == 120
    assert "scontrol could not requeue it" in batch.last_event()


@pytest.mark.parametrize(
    "line",
    [
        "module load cuda/12.8",
        "function module { local s=1; return $s; }; module load cuda",
        "set -e; cd /nowhere/at/all",
        "set -u; export A=$NOTHING_OF_THE_SORT",
        "cd /nowhere/at/all || exit 0",
    ],
)
def test_a_line_of_setup_that_fails_is_a_usage_error(tmp_path, capsys, line):
    wrong = tmp_path / "went-on"
    batch = Batch(tmp_path, _script(tmp_path, capsys, line, f"touch {wrong}"))

    assert batch.start("progress 0 0", broken=True) == 2

    assert (batch.ended(), batch.requeues()) == ("2", 0)
    assert f"a line of setup: {line} (append || true" in batch.last_event()
    assert not wrong.exists()


def test_a_job_that_is_ended_in_its_setup_has_not_failed(tmp_path, capsys):
    """As by a time limit, or a preemption, while modules are loaded."""
    ready = tmp_path / "ready"
    batch = Batch(tmp_path, _script(tmp_path, capsys, f"touch {ready}; /bin/sleep 1; false"))

    code = batch.start("0 0", state=TERMINATED, facts=_preempted(seconds=1), ended_at=ready)

    assert code == 0
    assert (batch.ended(), batch.requeues()) == (None, 1)
    assert "to be requeued: ended in setup: touch" in batch.last_event()


def test_files_that_setup_sources_get_no_arguments_of_the_script(tmp_path, capsys):
    site = tmp_path / "site.sh"
    site.write_text("[ $# = 0 ]\n")
    script = script_of(
        "corrupt-sr2@photos", scripts_of(tmp_path, capsys, f"setup: [source {site}]")
    )
    batch = Batch(tmp_path, script, job="7_3")

    assert batch.start("0", arguments=("0",)) == 0

    assert batch.ended() == "0"


def test_what_setup_sets_decides_nothing_later(tmp_path, capsys):
    site = tmp_path / "site.sh"
    site.write_text(
        "false\nexport A=1 IFS=: job=9 account=/dev/null\ncd /\n"
        "set -euo pipefail -fC\nshopt -s failglob\ntrap 'exit 9' EXIT ERR\n"
    )
    lines = ('eval "false; true"', "grep -q nothing /dev/null || true", f"source {site}")
    batch = Batch(tmp_path, _script(tmp_path, capsys, *lines))

    assert batch.start("progress 75 75") == 0
    assert batch.start("progress 0 0") == 0

    assert (batch.ended(), batch.requeues()) == ("0", 1)


def _script(folder, capsys, *setup: str) -> str:
    return script_of("pretrain", scripts_of(folder, capsys, f"setup: {json.dumps(setup)}\n"))
