import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import SMALL, corrupted, write_photographs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import assert_same

from pipeline.config import DataConfig, Runtime
from pipeline.data.fetching import needs, shards_elsewhere
from pipeline.data.loader import TrainingBatches, training_batches
from pipeline.data.order import OrderError
from pipeline.data.samples import Samples
from pipeline.data.shard_files import GIBIBYTE, shard_files
from pipeline.data.shards import ShardError
from pipeline.data.streams import Stream, open_stream
from pipeline.tasks import TASKS

NAMES = ("sr2", "denoise30")
CONFIG = DataConfig(lanes=2, window=1, flips_and_rotations=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two tasks in runs/copy, as the stages name them: 36 samples in 4 tars each."""
    folder = tmp_path_factory.mktemp("made")
    photographs = write_photographs(folder / "in", 14)
    for name in NAMES:
        artifact = corrupted(name, photographs, folder / "work", config=SMALL)
        shutil.copytree(artifact.folder, folder / "copy" / f"corrupt-{name}@photos" / ("a" * 12))
    return folder / "copy"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A machine that has all of the run's folder but the tars."""
    return shutil.copytree(made, tmp_path / "runs", ignore=shutil.ignore_patterns("*.tar"))


def streams_in(run: Path, runtime: Runtime) -> dict[str, Stream]:
    streams = {}
    for name in NAMES:
        folder = run / f"corrupt-{name}@photos" / ("a" * 12)
        files = shard_files(folder, runtime)
        streams[name] = open_stream(folder, TASKS[name], split="train", files=files)
    return streams


def reading_from(copy: Path | str, cache: Path, *, mebibytes: float = 1) -> Runtime:
    gibibytes = mebibytes * 2**20 / GIBIBYTE
    return Runtime(shards_at=str(copy), shard_cache=cache, shard_cache_gib=gibibytes)


def loading(streams: dict[str, Stream], **changes: object) -> TrainingBatches:
    values = {
        "config": CONFIG,
        "tasks_per_step": "one",
        "batch": 12,
        "micro_batch": 12,
        "seed": 0,
        "start_step": 0,
        "steps": 14,
        "rank": 0,
        "world_size": 1,
        "workers": 0,
        "device": torch.device("cpu"),
    }
    return training_batches(streams, **(values | changes))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["one", "all"])
def test_batches_from_elsewhere_are_those_of_local_shards(
    made: Path, runs: Path, tmp_path: Path, mode: str, workers: int
) -> None:
    local = list(loading(streams_in(made, Runtime()), tasks_per_step=mode))
    runtime = reading_from(made, tmp_path / "cache", mebibytes=0.25)  # of 0.35

    remote = list(loading(streams_in(runs, runtime), tasks_per_step=mode, workers=workers))

    assert_same(remote, local)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert 0 < size <= 0.25 * 2**20


def test_what_is_here_is_not_fetched(made: Path, tmp_path: Path) -> None:
    runtime = reading_from(tmp_path / "nowhere", tmp_path / "cache")

    batches = iter(loading(streams_in(made, runtime)))
    first = next(batches)

    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert_same([first, *batches], list(loading(streams_in(made, Runtime()))))
    assert not (tmp_path / "cache").exists()


def test_a_task_that_is_here_does_not_keep_the_others_from_being_fetched(
    made: Path, runs: Path, tmp_path: Path
) -> None:
    place = Path("corrupt-sr2@photos", "a" * 12, "shards")
    for tar in (made / place).glob("*.tar"):
        shutil.copy(tar, runs / place)
    batches = iter(loading(streams_in(runs, reading_from(made, tmp_path / "cache"))))

    next(batches)
    began = time.monotonic()
    while len(list((tmp_path / "cache").glob("*.tar"))) < 4:  # those of the other task
        assert time.monotonic() < began + 30
        time.sleep(0.01)

    assert_same(list(batches), list(loading(streams_in(made, Runtime())))[1:])


def cut_short(tar: Path) -> None:
    os.truncate(tar, 1000)


def altered(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, altered, Path.unlink])
def test_a_cache_damaged_underneath_is_filled_again(
    made: Path,
    runs: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pipeline.data.shard_reader.most_open_shards", lambda: 1)
    cache = tmp_path / "cache"
    untouched = list(loading(streams_in(made, Runtime())))

    taken = []
    for batch in loading(streams_in(runs, reading_from(made, cache))):
        taken.append(batch)
        for tar in cache.glob("*.tar"):
            damage(tar)

    assert_same(taken, untouched)
    assert ("damaged (" in caplog.text) == (damage is not Path.unlink)


def test_a_shard_cut_short_while_it_is_open_is_fetched_again(
    made: Path, runs: Path, tmp_path: Path
) -> None:
    untouched = list(loading(streams_in(made, Runtime())))

    taken = []
    for batch in loading(streams_in(runs, reading_from(made, tmp_path / "cache"))):
        taken.append(batch)
        for tar in (tmp_path / "cache").glob("*.tar"):
            os.truncate(tar, 1000)

    assert_same(taken, untouched)


def test_a_shard_that_nobody_has_is_a_sentence_also_from_a_worker(
    made: Path, runs: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    for tar in (copy / f"corrupt-sr2@photos/{'a' * 12}/shards").glob("train-*.tar"):
        tar.unlink()
    streams = streams_in(runs, reading_from(copy, tmp_path / "cache"))

    with pytest.raises(ShardError) as raised:
        list(loading(streams, workers=1))

    assert "Traceback" not in str(raised.value)
    assert "corrupt-sr2@photos/aaaaaaaaaaaa/shards/train-" in str(raised.value)
    assert "can't be opened" in str(raised.value)


def test_a_cache_too_small_for_what_is_read_at_a_time_is_an_error_before_any_fetch(
    made: Path, runs: Path, tmp_path: Path
) -> None:
    runtime = reading_from(made, tmp_path / "cache", mebibytes=0.05)
    config = CONFIG.model_copy(update={"window": None})

    with pytest.raises(OrderError, match=r"runtime.shard_cache_gib: .* smaller data.window"):
        next(iter(loading(streams_in(runs, runtime), config=config)))

    assert not (tmp_path / "cache").exists()


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["one", "all"]),
    st.sampled_from([(1, 0), (2, 0), (2, 1), (3, 2)]),
    st.sampled_from([1, 2, 3, 6]),
    st.sampled_from([None, 1, 2, 3]),
    st.integers(0, 25),
)
def test_needs_are_exactly_what_is_read_and_when(
    made: Path, mode: str, place: tuple[int, int], lanes: int, window: int | None, start: int
) -> None:
    """Of a process: each shard it reads from a step on has one need at a time, and no other."""
    world_size, rank = place
    runtime = reading_from(made, made / "cache")
    run = made.parent / "without-tars"
    if not run.exists():
        shutil.copytree(made, run, ignore=shutil.ignore_patterns("*.tar"))
    samples = loading(
        streams_in(run, runtime),
        config=DataConfig(lanes=lanes, window=window),
        tasks_per_step=mode,
        batch=36,
        micro_batch=6,
        world_size=world_size,
        rank=rank,
    ).samples
    steps = range(start, start + 8)
    read = {step: read_in(samples, step) for step in steps}

    coming = []
    for need in islice(needs(samples, shards_elsewhere(samples), start), 1000):
        if need.first_step > steps[-1] + 8:
            break
        coming.append(need)

    assert [need.first_step for need in coming] == sorted(need.first_step for need in coming)
    for step in steps:
        for url in read[step]:
            assert any(
                need.url == url and need.first_step <= step <= need.last_step for need in coming
            )
    if world_size == 1:  # lanes are whole, so that what is announced for a while is read in it
        for need in coming:
            if need.first_step >= start + len(NAMES) and need.last_step <= steps[-1]:
                during = range(need.first_step, need.last_step + 1)
                assert any(need.url in read[step] for step in during)


def read_in(samples: Samples, step: int) -> set[str]:
    """The URLs of the shards that the process reads in a step."""
    urls = set()
    for micro in range(samples.division.accumulation):
        for name, ids in samples.ids(step * samples.division.accumulation + micro).items():
            reader = samples.streams[name].reader
            for shard in np.unique(ids.shards).tolist():
                urls.add(reader.files.url(reader.records[shard]))
    return urls


def test_shards_that_differ_from_their_records_are_found_before_a_training(made: Path) -> None:
    reader = streams_in(made, Runtime())["sr2"].reader
    record = reader.records[2]
    altered = replace(record, sha256="0" * 64)
    other = type(reader)(reader.folder, [*reader.records[:2], altered], reader.files)

    other.check(range(3), contents=False)
    with pytest.raises(ShardError, match=r"train-00002.tar: altered since it was made"):
        other.check(range(3), contents=True)
