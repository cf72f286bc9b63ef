"""Lists a folder of photographs once and decides which of them never enter training."""

import logging
import os
from pathlib import Path

from pydantic import Field

import pipeline
from pipeline.artifacts import JSON, Manifest
from pipeline.config import Section, SourceConfig
from pipeline.graph import Job, Stage, StageError

logger = logging.getLogger(__name__)

UNREADABLE_LISTED = 100  # in the summary; the rest is counted


class SourceStageConfig(Section):
    """What decides which photographs there are and which are kept out of training."""

    # Where they lie is not what they are: left out of the fingerprint, watched by `_stale`.
    path: str = Field(exclude=True)
    validation_images: int
    held_out: tuple[str, ...]
    seed: int
    largest_crop: int


def source_stage(name: str, source: SourceConfig, *, seed: int, largest_crop: int) -> Stage:
    """The stage that lists one source; `largest_crop` is in pixels of the clean image."""
    config = SourceStageConfig(
        path=source.path,
        # Without effect beside patterns, so that changing it changes nothing.
        validation_images=0 if source.held_out else source.validation_images,
        held_out=source.held_out,
        seed=seed,
        largest_crop=largest_crop,
    )
    return Stage(
        name=f"source@{name}", kind="source", version=1, config=config, run=run, stale=_stale
    )


def resolve_location(path: str) -> Path:
    """The absolute folder that a config names: `package:…` lies inside the installed package."""
    if path.startswith("package:"):
        return Path(pipeline.__file__).parent / path.removeprefix("package:")
    return Path(path).expanduser().absolute()


def run(job: Job) -> dict[str, JSON]:
    from pipeline.data.listing import choose_validation, source_identity, write_index
    from pipeline.data.source import SourceError, SourceIndex

    config = job.config
    assert isinstance(config, SourceStageConfig)
    root = resolve_location(config.path)
    try:
        _check_folder(root)
        # Taken first: what changes while the listing runs must look changed afterwards.
        modified = _modification_times(root)
        listing = write_index(
            root, job.folder, progress=lambda done: job.progress(done, done, "photographs listed")
        )
        index = SourceIndex(job.folder, root)
        validation, undecodable = choose_validation(
            index,
            job.folder,
            seed=config.seed,
            validation_images=config.validation_images,
            held_out=config.held_out,
            largest_crop=config.largest_crop,
        )
    except SourceError as error:
        raise StageError(str(error)) from error
    except OSError as error:
        place = os.fsdecode(error.filename or job.folder)  # a full disk names no file
        raise StageError(
            f"{place}: {error.strerror or error}; the listing stopped. "
            "Run the same command again once this is mended"
        ) from error
    unreadable = listing.unreadable + undecodable
    for each in unreadable[:UNREADABLE_LISTED]:
        logger.warning("%s: %s", each["path"], each["reason"])
    logger.info("%s: %d photographs, %d for validation", root, len(index), validation.sum())
    return {
        "root": str(root),
        "modified": modified,
        "identity": source_identity(index, validation),
        "images": len(index),
        "validation": int(validation.sum()),
        "bytes": int(index.sizes.sum()),
        "other_files": listing.other_files,
        "unreadable_found": len(unreadable),
        "unreadable": unreadable[:UNREADABLE_LISTED],
    }


def _check_folder(root: Path) -> None:
    if not root.exists():
        raise StageError(f"{root}: no such folder; set the path of the source to your photographs")
    if not root.is_dir():
        raise StageError(f"{root}: not a folder; the path of a source names a folder")


def _modification_times(root: Path) -> dict[str, int]:
    """Nanoseconds of `root` and of the folders directly in it, which change with their files."""
    times = {".": root.stat().st_mtime_ns}
    with os.scandir(os.fsencode(root)) as entries:
        for entry in entries:
            if os.path.isdir(entry.path):  # False for a link that leads to itself
                name = entry.name.decode("utf-8", "backslashreplace")
                times[name] = entry.stat().st_mtime_ns
    return times


def _stale(config: Section, manifest: Manifest) -> str | None:
    assert isinstance(config, SourceStageConfig)
    root = resolve_location(config.path)
    listed = manifest.summary["root"]
    if str(root) != listed:
        return f"listed from {listed}, now in {root}"
    try:
        times = _modification_times(root)
    except OSError:
        return None  # gone or out of reach: nobody needs them once the shards are made
    if times != manifest.summary["modified"]:
        changed = sorted(
            set(times.items()).symmetric_difference(manifest.summary["modified"].items())
        )
        return f"{root / changed[0][0]} changed since it was listed"
    return None
