"""A config changed while a training is unfinished: it is said, and a requeued job refuses it."""

import json
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from demo_run import Run, wait_for

from launch.begun import RECORD
from launch.local import run_graph
from pipeline import locks
from pipeline.artifacts import files_to_seal
from pipeline.config import RunConfig
from pipeline.config_file import ConfigError
from pipeline.config_section import Section
from pipeline.graph import Graph, Job, Stage, StageError


class Training(Section):
    batch: int = 256
    learning_rate: float = 5e-5
    clip_norm: float | None = None
    stops: bool = True  # with a checkpoint, before it is done


class TrainingStage(Section):
    training: Training
    seed: int = 0


class Stopped(StageError):  # noqa: N818 - no error
    """As by a signal."""


class Crops(Section):
    crops_per_image: int = 8


def train(job: Job) -> dict:
    config = job.config
    assert isinstance(config, TrainingStage)
    steps = [path.name for path in sorted(job.folder.glob("checkpoints/*"))]
    (job.folder / "checkpoints" / f"step-{4 * (len(steps) + 1):08d}").mkdir(parents=True)
    if config.training.stops:
        raise Stopped
    return {"went on from": steps}


def graph(crops: int = 8, seed: int = 0, version: int = 1, **training: object) -> Graph:
    shards = Stage(
        name="corrupt-sr2@photos",
        kind="corrupt",
        version=1,
        config=Crops(crops_per_image=crops),
        run=lambda job: {},
    )
    pretrain = Stage(
        name="finetune-sr2",
        kind="finetune",
        version=version,
        config=TrainingStage(training=Training.model_validate(training), seed=seed),
        run=train,
        inputs={"shards": shards},
        launch="distributed",
    )
    return Graph(stages=(shards, pretrain))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Runs a graph, as a restart of a SLURM job where given; returns the warnings."""
    config = RunConfig(name="run", sources={"x": {"path": "x"}}, runtime={"runs": tmp_path})
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.0)

    def run(graph: Graph, *, restart: int | None = None, job: str = "7") -> list[str]:
        for name, value in {"SLURM_RESTART_COUNT": restart, "SLURM_JOB_ID": job}.items():
            if restart is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="launch"), suppress(Stopped):
            run_graph(graph, config, config_arguments=[], say=lambda line: None)
        return [record.getMessage() for record in caplog.records]

    return run


def folders(tmp_path: Path) -> list[Path]:
    found = (tmp_path / "run" / "finetune-sr2").glob("*")
    return sorted(found, key=lambda path: path.stat().st_ctime_ns)


def test_what_was_begun_is_recorded_beside_the_artifact(run, tmp_path: Path) -> None:
    assert run(graph(batch=128, stops=False)) == []

    (folder,) = folders(tmp_path)
    record = json.loads((folder / RECORD).read_text())
    assert record["config"]["training"]["batch"] == 128
    assert list(record["inputs"]) == ["shards"]
    assert record["fingerprint"][:12] == folder.name
    assert RECORD not in [path.name for path in files_to_seal(folder)]


def test_a_changed_value_is_named_with_the_old_one_and_the_step(run, tmp_path: Path) -> None:
    run(graph(clip_norm=1.5))
    run(graph(clip_norm=1.5))

    (warning,) = run(graph(batch=128, seed=3))

    old, new = folders(tmp_path)
    assert warning == (
        f"finetune-sr2: begins at step 0 in {new}, while {old} has a checkpoint of step 8 and is "
        "not finished. What differs (old -> new): finetune.sr2.batch: 256 -> 128; "
        "finetune.sr2.clip_norm: 1.5 -> null; seed: 0 -> 3. With the old values set again, by "
        "--set finetune.sr2.batch=256 --set finetune.sr2.clip_norm=1.5 --set seed=0, the same "
        "command goes on from there"
    )
    assert warning in (new / "logs" / "log.txt").read_text()
    assert run(graph(batch=128, seed=3)) == []  # it has begun by now


def test_going_on_and_beginning_the_first_time_warn_of_nothing(run, tmp_path: Path) -> None:
    assert run(graph()) == []
    assert run(graph()) == []
    assert run(graph(), restart=1) == []
    assert len(folders(tmp_path)) == 1


def test_a_finished_training_is_not_left_behind(run) -> None:
    run(graph(stops=False))

    assert run(graph(batch=128), restart=1) == []


def test_a_change_before_the_training_is_found_through_its_inputs(run) -> None:
    run(graph(crops=8))

    (warning,) = run(graph(crops=9, version=2))

    assert (
        "What differs (old -> new): the version of stage finetune-sr2: 1 -> 2; "
        "corrupt.crops_per_image: 8 -> 9. With the old values set again, by "
        "--set corrupt.crops_per_image=8, the same"
    ) in warning


def test_a_requeued_job_refuses_to_begin_anew_and_goes_on_with_the_old_values(
    run, tmp_path: Path
) -> None:
    run(graph(), restart=0)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ConfigError) as refusal:
        run(graph(batch=128), restart=1)

    assert "finetune.sr2.batch: 256 -> 128" in str(refusal.value)
    assert "has a checkpoint of step 4 and is not finished" in str(refusal.value)
    assert "This job was requeued" in str(refusal.value)
    assert "--set finetune.sr2.batch=256" in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert run(graph(), restart=2) == []
    (folder,) = folders(tmp_path)
    assert len(list((folder / "checkpoints").iterdir())) == 2


def test_a_requeued_job_that_begins_beside_an_older_experiment_only_warns(run) -> None:
    run(graph(), restart=0, job="7")

    (warning,) = run(graph(batch=128), restart=1, job="8")

    assert "finetune.sr2.batch: 256 -> 128" in warning


def test_a_training_begun_on_purpose_goes_on_when_it_is_requeued(run) -> None:
    run(graph(), restart=0, job="7")
    assert len(run(graph(batch=128), restart=0, job="7")) == 1

    assert run(graph(batch=128), restart=1, job="7") == []


def test_of_a_training_without_a_record_the_step_is_said(run, tmp_path: Path) -> None:
    run(graph())
    (old,) = folders(tmp_path)
    (old / RECORD).unlink()

    with pytest.raises(ConfigError, match="not recorded"):
        run(graph(batch=128), restart=1)
    (warning,) = run(graph(batch=128))

    assert "has a checkpoint of step 4 and is not finished" in warning
    assert "What differs (old -> new): not recorded. With the old values set again, the" in warning


def test_what_was_set_aside_is_not_left_behind(run, tmp_path: Path) -> None:
    run(graph())
    (old,) = folders(tmp_path)
    old.rename(old.with_name(f"{old.name}.replaced-20260101-000000"))

    assert run(graph(batch=128)) == []


@pytest.mark.slow
def test_a_requeued_run_with_another_config_ends_with_2_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    longer = ("--until", "pretrain", "--set", "pretrain.samples=48000")
    process = run.start("run", *longer)
    wait_for(run, "pretrain/*/checkpoints/step-*2", process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    (folder,) = run.folder.glob("pretrain/*")
    steps = sorted(os.listdir(folder / "checkpoints"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    for processes in ("1", "2"):
        output = run(
            "run", *longer, "--set", "pretrain.batch=48", f"--set=runtime.processes={processes}",
            code=2,
        )  # fmt: skip
        assert output.count("pretrain.batch: 24 -> 48") == 1

    assert list(run.folder.glob("pretrain/*")) == [folder]
    assert sorted(os.listdir(folder / "checkpoints")) == steps
