"""Photographs and artifacts for the tests of the data part: small, and made by the real stages."""

import os
import resource
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts import Artifact, seal
from pipeline.config import CorruptConfig, Runtime, SourceConfig
from pipeline.data.shards import ShardRecord, writing_shard
from pipeline.graph import Job, Stage
from pipeline.tasks import TASKS
from stages.corrupt import corrupt_stage
from stages.source import source_stage

SMALL = CorruptConfig(crops_per_image=3, patch_size=8, samples_per_shard=9)


def photograph(seed: int, *, height: int = 40, width: int = 44) -> np.ndarray:
    """Smooth waves and an edge, so that neither png nor jpeg has a special case of it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / a + columns / b) for a, b in rng.uniform(2, 15, (3, 2))]
    image = 128 + 90 * np.stack(waves, axis=2) + 30 * (columns > width // 2)[:, :, None]
    return np.clip(image, 0, 255).astype(np.uint8)


def write_photographs(folder: Path, count: int, *, height: int = 40, width: int = 44) -> Path:
    for number in range(count):
        path = folder / f"class{number % 3}" / f"photograph {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(number, height=height, width=width)).save(path)
    return folder


def execute(
    stage: Stage,
    folder: Path,
    inputs: Mapping[str, Artifact] | None = None,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Artifact | None:
    """Run a stage as the launcher does, and seal it unless other parts are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        config=stage.config,
        fingerprint="test",
        folder=folder,
        inputs=inputs or {},
        runtime=Runtime(workers=workers),
        part=part,
    )
    summary = stage.run(job)
    if summary is None:
        return None
    return seal(
        folder,
        stage=stage.name,
        version=stage.version,
        fingerprint="test",
        config=stage.config.model_dump(mode="json"),
        inputs={},
        summary=summary,
        seconds=0.0,
    )


def listed(photographs: Path, folder: Path, **settings: object) -> Artifact:
    """The sealed source artifact of a folder of photographs."""
    stage = listing_stage(photographs, **settings)
    artifact = execute(stage, folder)
    assert artifact is not None
    return artifact


def listing_stage(photographs: Path, *, largest_crop: int = 32, **settings: object) -> Stage:
    config = SourceConfig(path=str(photographs), **({"validation_images": 2} | settings))
    return source_stage("photos", config, seed=0, largest_crop=largest_crop)


def corrupting_stage(
    task_name: str, photographs: Path, config: CorruptConfig = SMALL, *, seed: int = 0
) -> Stage:
    source = listing_stage(photographs)
    task = TASKS[task_name]
    return corrupt_stage(
        task,
        config,
        seed=seed,
        source_name="photos",
        source=source,
        rain_layers=source if task.needs_rain_layers else None,
    )


def corrupted(
    task_name: str,
    photographs: Path,
    folder: Path,
    *,
    config: CorruptConfig = SMALL,
    workers: int = 1,
) -> Artifact:
    """The sealed shards of one task, made from a folder of photographs; `folder` gets both."""
    inputs = {"source": listed(photographs, folder / "source")}
    if TASKS[task_name].needs_rain_layers:
        inputs["rain_layers"] = rain_bank(folder / "rain", inputs["source"])
    stage = corrupting_stage(task_name, photographs, config)
    artifact = execute(stage, folder / task_name, inputs, workers=workers)
    assert artifact is not None
    return artifact


def rain_bank(folder: Path, like: Artifact) -> Artifact:
    """A folder such as the rain-layers stage makes, with noise for rain."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = np.random.default_rng(1).integers(0, 90, (3, 64, 64), dtype=np.uint8)
    np.save(folder / "layers.npy", layers)
    return Artifact(folder=folder, manifest=like.manifest)


def shard_bytes(artifact_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (artifact_folder / "shards").glob("*.tar")}


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended, reaped or not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


CLEAN = [photograph(number, height=24, width=24) for number in range(5)]
CORRUPTED = [image[::2, ::2] for image in CLEAN]
KEYS = [f"{number:016x}-{number}" for number in range(5)]


def write_shard(
    folder: Path, *, image_format: str = "npy", name: str = "train-00000"
) -> ShardRecord:
    folder.mkdir(exist_ok=True)
    with writing_shard(folder, name, image_format=image_format) as writer:
        for key, clean, corrupted in zip(KEYS, CLEAN, CORRUPTED, strict=True):
            description = {"source": f"n01/{key} grüße.JPEG", "box": [0, 0, 24, 24], "seed": 0}
            writer.add(key, {"clean": clean, "corrupted": corrupted}, description)
        return writer.finish([{"path": "a.jpg", "kind": "empty file", "reason": "empty file"}])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read and write everything; other users stay who they are."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As if the disk were full: writing beyond `size` bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
