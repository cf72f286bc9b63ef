"""Array jobs: any split into parts gives the same shards, sealed once, by the last to finish."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from data_samples import SMALL, corrupting_stage, listed, sr3_settings, write_photographs

from launch.local import run_graph
from launch.stage import checked_part, run_stage
from pipeline import artifacts
from pipeline.artifacts import Artifact, file_digest, verify
from pipeline.config import RunConfig, Runtime, SourceConfig
from pipeline.config_file import ConfigError
from pipeline.data.shard_making import make_shard, plan_shards
from pipeline.data.shards import read_record
from pipeline.graph import Graph, Job, Stage, StageError, report_nothing, resolve_stage

REPOSITORY = Path(__file__).parents[1]


def shards_of(artifact: Artifact) -> dict[str, str]:
    """SHA-256 of every tar, by its path."""
    paths = (each.path for each in artifact.manifest.files if each.path.endswith(".tar"))
    return {path: file_digest(artifact.folder / path) for path in paths}


def run_in_parts(
    photographs: Path, runs: Path, *, parts: int, workers: int = 1
) -> tuple[list[str], dict[str, Artifact]]:
    """What was said, and what the last part returned."""
    stage = corrupting_stage("sr3", photographs)
    graph = Graph(stages=(stage.inputs["source"], stage, after(stage)))
    config = RunConfig(
        name="run",
        sources={"photos": SourceConfig(path=str(photographs))},
        runtime=Runtime(runs=runs, workers=workers),
    )
    lines: list[str] = []
    for part in range(parts):
        artifacts = run_graph(
            graph, config, config_arguments=[], part=(part, parts), say=lines.append
        )
    return lines, artifacts


def after(shards: Stage) -> Stage:
    """A stage that needs the shards of all parts."""
    return Stage(
        name="after",
        kind="after",
        version=1,
        config=shards.config,
        run=lambda job: {},
        inputs={"shards": shards},
    )


def test_any_split_into_parts_and_workers_gives_the_same_shards(
    photographs: Path, tmp_path: Path
) -> None:
    made = {}
    for parts, workers in ((1, 1), (1, 2), (2, 2), (3, 1)):
        folder = tmp_path / f"{parts}-{workers}"
        _, artifacts = run_in_parts(photographs, folder, parts=parts, workers=workers)
        made[parts, workers] = shards_of(artifacts["corrupt-sr3@photos"])

    whole = made[1, 1]
    assert len(whole) == 5
    assert len(set(whole.values())) == 5
    assert all(shards == whole for shards in made.values())


def test_tars_are_not_read_again_to_be_sealed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ImageNet they are terabytes, and a job's time limit would pass meanwhile."""
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.suffix)
        return file_digest(path)

    monkeypatch.setattr(artifacts, "file_digest", digest)
    _, made = run_in_parts(photographs, tmp_path, parts=1)

    assert set(read) >= {".json", ".npy"}
    assert ".tar" not in read
    assert verify(made["corrupt-sr3@photos"]) == []


def test_parts_leave_what_needs_all_of_them_to_a_run_without_parts(
    photographs: Path, tmp_path: Path
) -> None:
    lines, artifacts = run_in_parts(photographs, tmp_path, parts=2)

    assert [line.split()[1] for line in lines if "made in" in line] == [
        "source@photos",
        "corrupt-sr3@photos",
        "corrupt-sr3@photos",
    ]
    assert "part 0 of 2 made in" in lines[3]
    assert set(artifacts) == {"source@photos", "corrupt-sr3@photos"}
    assert "after" in run_in_parts(photographs, tmp_path, parts=1)[1]


def test_two_parts_that_finish_at_once_seal_once(tmp_path: Path) -> None:
    both_done = threading.Barrier(2)

    def run(job: Job) -> dict[str, int]:
        both_done.wait(timeout=20)
        return {"sealed_by": job.part[0]}

    config = Runtime()
    stage = Stage(name="a", kind="a", version=1, config=config, run=run, launch="array")
    resolved = resolve_stage(stage, {}, tmp_path)

    def run_part(number: int) -> Artifact | None:
        return run_stage(resolved, {}, runtime=config, progress=report_nothing, part=(number, 2))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run_part, (0, 1))

    assert first is not None
    assert first == second


def test_a_stage_that_is_no_array_is_made_once_by_parts_that_come_at_once(tmp_path: Path) -> None:
    made = []

    def run(job: Job) -> dict[str, int]:
        made.append(job.part)
        time.sleep(1.5)  # longer than a run without parts would wait for the lock
        return {}

    stage = Stage(name="a", kind="a", version=1, config=Runtime(), run=run)
    resolved = resolve_stage(stage, {}, tmp_path)

    def run_part(number: int) -> Artifact | None:
        return run_stage(resolved, {}, runtime=Runtime(), progress=report_nothing, part=(number, 2))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run_part, (0, 1))

    assert len(made) == 1
    assert first == second


def test_array_jobs_started_at_once_make_everything_between_them(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", 8, height=100, width=100)
    config = tmp_path / "small.yaml"
    config.write_text(
        f"name: small\nsources: {{photos: {{path: {tmp_path / 'in'}, validation_images: 1}}}}\n"
        "corrupt: {crops_per_image: 4, samples_per_shard: 8}\nrain_layers: {layers: 2, size: 64}\n"
        "pretrain: {tasks: [sr2, derain], samples: 256}\n"
        f"runtime: {{runs: {tmp_path}, workers: 1}}\n"
    )
    command = [sys.executable, "-m", "launch", "run", str(config), "--parts", "2", "--part"]

    jobs = [subprocess.Popen([*command, str(part)], cwd=REPOSITORY) for part in (0, 1)]
    codes = [job.wait(timeout=120) for job in jobs]

    assert codes == [0, 0]
    sealed = {path.parts[-3] for path in (tmp_path / "small").glob("*/*/manifest.json")}
    assert sealed == {"source@photos", "rain-layers", "corrupt-sr2@photos", "corrupt-derain@photos"}


@pytest.mark.parametrize(("part", "parts"), [(2, 2), (-1, 2), (0, 0)])
def test_parts_are_numbered_from_zero(part: int, parts: int) -> None:
    with pytest.raises(ConfigError, match=r"parts are numbered from 0 to one less than --parts"):
        checked_part(part, parts)


def test_parts_do_not_list_a_changed_source_anew_all_at_once(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    run_in_parts(photographs, tmp_path / "runs", parts=2)
    (photographs / "class1" / "photograph 1.png").unlink()

    with pytest.raises(StageError, match=r"make it again first: .*--until source"):
        run_in_parts(photographs, tmp_path / "runs", parts=2)


def test_a_shard_that_another_split_has_made_meanwhile_stays_as_it_was_sealed(
    photographs: Path, tmp_path: Path
) -> None:
    """Parts of 2 and parts of 3 at once lock each other out of nothing."""
    source = listed(photographs, tmp_path / "source")
    folder = tmp_path / "shards"
    folder.mkdir()
    settings = sr3_settings(folder, source, photographs, samples_per_shard=8)
    unit = plan_shards(14, 2, settings)[0]
    sealed: dict[Path, tuple[bytes, int]] = {}

    def contents() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_ino) for path in folder.iterdir()}

    def others_make_it_first() -> None:
        if not sealed:
            (mine,) = folder.glob(".*.tmp")
            other = mine.rename(tmp_path / "mine")
            make_shard(settings, unit, after_image=lambda: None)
            sealed.update(contents())
            other.unlink()  # as the last part to finish deletes what it takes for abandoned

    record = make_shard(settings, unit, after_image=others_make_it_first)

    assert contents() == sealed
    assert record == read_record(folder, unit.name)


def test_samples_have_the_same_bytes_whichever_photographs_share_their_shard(
    tmp_path: Path,
) -> None:
    photographs = write_photographs(tmp_path / "in", 30)
    source = listed(photographs, tmp_path / "source")
    contents: list[list[bytes]] = []
    for name, of_a_shard in (("alone", 1), ("together", 1000)):
        folder = tmp_path / name
        folder.mkdir()
        settings = sr3_settings(folder, source, photographs, samples_per_shard=of_a_shard)
        for unit in plan_shards(30, 2, settings):
            make_shard(settings, unit, after_image=lambda: None)
        records = [read_record(folder, path.stem) for path in folder.glob("train-*.tar")]
        stride = records[0].stride
        data = b"".join(
            (folder / each.file).read_bytes()[: each.samples * stride] for each in records
        )
        contents.append(sorted(data[at : at + stride] for at in range(0, len(data), stride)))

    assert len(contents[0]) == 28 * SMALL.crops_per_image
    assert contents[0] == contents[1]
