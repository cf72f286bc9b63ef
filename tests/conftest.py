"""What several files of tests share because making it takes time, or rights."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from data_samples import listed, write_photographs
from demo_run import Run
from fake_slurm import on_the_path
from launching import Launched, launcher, run, trainings_of
from slurm_cluster import SlurmCluster, why_impossible

from pipeline.artifacts import Artifact


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of fourteen photographs, to be read only."""
    return write_photographs(tmp_path_factory.mktemp("photographs") / "in", 14)


@pytest.fixture(scope="session")
def source(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The sealed listing of `photographs`."""
    return listed(photographs, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the small demo; `output` is what it printed."""
    run = Run(tmp_path_factory.mktemp("finished"))
    run.output = run("run")
    return run


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Launched]:
    """The toys' trainings under an engine in so many processes, whoever asks first."""

    @cache
    def trained(engine: str, processes: int) -> Launched:
        folder = tmp_path_factory.mktemp(f"{engine}-{processes}")
        output = run(launcher(engine, processes), folder, trainings_of(engine))
        return Launched(folder=folder, output=output, compiled=folder / "extensions")

    return trained


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tools of SLURM that only keep account; they are found before any others."""
    return on_the_path(tmp_path / "bin", monkeypatch)


@pytest.fixture
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the Hub's, and nothing left over."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(name="run")
def unbegun_run(tmp_path: Path) -> Run:
    """The small demo, not begun."""
    return Run(tmp_path)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A SLURM with three compute nodes; arrays of three tasks at most, so that some need two."""
    reason = why_impossible()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: its sockets have addresses
    try:
        with SlurmCluster(folder, nodes=3, max_array_size=3) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster with nothing in its queue, before and after a test."""
    yield slurm_cluster
    slurm_cluster.mend()
