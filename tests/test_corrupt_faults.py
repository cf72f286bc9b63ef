import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_samples import (
    SMALL,
    children_of,
    corrupted,
    corrupting_stage,
    execute,
    is_running,
    largest_file,
    listed,
    shard_bytes,
    write_photographs,
)

from launch.local import run_graph
from pipeline.artifacts import Artifact
from pipeline.config import CorruptConfig, RunConfig, Runtime, SourceConfig
from pipeline.graph import Graph, StageError
from stages import corrupt

REPOSITORY = Path(__file__).parents[1]
LONGER = SMALL.model_copy(update={"crops_per_image": 100, "samples_per_shard": 200})
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{repository!r}, {tests!r}]
from data_samples import corrupted
from pipeline.config import CorruptConfig
if __name__ == "__main__":
    config = CorruptConfig.model_validate({config!r})
    corrupted("sr3", Path({photographs!r}), Path({folder!r}), config=config, workers=2)
"""


def write_script(path: Path, photographs: Path, folder: Path, config: CorruptConfig) -> Path:
    """A program that makes the shards of sr3 into `folder`."""
    text = SCRIPT.format(
        repository=str(REPOSITORY),
        tests=str(REPOSITORY / "tests"),
        config=config.model_dump(),
        photographs=str(photographs),
        folder=str(folder),
    )
    path.write_text(text)
    return path


def test_a_run_killed_in_mid_shard_goes_on_to_the_same_bytes(
    photographs: Path, tmp_path: Path
) -> None:
    script = write_script(tmp_path / "run.py", photographs, tmp_path / "killed", LONGER)
    killed = subprocess.Popen([sys.executable, script])
    deadline = time.monotonic() + 60
    shards = tmp_path / "killed" / "sr3" / "shards"
    while not (list(shards.glob("*.json")) and list(shards.glob(".*.tmp"))):
        assert killed.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = children_of(killed.pid)
    killed.kill()
    killed.wait()
    assert len(list(shards.glob("*.json"))) < 7
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived the stage that started them"
        time.sleep(0.05)

    resumed = corrupted("sr3", photographs, tmp_path / "killed", config=LONGER)

    untouched = corrupted("sr3", photographs, tmp_path / "untouched", config=LONGER)
    assert shard_bytes(resumed.folder) == shard_bytes(untouched.folder)
    assert not list(shards.glob(".*"))


@pytest.mark.parametrize("change", ["longer", "gone"])
def test_a_source_that_changed_is_an_error_that_names_the_file(tmp_path: Path, change: str) -> None:
    photographs = write_photographs(tmp_path / "in", 4)
    source = listed(photographs, tmp_path / "source")
    changed = photographs / "class1" / "photograph 1.png"
    if change == "gone":
        changed.unlink()
    else:
        changed.write_bytes(changed.read_bytes() + b"more")

    with pytest.raises(
        StageError, match=r"photograph 1.png: .*the source changed. .*--until source@photos --force"
    ):
        execute(corrupting_stage("sr3", photographs), tmp_path / "out", {"source": source})

    assert not list((tmp_path / "out" / "shards").glob(".*"))


def test_what_the_error_of_a_changed_source_says_to_do_helps(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 4)
    stage = corrupting_stage("sr3", photographs)
    graph = Graph(stages=(stage.inputs["source"], stage))
    config = RunConfig(
        name="run",
        sources={"photos": SourceConfig(path=str(photographs))},
        runtime=Runtime(runs=tmp_path, workers=1),
    )
    run_graph(graph, config, config_arguments=[], until="source@photos")
    changed = photographs / "class1" / "photograph 1.png"
    changed.write_bytes(changed.read_bytes() + b"more")  # no folder's time tells

    with pytest.raises(StageError) as raised:
        run_graph(graph, config, config_arguments=[])
    said = re.search(r"--until (\S+) --force", str(raised.value))
    assert said is not None
    run_graph(graph, config, config_arguments=[], until=said[1], force=True)
    artifacts = run_graph(graph, config, config_arguments=[])

    assert artifacts[stage.name].manifest.summary["skipped_images"] == 0


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(
    photographs: Path, source: Artifact, tmp_path: Path
) -> None:
    stage = corrupting_stage("sr3", photographs)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".train-00000.tar.host.1.tmp").write_bytes(b"of a killed run")

    with (
        largest_file(8192),
        pytest.raises(StageError, match=r"File too large\. Finished shards are kept; .* run the"),
    ):
        execute(stage, tmp_path, {"source": source}, workers=2)

    assert list((tmp_path / "shards").iterdir()) == []


def test_only_a_full_disk_is_told_to_free_space(
    photographs: Path, source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedies = {errno.ENOSPC: r"mended \(free some space\), run", errno.EIO: "mended, run"}
    for code, remedy in remedies.items():

        def fail(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(corrupt, "_make", fail)
        with pytest.raises(StageError, match=rf"^{tmp_path}/shards: {os.strerror(code)}.*{remedy}"):
            execute(corrupting_stage("sr3", photographs), tmp_path, {"source": source})


def test_workers_that_cannot_start_are_not_said_to_want_memory(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, source = corrupting_stage("sr3", photographs), listed(photographs, tmp_path / "source")
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "nowhere"))  # new interpreters end at once

    with pytest.raises(StageError, match=r"no worker process could begin; mend what they printed"):
        execute(stage, tmp_path / "out", {"source": source})


def test_workers_import_no_torch(photographs: Path, tmp_path: Path) -> None:
    """A torch that says when it is imported stands before the real one."""
    for name in ("torch", "webdataset"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text(
            f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
            "raise ImportError('the corrupt stage needs none')\n"
        )
    script = write_script(tmp_path / "run.py", photographs, tmp_path / "out", SMALL)

    environment = os.environ | {"PYTHONPATH": str(tmp_path / "path")}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=60)

    assert (tmp_path / "out" / "sr3" / "manifest.json").is_file()
    assert not (tmp_path / "imported").exists()
