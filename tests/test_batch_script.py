"""What the batch script decides when its step has ended, with a fake srun and a fake scontrol."""

import re

import pytest
from batch_runs import TERMINATED, Batch, script_of, scripts_of


@pytest.fixture
def scripts(tmp_path, capsys) -> str:
    """All scripts of a run: distributed stages on two nodes, arrays in four parts."""
    return scripts_of(tmp_path, capsys)


@pytest.fixture
def batch(tmp_path, scripts) -> Batch:
    return Batch(tmp_path, script_of("pretrain", scripts))


@pytest.fixture
def array(tmp_path, scripts) -> Batch:
    return Batch(tmp_path, script_of("corrupt-sr2@photos", scripts), job="7_3")


def test_done_is_when_every_process_says_so(batch):
    assert batch.start("progress 0 0") == 0

    assert (batch.ended(), batch.requeues()) == ("0", 0)
    assert batch.last_event() == "done"


def test_a_step_that_ends_well_with_a_process_missing_is_not_done(batch):
    """srun may say 0 after a node's failure."""
    assert batch.start("progress 0") == 0

    assert (batch.ended(), batch.requeues()) == (None, 1)


def test_stopped_with_a_checkpoint_is_requeued_as_often_as_it_takes(batch):
    for number in range(8):
        assert batch.start("progress 75 75") == 0
        assert batch.requeues() == number + 1
    assert batch.start("progress 0 0") == 0

    assert batch.ended() == "0"


def test_failures_with_progress_are_requeued(batch):
    for _ in range(5):
        assert batch.start("progress 1") == 0

    assert (batch.ended(), batch.requeues()) == (None, 5)


@pytest.mark.parametrize("step", ["1 1", "75 75", ""], ids=["failing", "stopped", "killed"])
def test_starts_without_progress_come_to_an_end(batch, step):
    assert batch.start(f"progress {step}") == 0
    assert batch.start(step) == 0
    assert batch.start(step) == 0
    assert batch.start(step) == 1

    assert (batch.ended(), batch.requeues()) == ("1", 3)
    assert "after 3 starts without progress" in batch.last_event()


def test_progress_in_between_begins_the_count_anew(batch):
    steps = ["1", "1", "progress 1", "1", "1"]

    assert [batch.start(step) for step in steps] == [0] * 5
    assert batch.start("1") == 1


def test_a_config_error_is_never_requeued(batch):
    assert batch.start("progress why 2 2") == 2

    assert (batch.ended(), batch.requeues()) == ("2", 0)
    assert batch.last_event() == ("failed with exit code 2: config or usage: lanes do not divide")


def test_what_hangs_is_ended_and_requeued(batch):
    assert batch.start("progress sign hang") == 0

    assert batch.requeues() == 1
    assert "nothing has moved for" in batch.events()


def test_a_sign_of_life_that_is_away_for_a_moment_does_not_end_the_watch(batch):
    """As where a file system answers ESTALE."""
    assert batch.start("sign blink hang") == 0

    assert "nothing has moved for" in batch.events()


def test_a_training_is_given_the_time_for_its_first_step(scripts):
    seconds = r"quiet > \(alive == first \? (\d+) : (\d+)\)"

    assert re.search(seconds, script_of("pretrain", scripts)).groups() == ("4200", "400")
    assert re.search(seconds, script_of("corrupt-sr2@photos", scripts)).groups() == ("400", "400")


def test_a_step_that_hangs_at_the_time_limit_is_ended_before_slurm_ends_the_script(batch):
    state = "COMPLETING Reason=TimeLimit"

    assert batch.start("progress sign hang", state=state, terminated=True) == 0

    assert batch.requeues() == 1
    assert "nothing has moved" not in batch.events()


def test_a_step_that_is_asked_to_stop_before_the_limit_has_time_to(batch):
    """As by preemption, with minutes of grace."""
    assert batch.start("progress sign hang", terminated=True) == 0

    assert "nothing has moved" in batch.events()  # which is what ended it, not SIGTERM


def test_an_account_that_can_not_be_written_is_the_end(batch):
    """A quota that is used up fails every start, and none of them would be counted."""
    (batch.jobs / "7.starts").mkdir()

    assert batch.start("1", broken=True) == 1

    assert (batch.ended(), batch.requeues()) == ("1", 0)
    assert "7.starts can't be written" in batch.last_event()


def test_starts_that_slurm_ended_are_not_counted(batch):
    """A stage without checkpoints may be preempted as often as it happens."""
    for _ in range(4):
        assert batch.start("75 75", state=TERMINATED) == 1
    assert batch.start("1") == 0

    assert (batch.ended(), batch.requeues()) == (None, 1)


def test_only_what_is_finished_counts_as_progress(tmp_path, scripts):
    """Whatever the folders are called that the run lies in."""
    place = tmp_path / "downloads" / "mine"
    script = script_of("pretrain", scripts).replace(str(tmp_path), str(place))
    batch = Batch(place, script)
    folder = place / "runs" / "tiny" / "pretrain" / "f"
    downloads = folder.parent / "downloads" / "0123"
    downloads.mkdir(parents=True)
    for name, code in {"a.tar": 0, ".b.tar.1.tmp": 0, "c.tar": 0}.items():
        (downloads / name).touch()
        assert batch.start("1") == code
    (folder / "logs").mkdir()
    for number, code in enumerate([0, 1]):
        (folder / "logs" / f"{number}.txt").touch()
        (downloads / f".c.tar.{number}.tmp").touch()
        assert batch.start("1") == code


def test_what_slurm_says_of_other_tasks_decides_nothing(array):
    assert array.start("1", state="CANCELLED Reason=None") == 1

    assert (array.ended(), array.requeues()) == (None, 0)
    assert array.last_event() == "ended by SLURM"


def test_an_older_copy_of_a_task_does_not_requeue_the_newer_one(array):
    assert array.start("1", restarts=1) == 1

    assert array.requeues() == 0
    assert array.last_event() == "a newer copy is running"


def test_a_part_with_shards_of_its_own_goes_on(array):
    for number in range(5):
        assert array.start(f"shard-{3 + 4 * number:05} 1") == 0

    assert (array.ended(), array.requeues()) == (None, 5)


def test_shards_of_other_parts_are_no_progress(array):
    codes = [array.start(f"shard-{4 * number + number % 3:05} 1") for number in range(1, 4)]

    assert codes == [0, 0, 1]
    assert "after 3 starts without progress" in array.last_event()


def test_a_job_that_is_being_ended_leaves_that_to_slurm(batch):
    assert batch.start("progress 75 75", state=TERMINATED) == 1

    assert (batch.ended(), batch.requeues()) == (None, 0)
    assert batch.last_event() == "ended by SLURM"


def test_a_time_limit_that_was_passed_is_a_requeue(batch):
    assert batch.start("progress 75 75", state="COMPLETING Reason=TimeLimit") == 0

    assert batch.requeues() == 1


def test_a_copy_that_slurm_has_given_up_does_not_requeue_the_newer_one(batch):
    assert batch.start("progress 1", restarts=1) == 1

    assert (batch.ended(), batch.requeues()) == (None, 0)
    assert batch.last_event() == "a newer copy is running"


def test_a_controller_that_is_away_is_asked_again(batch):
    (batch.fakes / "away").write_text("1\n" * 5)

    assert batch.start("progress 1") == 0

    assert batch.requeues() == 1


def test_a_controller_that_stays_away_makes_a_failure(batch):
    (batch.fakes / "away").write_text("1\n" * 200)

    assert batch.start("progress why 1") == 1

    assert batch.ended() == "1"
    assert "scontrol could not requeue it: lanes do not divide" in batch.last_event()
