"""Lists the photographs of a source once and decides which of them never enter training."""

import logging
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

import pipeline
from pipeline.artifacts import JSON, Manifest
from pipeline.config import SourceConfig
from pipeline.config_file import ConfigError
from pipeline.config_section import Section
from pipeline.data.folder_tree import changed_folder, is_empty, path_text, tree_times
from pipeline.data.patterns import PatternError, expand_braces, matching_files, parse_dataset
from pipeline.data.source_paths import check_form, source_kind
from pipeline.graph import Job, Stage, StageError

if TYPE_CHECKING:
    from pipeline.data.listing import Listing

logger = logging.getLogger(__name__)

UNREADABLE_LISTED = 100  # in the summary; the rest is counted


class SourceStageConfig(Section):
    """What decides which photographs there are and which are kept out of training."""

    # Where they lie is not what they are: left out of the fingerprint, watched by `_stale`.
    path: str = Field(exclude=True)  # of real pairs: the clean ones
    corrupted: str | None = Field(exclude=True)
    validation_images: int
    held_out: tuple[str, ...]
    seed: int
    largest_crop: int
    preferred_crop: int


def source_stage(
    name: str, source: SourceConfig, *, seed: int, largest_crop: int, preferred_crop: int = 0
) -> Stage:
    """The stage that lists one source. In pixels of the clean image: `largest_crop`, which
    photographs for validation must have, and `preferred_crop`, which they have where most do."""
    path = source.path or source.clean
    assert path is not None  # SourceConfig has one of the two
    try:
        check_form(path)
    except PatternError as error:
        raise ConfigError(f"sources.{name}.{'path' if source.path else 'clean'}: {error}") from None
    config = SourceStageConfig(
        path=path,
        corrupted=source.corrupted,
        # Without effect beside patterns, so that changing it changes nothing.
        validation_images=0 if source.held_out else source.validation_images,
        held_out=source.held_out,
        seed=seed,
        largest_crop=largest_crop,
        preferred_crop=preferred_crop,
    )
    return Stage(
        name=f"source@{name}",
        kind="source",
        version=4,
        config=config,
        run=partial(run, skip_damaged=source.skip_damaged),
        stale=_stale,
    )


def source_folders(source: SourceConfig) -> dict[str, Path]:
    """The folders that a source reads, by the key that names them."""
    named = {"path": source.path, "clean": source.clean, "corrupted": source.corrupted}
    return {
        key: resolve_location(path)
        for key, path in named.items()
        if path is not None and (key != "path" or source_kind(path) == "folder")
    }


def resolve_location(path: str) -> Path:
    """The absolute place that a config names: `package:…` lies inside the installed package."""
    if path.startswith("package:"):
        return Path(pipeline.__file__).parent / path.removeprefix("package:")
    return Path(path).expanduser().absolute()


def run(job: Job, *, skip_damaged: bool) -> dict[str, JSON]:
    from pipeline.data.source import SourceError
    from pipeline.data.source_index import SourceIndex
    from pipeline.data.validation import choose_validation, source_identity

    config = job.config
    assert isinstance(config, SourceStageConfig)
    root = _root(config.path)
    try:
        # Taken first: what changes while the listing runs must look changed afterwards.
        modified = _container_times(config)
        listing = _list(job, config, root, skip_damaged=skip_damaged)
        index = SourceIndex(job.folder, root)
        validation, undecodable = choose_validation(
            index,
            job.folder,
            seed=config.seed,
            validation_images=config.validation_images,
            held_out=config.held_out,
            largest_crop=config.largest_crop,
            preferred_crop=config.preferred_crop,
        )
    except (SourceError, PatternError) as error:
        raise StageError(str(error)) from error
    except MemoryError as error:
        raise StageError(
            f"{error or f'{root}: not enough memory'}; give the job more memory, and run the same "
            "command again"
        ) from error
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
    if listing.repeated_links:
        logger.info("%d links lead to files that are listed, left out", listing.repeated_links)
    return {
        "root": root,
        "corrupted_root": _root(config.corrupted) if config.corrupted else None,
        "modified": modified | listing.folder_times,
        "identity": source_identity(index, validation),
        "images": len(index),
        "validation": int(validation.sum()),
        "bytes": int(index.sizes.sum()),
        "other_files": listing.other_files,
        "repeated_links": listing.repeated_links,
        "not_listed": len(listing.unreadable) - len(listing.lost),
        "unreadable_found": len(unreadable),
        "unreadable": unreadable[:UNREADABLE_LISTED],
        **({"commit": listing.commit} if listing.commit else {}),
    }


def _root(path: str) -> str:
    """The same for the same photographs, from whatever folder the command is given, and however
    the addresses are signed: what is secret in them is in their queries."""
    kind = source_kind(path)
    if kind == "urls":
        before = path.partition("?")[0]
        is_whole = before.count("{") == before.count("}")
        return before if is_whole else re.sub(r"\?[^,{}]*", "", path)
    return path if kind == "dataset" else str(resolve_location(path))


def _list(job: Job, config: SourceStageConfig, root: str, *, skip_damaged: bool) -> "Listing":
    """Write the index into the job's folder; of real pairs, both indices and who is whose."""
    from pipeline.data.downloads import DOWNLOADS_FOLDER
    from pipeline.data.listing import write_index
    from pipeline.data.pairs import write_pairs
    from pipeline.data.source_index import CORRUPTED_FOLDER, PARTNERS_FILE

    # What an interrupted listing of another place may have left.
    shutil.rmtree(job.folder / CORRUPTED_FOLDER, ignore_errors=True)
    (job.folder / PARTNERS_FILE).unlink(missing_ok=True)
    _move_downloads(job.folder / DOWNLOADS_FOLDER, job.folder.parent / DOWNLOADS_FOLDER)

    def progress(done: int, note: str) -> None:
        job.progress(done, done, note)

    if config.corrupted is not None:
        clean, corrupted = _checked_folder(config.path), _checked_folder(config.corrupted)
        return write_pairs(
            clean, corrupted, job.folder, progress=progress, skip_damaged=skip_damaged
        )
    return write_index(
        root,
        job.folder,
        lambda listing: _find(listing, job, config.path),
        progress=progress,
        skip_damaged=skip_damaged,
    )


def _move_downloads(old: Path, new: Path) -> None:
    """Older versions had them in the folder of the listing, where they would be sealed."""
    for path in old.glob("*/[!.]*.tar"):
        target = new / path.relative_to(old)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _find(listing: "Listing", job: Job, path: str) -> None:
    from pipeline.data.arrow_files import list_dataset, list_parquet
    from pipeline.data.downloads import DOWNLOADS_FOLDER, download
    from pipeline.data.folders import list_folder
    from pipeline.data.tars import list_tars

    match source_kind(path):
        case "folder":
            list_folder(listing, _checked_folder(path))
        case "tars":
            list_tars(listing, matching_files(str(resolve_location(path))))
        case "parquet":
            list_parquet(listing, matching_files(str(resolve_location(path))))
        case "dataset":
            list_dataset(listing, parse_dataset(path))
        case "urls":
            urls = expand_braces(path)
            tars = download(
                urls,
                job.folder.parent / DOWNLOADS_FOLDER,  # of every seed and crop alike
                progress=lambda done, much: job.progress(done, len(urls), f"tars, {much} came"),
            )
            list_tars(listing, tars, beside=job.folder)


def _checked_folder(path: str) -> Path:
    folder = resolve_location(path)
    if not folder.exists():
        raise StageError(
            f"{folder}: no such folder; set the path of the source to your photographs"
        )
    if not folder.is_dir():
        raise StageError(
            f"{folder}: not a folder; the path of a source names a folder, uncompressed tars "
            "(*.tar), parquet files (*.parquet) or a dataset (hf:owner/name)"
        )
    return folder


def _container_times(config: SourceStageConfig) -> dict[str, JSON]:
    """Bytes and nanoseconds of tars, parquet files and what is in a folder that is a dataset; none
    of one that is gone or empty. What isn't local is not watched."""
    kind = "folder" if config.corrupted is not None else source_kind(config.path)
    if kind == "dataset":
        folder = Path(parse_dataset(config.path).name).absolute()
        return dict(tree_times(folder)) if folder.is_dir() and not is_empty(folder) else {}
    if kind not in ("tars", "parquet"):
        return {}
    files = matching_files(str(resolve_location(config.path)))
    statuses = {path_text(os.fsencode(file)): file.stat() for file in files}
    return {file: [status.st_size, status.st_mtime_ns] for file, status in statuses.items()}


def _stale(config: Section, manifest: Manifest) -> str | None:
    assert isinstance(config, SourceStageConfig)
    listed = manifest.summary
    for path, before in ((config.path, "root"), (config.corrupted, "corrupted_root")):
        now = _root(path) if path else None
        if now != listed[before]:
            return f"listed from {listed[before]}, now in {now}"
    modified = listed["modified"]
    try:
        if source_kind(config.path) == "folder" or config.corrupted is not None:
            for path in filter(None, (config.path, config.corrupted)):
                if is_empty(_checked_folder(path)):  # what should be mounted there is not
                    return None
            changed = changed_folder(modified)
        else:
            found = _container_times(config)
            names = found.keys() | modified.keys() if found else set()
            changed = min(
                (name for name in names if found.get(name) != modified.get(name)), default=None
            )
    except (OSError, PatternError, StageError):
        return None  # gone or out of reach: nobody needs them once the shards are made
    return f"{changed} changed since it was listed" if changed else None
