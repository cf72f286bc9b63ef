"""Artifacts: folders named by a fingerprint and sealed by a manifest that is written last.

A folder without its manifest is unfinished, whatever else it holds; there is no other notion of
"done". One writer at a time holds the folder's lock; `pipeline.locks` has the rules.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.locks import ArtifactError, check_owner, owner

MANIFEST = "manifest.json"
SCHEMA = 1
# Beside the artifact, not part of it: these may change after the seal. Checkpoints seal themselves.
UNSEALED = frozenset({"logs", "checkpoints"})
JSON = Any  # what json.loads returns


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    stage: str
    version: int
    fingerprint: str
    config: dict[str, JSON]
    inputs: dict[str, str]  # role: identity of the input
    files: tuple[SealedFile, ...]
    summary: dict[str, JSON]
    provenance: dict[str, JSON]
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A sealed folder, ready to be read."""

    folder: Path
    manifest: Manifest

    @property
    def identity(self) -> str:
        """What dependents are fingerprinted by: the content, where the stage can say more of it
        than its own fingerprint does (a source, whose photographs are not in its config)."""
        return self.manifest.summary.get("identity", self.manifest.fingerprint)


# Made once: json.dumps would make it each time.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_digest(value: JSON) -> str:
    """SHA-256 of `value` as JSON with sorted keys."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file that is there whole, on disk, or not at all."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a failing write doesn't say where
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: JSON) -> None:
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def look_again(folder: Path) -> None:
    """List a folder and those in it: a network file system then asks its server again, and shows
    what other machines have made."""
    with suppress(OSError):
        for each in os.scandir(folder):
            if each.is_dir():
                os.listdir(each)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a sealed folder; None where there is none yet."""
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError(
            f"{path}: not readable as JSON ({error}); delete this folder and run again"
        ) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise ArtifactError(
            f"{path}: written by another version of ipt-pipeline (schema {found}, "
            f"this one reads {SCHEMA}); use that version, or choose another runtime.runs folder"
        )
    try:
        files = tuple(SealedFile(**file) for file in record.pop("files"))
        return Manifest(files=files, **record)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: not as ipt-pipeline writes it ({error}); delete this folder and run again"
        ) from error


def open_artifact(folder: Path) -> Artifact | None:
    manifest = read_manifest(folder)
    return Artifact(folder=folder, manifest=manifest) if manifest else None


def files_to_seal(folder: Path) -> Iterator[Path]:
    """Every file that belongs to the artifact, in sorted order."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.parts[0] not in UNSEALED | {MANIFEST}:
            yield path


def seal(
    folder: Path,
    *,
    stage: str,
    version: int,
    fingerprint: str,
    config: dict[str, JSON],
    inputs: Mapping[str, str],
    summary: dict[str, JSON],
    seconds: float,
    known: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Artifact:
    """Hash every file of `folder` and write its manifest: from then on the stage is done.

    `known` has the SHA-256 of files, by their paths in `folder`, whose writer has taken it: they
    are not read again. ArtifactError where another run has taken over the right to write there.
    """
    check_owner(folder)
    known = known or {}
    paths = list(files_to_seal(folder))
    files = []
    for number, path in enumerate(paths):
        progress(number, len(paths))
        name = path.relative_to(folder).as_posix()
        digest = known.get(name) or file_digest(path)
        files.append(SealedFile(path=name, bytes=path.stat().st_size, sha256=digest))
    manifest = Manifest(
        stage=stage,
        version=version,
        fingerprint=fingerprint,
        config=config,
        inputs=dict(inputs),
        files=tuple(files),
        summary=summary,
        provenance=_provenance(seconds),
    )
    check_owner(folder)  # hashing takes minutes
    write_json(folder / MANIFEST, asdict(manifest))
    return Artifact(folder=folder, manifest=manifest)


def verify(artifact: Artifact) -> list[str]:
    """One sentence for each file that is not as it was sealed; empty when all are."""
    problems = []
    for file in artifact.manifest.files:
        path = artifact.folder / file.path
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != file.bytes:
            problems.append(f"{path}: {path.stat().st_size} bytes, sealed with {file.bytes}")
        elif file_digest(path) != file.sha256:
            problems.append(f"{path}: altered since it was sealed (SHA-256 differs)")
    return problems


def set_aside(folder: Path) -> Path:
    """Rename a sealed folder that is to be made again; nothing is deleted."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = folder.with_name(f"{folder.name}.replaced-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.replaced-{stamp}-{number}")
    folder.rename(aside)
    return aside


def folder_listing(folder: Path) -> str:
    """A digest of the names, sizes and times of the files below `folder`, hidden ones left out:
    it tells whether a folder of a user's has changed, and opens nothing."""
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            status = path.stat()
            text = os.fsencode(name).decode("utf-8", "backslashreplace")
            files.append([text, status.st_size, status.st_mtime_ns])
    return canonical_digest(files)


def _provenance(seconds: float) -> dict[str, JSON]:
    packages = ("torch", "accelerate", "deepspeed", "numpy", "pillow", "simplejpeg", "webdataset")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        **owner(),
        "seconds": round(seconds, 3),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": versions,
    }
