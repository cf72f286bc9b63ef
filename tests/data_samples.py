"""Photographs and artifacts for the tests of the data part: small, and made by the real stages."""

import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts import Artifact, seal
from pipeline.config import CorruptConfig, RainLayersConfig, Runtime, SourceConfig
from pipeline.data.shard_making import ShardSettings
from pipeline.data.shards import ShardRecord, writing_shard
from pipeline.data.source_index import SourceIndex
from pipeline.graph import Job, Stage
from pipeline.tasks import TASKS
from stages.corrupt import corrupt_stage
from stages.rain_layers import rain_layers_stage
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


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    content = BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour_type: int = 2) -> bytes:
    """A PNG of kinds that Pillow doesn't write; colour types: 2 RGB, 4 grey + alpha, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims to be of any size, and has the pixels of none."""
    return png(width, height, b"")


def png_of_16_bits(image: np.ndarray, colour_type: int) -> bytes:
    """`image`, (height, width, channels) uint8, with 257 times its values."""
    rows = (image.astype(">u2") * 257).astype(">u2")
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(image.shape[1], image.shape[0], content, depth=16, colour_type=colour_type)


def job_of(
    stage: Stage,
    folder: Path,
    inputs: Mapping[str, Artifact] | None = None,
    *,
    fingerprint: str = "test",
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        config=stage.config,
        fingerprint=fingerprint,
        folder=folder,
        inputs=inputs or {},
        runtime=Runtime(workers=workers),
        part=part,
    )


def execute(
    stage: Stage,
    folder: Path,
    inputs: Mapping[str, Artifact] | None = None,
    *,
    fingerprint: str = "test",
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Artifact | None:
    """Run a stage as the launcher does, and seal it unless other parts are missing."""
    job = job_of(stage, folder, inputs, fingerprint=fingerprint, workers=workers, part=part)
    summary = stage.run(job)
    if summary is None:
        return None
    return seal(
        folder,
        stage=stage.name,
        version=stage.version,
        fingerprint=fingerprint,
        config=stage.config.model_dump(mode="json"),
        inputs={},
        summary=summary,
        seconds=0.0,
        known=job.digests,
    )


def listed(photographs: Path | str, folder: Path, **settings: object) -> Artifact:
    """The sealed source artifact of a folder of photographs."""
    stage = listing_stage(photographs, **settings)
    artifact = execute(stage, folder)
    assert artifact is not None
    return artifact


def index_of(photographs: Path | str, folder: Path, **settings: object) -> SourceIndex:
    artifact = listed(photographs, folder, **settings)
    return SourceIndex(artifact.folder, Path(artifact.manifest.summary["root"]))


def listing_stage(
    photographs: Path | str,
    *,
    largest_crop: int = 32,
    preferred_crop: int = 0,
    **settings: object,
) -> Stage:
    config = SourceConfig(path=str(photographs), **({"validation_images": 2} | settings))
    return source_stage(
        "photos", config, seed=0, largest_crop=largest_crop, preferred_crop=preferred_crop
    )


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


def run_bank(target: Path, *, seed: int = 0, **values: object) -> tuple[dict, np.ndarray]:
    """The summary and the layers that the rain-layers stage makes; `target` is not sealed."""
    stage = rain_layers_stage(RainLayersConfig(**values), seed=seed)
    summary = stage.run(job_of(stage, target))
    return summary, np.load(target / "layers.npy", mmap_mode="r")


def rain_bank(folder: Path, like: Artifact) -> Artifact:
    """A folder such as the rain-layers stage makes, with noise for rain."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = np.random.default_rng(1).integers(0, 90, (3, 64, 64), dtype=np.uint8)
    np.save(folder / "layers.npy", layers)
    return Artifact(folder=folder, manifest=like.manifest)


def shard_bytes(artifact_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (artifact_folder / "shards").glob("*.tar")}


def imported_by(code: str) -> set[str]:
    """The modules that a new interpreter has imported once it ran `code` in the checkout."""
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return set(printed.stdout.split())


def sr3_settings(
    shards: Path, source: Artifact, photographs: Path, *, samples_per_shard: int
) -> ShardSettings:
    """What a worker of the corrupt stage is told, to make SMALL shards of sr3."""
    return ShardSettings(
        folder=shards,
        index_folder=source.folder,
        root=photographs,
        rain_layers=None,
        task=TASKS["sr3"],
        seed=0,
        crops_per_image=SMALL.crops_per_image,
        patch_size=SMALL.patch_size,
        samples_per_shard=samples_per_shard,
        image_format="npy",
    )


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
def largest_file(size: int) -> Iterator[None]:
    """As if the disk were full: writing beyond `size` bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
