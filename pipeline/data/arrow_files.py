"""Finds the photographs in parquet files and Hugging Face datasets: their encoded bytes lie in
Arrow files in the cache of the `datasets` library, which are read like tars from then on."""

import glob
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.containers import container_at, reading
from pipeline.data.listing import Listing
from pipeline.data.patterns import NamedDataset
from pipeline.data.source import SourceError
from pipeline.repeating import repeated

if TYPE_CHECKING:
    import datasets
    import pyarrow

REPORT_SECONDS = 10.0
REPORT_BYTES = 2**20  # more than a line of progress, which is written, too
_GATED = "is a gated dataset"  # all that is left of the Hub's answer in some of the errors


@dataclass(frozen=True, kw_only=True)
class _Cached:
    """What must be known of a table to read its files without it: it maps them into memory."""

    features: "datasets.Features"
    files: list[Path]
    rows: int

    @classmethod
    def of(cls, table: "datasets.Dataset") -> "_Cached":
        files = [Path(each["filename"]) for each in table.cache_files]
        return cls(features=table.features, files=files, rows=len(table))


def list_parquet(listing: Listing, paths: Sequence[Path]) -> None:
    """Add the photographs in parquet files, each named `<file>/<row>/<its own name>`."""
    import datasets
    from pyarrow import parquet

    paths = _without_folders(paths)
    names = [os.fsencode(path.name) for path in paths]
    if len(set(names)) < len(names):
        raise SourceError(
            f"{paths[0].parent}: two parquet files have the same name, which is part of the keys "
            "of the photographs in them; rename one"
        )
    for path in paths:
        if "::" in str(path):
            raise SourceError(f"{path}: `datasets` takes :: for a file in an archive; rename it")
    try:
        rows = {}
        for path in paths:
            with reading(path):
                rows[path] = parquet.ParquetFile(path).metadata.num_rows
        # `datasets` takes names for patterns, and stops at a file without rows.
        files = [glob.escape(str(path)) for path in paths if rows[path]]
        if not files:
            raise SourceError(f"{paths[0]}: no rows; write the dataset again")
        with _telling(listing):
            table = datasets.load_dataset(
                "parquet", data_files=files, split="train", keep_in_memory=False
            )
        cached = _Cached.of(table)
    except SourceError:
        raise
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        where = ", ".join(map(str, paths[:3]))
        raise SourceError(f"{where}: {_one_line(error)}; repair or replace the file") from error
    _list_cached(listing, cached, list(zip(names, rows.values(), strict=True)), str(paths[0]))


def _without_folders(paths: Sequence[Path]) -> list[Path]:
    """Spark and Dask call the folder of a table x.parquet: it stands for none of the files in it,
    which the pattern may name as well."""
    folders = {path for path in paths if path.is_dir()}
    read = {parent for path in paths for parent in path.parents}
    if unread := sorted(folders - read):
        raise SourceError(
            f"{unread[0]}: a folder; set the path of the source to the parquet files in it: "
            f"{unread[0]}/**/*.parquet"
        )
    return [path for path in paths if path not in folders]


def list_dataset(listing: Listing, named: NamedDataset) -> None:
    """Add the photographs of a dataset, each named `<split>/<row>/<its own name>`, and the commit
    that was read, where the dataset is of the Hub."""
    import datasets
    from huggingface_hub.errors import GatedRepoError

    if named.revision and Path(named.name).is_dir():
        raise SourceError(f"{named}: a folder has no revisions; leave #{named.revision} out")
    try:
        builder = datasets.load_dataset_builder(named.name, named.subset, revision=named.revision)
        with _telling(listing):
            builder.download_and_prepare()
        cached = _Cached.of(builder.as_dataset(split=named.split))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if any(isinstance(each, GatedRepoError) for each in _causes(error)) or _GATED in str(error):
            raise SourceError(
                f"hf:{named.name}: a gated dataset. Two steps: accept its terms on "
                f"{datasets.config.HF_ENDPOINT}/datasets/{named.name}, then log in here with "
                "`hf auth login`; and run the same command again"
            ) from error
        raise SourceError(f"{named}: can't be loaded: {_one_line(error)}") from error
    _check_revision(builder, named)
    _list_cached(listing, cached, [(named.split.encode(), cached.rows)], str(named))
    listing.commit = builder.hash if builder.repo_id else None


@contextmanager
def _telling(listing: Listing) -> Iterator[None]:
    """Give signs of life while `datasets` writes, which may take it hours without a word."""
    before = told = _bytes_written()

    def tell() -> None:
        nonlocal told
        written = _bytes_written()
        if written - told >= REPORT_BYTES:
            told = written
            listing.tell(f"{(written - before) / 1e9:.3f} GB prepared")

    with repeated(tell, every=REPORT_SECONDS, name="telling"):
        yield


def _bytes_written() -> int:
    """By this process so far: its caches may hold millions of files, and grow by others' work."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"])


def _check_revision(builder: "datasets.DatasetBuilder", named: NamedDataset) -> None:
    """Raise SourceError where `datasets`, without the Hub, took any revision that it has."""
    from datasets.packaged_modules.cache.cache import Cache

    if named.revision and isinstance(builder, Cache) and builder.hash != named.revision:
        raise SourceError(
            f"{named}: the Hub doesn't answer, and what is in the cache of datasets is the commit "
            f"{builder.hash}; name that one, or run the same command again where the Hub answers"
        )


def _list_cached(
    listing: Listing, cached: _Cached, parts: list[tuple[bytes, int]], where: str
) -> None:
    """`parts`: the name and the rows of each part of the table, one after the other."""
    column = _image_column(cached.features, where)
    numbered = ((name, row) for name, rows in parts for row in range(rows))
    for file in cached.files:
        container = len(listing.containers)
        listing.containers.append(container_at(file))
        for offset, size, path in _images(file, column):
            part, row = next(numbered)
            # The name alone: its folder is of the machine that made the dataset.
            own_name = os.fsencode(re.split(r"[/\\]", path)[-1])
            name = b"/".join([part, b"%d" % row, *([own_name] if own_name else [])])
            if offset is None:
                _add_file(listing, name, path)
            else:
                listing.add(name, size, offset=offset, container=container)
    assert next(numbered, None) is None, f"{where}: rows that no Arrow file has"


def _add_file(listing: Listing, name: bytes, path: str) -> None:
    """What a row names and doesn't hold, as in datasets of image files: a container of its own."""
    file = Path(path)
    try:
        # A relative one doesn't say where it begins.
        if not (file.is_absolute() and file.is_file()):
            listing.refuse(name, f"no bytes in the dataset and no file ({path or 'no name'})")
            return
        found = container_at(file)
        if not found.bytes:
            listing.refuse(name, "empty file")
            return
        listing.containers.append(found)
        listing.add(name, found.bytes, offset=0)
    except PermissionError:
        listing.refuse(name, "permission denied")


def _image_column(features: "datasets.Features", where: str) -> str:
    images = [name for name, feature in features.items() if _is_image(feature)]
    if len(images) != 1:
        found = (
            f"the columns {' and '.join(images)} are images" if images else "no column of images"
        )
        raise SourceError(
            f"{where}: {found}; one is needed. The columns are {', '.join(features)}: make a "
            "dataset with one column of the type datasets.Image"
        )
    return images[0]


def _is_image(feature: object) -> bool:
    import datasets

    if isinstance(feature, dict):  # parquet files that don't say what their columns are
        contents = getattr(feature.get("bytes"), "dtype", None)
        return feature.keys() == {"bytes", "path"} and contents in ("binary", "large_binary")
    return isinstance(feature, datasets.Image)


def _images(file: Path, column: str) -> Iterator[tuple[int | None, int, str]]:
    """(first byte in the file, bytes, path) of every row; the first byte is None without bytes."""
    import pyarrow

    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        whole = pyarrow.py_buffer(mapped)
        with pyarrow.ipc.open_stream(whole) as batches:
            for batch in batches:
                # What was touched so far would count as this process's memory.
                mapped.madvise(mmap.MADV_DONTNEED)
                images = batch.column(batch.schema.get_field_index(column))
                contents, names = images.field("bytes"), images.field("path").to_pylist()
                # The images themselves stay where they are in the file: only offsets are read.
                starts = _starts(contents)
                data = contents.buffers()[2]
                first = data.address - whole.address if data else 0
                assert 0 <= first <= len(mapped) - int(starts[-1]), f"{file}: not as it is mapped"
                missing = contents.is_null().to_numpy(zero_copy_only=False)
                for row, name in enumerate(names):
                    size = int(starts[row + 1] - starts[row])
                    yield (None if missing[row] else first + int(starts[row])), size, name or ""


def _starts(contents: "pyarrow.Array") -> np.ndarray:
    """(rows + 1,): where each row begins in the buffer of all of them."""
    import pyarrow

    kind = np.int64 if pyarrow.types.is_large_binary(contents.type) else np.int32
    offsets = np.frombuffer(contents.buffers()[1], dtype=kind)
    return offsets[contents.offset :][: len(contents) + 1]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    """What it says, and its cause: some of `datasets` say no more than that there was one."""
    texts = (str(each) or type(each).__name__ for each in (error, error.__cause__) if each)
    return " ".join(": ".join(dict.fromkeys(texts)).split())
