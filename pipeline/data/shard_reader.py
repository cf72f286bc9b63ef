"""Finished shards, read at random. Never imports torch nor webdataset.

Samples are read, not mapped into memory: a tar that was cut short while it is in use is an error
then, and not the end of the process.
"""

import hashlib
import json
import math
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from weakref import finalize

import numpy as np
from PIL import Image

from pipeline.artifacts import JSON
from pipeline.data.shard_files import LocalFiles, ShardFiles
from pipeline.data.shards import (
    BLOCK,
    DESCRIPTION_BYTES,
    MAKE_AGAIN,
    NPY_HEADER_BYTES,
    ShardError,
    ShardRecord,
    is_whole,
    npy_member_bytes,
    read_record,
    shard_name,
)

READERS = 16  # of a process at most: one for each task
OTHER_FILES = 256  # that a process may have open beside its shards
MOST_FILES = 65_536  # no more are asked for, however many are allowed
NAME_BYTES = 100  # of a tar header, at its beginning
SIZE_FIELD = slice(124, 135)  # of a tar header, in octal digits


class ShardReader:
    """The finished shards of one split, in the order of their numbers.

    All hold images of the same shapes, so that a sample is a row of bytes in which each image has
    its place, `columns`, whatever the format.
    """

    def __init__(self, folder: Path, records: Sequence[ShardRecord], files: ShardFiles) -> None:
        self.folder = folder
        self.records = tuple(records)
        self.files = files
        self.counts = [record.samples for record in records]
        # Number of each shard's first sample among all of the stream.
        self.first_samples = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self.shapes: Mapping[str, Sequence[int]] = {}
        for record in self.records:
            if record.samples:
                self.shapes = self.shapes or record.images
                if record.images != self.shapes:
                    raise ShardError(
                        f"{folder / record.file}: its images are {record.images}, those of the "
                        f"shards before it {self.shapes}; {MAKE_AGAIN}"
                    )
        self.columns, self.row_bytes = _columns(self.shapes, self.records[0].format)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._most_open = most_open_shards()

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[object, ...]]:
        return (ShardReader, (self.folder, self.records, self.files))  # other processes open anew

    @property
    def stores_corrupted(self) -> bool:
        """Whether the corrupted images are here; where not, noise is drawn on the clean ones."""
        return "corrupted" in self.shapes

    def read_rows(self, rows: np.ndarray, shards: np.ndarray, places: np.ndarray) -> None:
        """Fill rows (N, row_bytes) uint8 with the samples at `places` of `shards`."""
        for row, shard, place in zip(rows, shards.tolist(), places.tolist(), strict=True):
            try:
                self._shard(shard).read_row(row, place)
            except ShardError:
                if shard not in self._open or self.files.is_local(self.records[shard]):
                    raise
                self._open.pop(shard).close()  # the cache finds out what is wrong with its copy
                self._shard(shard).read_row(row, place)

    def images(self, name: str, shards: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(N, height, width, channels) uint8 of the samples at `places` of `shards`."""
        rows = np.empty((len(shards), self.row_bytes), np.uint8)
        self.read_rows(rows, shards, places)
        return rows[:, self.columns[name]].reshape(-1, *self.shapes[name])

    def keys(self, shards: np.ndarray, places: np.ndarray) -> list[str]:
        pairs = zip(shards.tolist(), places.tolist(), strict=True)
        return [self._shard(shard).key(place) for shard, place in pairs]

    def descriptions(self, shards: np.ndarray, places: np.ndarray) -> list[dict[str, JSON]]:
        """The json of each sample."""
        pairs = zip(shards.tolist(), places.tolist(), strict=True)
        return [self._shard(shard).description(place) for shard, place in pairs]

    def check(self, numbers: Iterable[int], *, contents: bool) -> None:
        """ShardError where one of these shards, if it is local, isn't as its record says: its size,
        its first and its last sample, and with `contents` every byte."""
        for number in numbers:
            record = self.records[number]
            if self.files.is_local(record):
                shard = _OpenShard(self, record)
                if contents:
                    shard.check_contents()
                shard.close()

    def _shard(self, number: int) -> "_OpenShard":
        shard = self._open.get(number)
        if shard is None:
            self._close_some()
            shard = self._open[number] = _OpenShard(self, self.records[number])
        self._open.move_to_end(number)
        return shard

    def _close_some(self) -> None:
        """Those that a cache has deleted, whose bytes would stay on the disk, and the least recent
        one where there are as many as may be."""
        if not isinstance(self.files, LocalFiles):
            for number in [number for number, shard in self._open.items() if shard.is_deleted]:
                self._open.pop(number).close()
        if len(self._open) >= self._most_open:
            self._open.popitem(last=False)[1].close()


def most_open_shards() -> int:
    """How many shards a reader may keep open; asks for as many files as the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    return max(2, (files - OTHER_FILES) // READERS)


def open_shards(folder: Path, split: str, files: ShardFiles | None = None) -> ShardReader:
    """The shards of `split` in `folder`, the artifact's `shards` folder.

    `files` has their tars; None: they are there too.
    """
    files = files or LocalFiles(folder=folder)
    found = {path.stem for path in folder.glob(f"{split}-*.json")}
    names = [shard_name(split, number) for number in range(len(found))]
    if not found or found != set(names):
        raise ShardError(
            f"{folder}: the shards of {split} are not complete ({len(found)} records found); "
            f"{MAKE_AGAIN}"
        )
    records = []
    for name in names:
        record = read_record(folder, name)
        if record is None or (files.is_local(record) and not is_whole(folder, record)):
            raise ShardError(
                f"{folder / name}.tar: missing, or not of the size that its record says; "
                f"{MAKE_AGAIN}"
            )
        records.append(record)
    return ShardReader(folder, records, files)


def _columns(
    shapes: Mapping[str, Sequence[int]], image_format: str
) -> tuple[dict[str, slice], int]:
    """Where each image stands in a row, and the bytes of a row.

    A row of npy is what lies in the tar from the first image's pixels to the last one's, so that it
    is read in one piece; between two images it has their padding and headers.
    """
    columns, begin, end = {}, 0, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        end = begin + size
        columns[name] = slice(begin, end)
        begin += npy_member_bytes(shape) if image_format == "npy" else size
    return columns, end


class _OpenShard:
    """One tar, open for reading."""

    def __init__(self, reader: ShardReader, record: ShardRecord) -> None:
        self._path = reader.folder / record.file
        self._record = record
        self._columns = list(reader.columns.values())
        self._shapes = list(reader.shapes.values())
        self._descriptor = reader.files.open(record)
        self.close = finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if size != record.bytes:
            raise self._damaged(f"{size} bytes, its record says {record.bytes}")
        self._offsets = None
        if record.offsets is not None:
            self._offsets = self._read_offsets(reader.folder / record.offsets)
        for place in {0, record.samples - 1} if record.samples else ():
            self._check_header(place)

    def _read_offsets(self, path: Path) -> np.ndarray:
        try:
            offsets: np.ndarray = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise ShardError(f"{path}: can't be read ({error}); {MAKE_AGAIN}") from error
        if offsets.shape != (self._record.samples, len(self._record.images), 2):
            raise ShardError(
                f"{path}: places of {offsets.shape[0]} samples, the record of its tar says "
                f"{self._record.samples}; {MAKE_AGAIN}"
            )
        return offsets

    def _check_header(self, place: int) -> None:
        """Is there, at `place`, a sample's first image, as large as the record says?"""
        record = self._record
        header = self._read(BLOCK, self._begin(place))
        name = header[:NAME_BYTES].rstrip(b"\0")
        first = next(iter(record.images))
        if header[257:262] != b"ustar" or not name.endswith(f".{first}.{record.format}".encode()):
            raise self._damaged(f"sample {place} is not where its record says")
        try:
            size = int(header[SIZE_FIELD], 8)
        except ValueError:
            raise self._damaged(f"the header of sample {place} is damaged") from None
        if self._offsets is None:
            expected = NPY_HEADER_BYTES + math.prod(self._shapes[0])
        else:
            expected = int(self._offsets[place, 0, 1])
        if size != expected:
            raise self._damaged(f"sample {place} has {size} bytes, its record says {expected}")

    @property
    def is_deleted(self) -> bool:
        return os.fstat(self._descriptor).st_nlink == 0

    def check_contents(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self._record.sha256:
                raise self._damaged("altered since it was made (SHA-256 differs)")

    def _damaged(self, what: str) -> ShardError:
        return ShardError(f"{self._path}: {what}; {MAKE_AGAIN}")

    def _begin(self, place: int) -> int:
        if self._offsets is not None:
            return int(self._offsets[place, 0, 0]) - BLOCK
        assert self._record.stride is not None
        return self._record.first + place * self._record.stride

    def _read(self, size: int, offset: int) -> bytes:
        content = bytearray(size)
        self._read_into(memoryview(content), offset)
        return bytes(content)

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        try:
            count = os.preadv(self._descriptor, (buffer,), offset)
        except OSError as error:
            raise self._damaged(f"can't be read at byte {offset} ({error.strerror})") from error
        if count != len(buffer):
            raise self._damaged(f"ends at byte {offset + count}, its record says later")

    def read_row(self, row: np.ndarray, place: int) -> None:
        if self._offsets is None:
            self._read_into(row.data, self._begin(place) + BLOCK + NPY_HEADER_BYTES)
            return
        for (offset, size), column, shape in zip(
            self._offsets[place].tolist(), self._columns, self._shapes, strict=True
        ):
            pixels = self._png(self._read(size, offset), place)
            if pixels.size != math.prod(shape):
                raise self._damaged(f"the png of sample {place} is {pixels.shape}, not {shape}")
            row[column] = pixels.reshape(-1)

    def _png(self, content: bytes, place: int) -> np.ndarray:
        try:
            with Image.open(BytesIO(content), formats=("PNG",)) as image:
                return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise self._damaged(f"the png of sample {place} is damaged ({error})") from error

    def key(self, place: int) -> str:
        name = self._read(NAME_BYTES, self._begin(place)).partition(b".")[0]
        return name.decode("ascii", "backslashreplace")

    def description(self, place: int) -> dict[str, JSON]:
        if self._offsets is None:
            assert self._record.stride is not None
            end = self._begin(place) + self._record.stride
        else:
            offset, size = self._offsets[place, -1].tolist()
            end = offset + size + -size % BLOCK + BLOCK + DESCRIPTION_BYTES
        try:
            return json.loads(self._read(DESCRIPTION_BYTES, end - DESCRIPTION_BYTES))
        except ValueError as error:
            raise self._damaged(f"the json of sample {place} is damaged ({error})") from error
