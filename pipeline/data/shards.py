"""Shards: plain tar webdatasets, the same bytes every time.

A sample is `<key>.clean.<ext>`, `<key>.corrupted.<ext>` where the task stores it, and
`<key>.json`, padded to one size. With npy every sample takes the same number of bytes, so that
its place is arithmetic; with png the record names a file of offsets. Beside each tar lies its
record, `train-00000.json`, written last: without it the shard is unfinished.

Never imports torch nor webdataset, because the workers that write must not.
"""

import hashlib
import json
import math
import os
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from pipeline.artifacts import JSON, sync_folder, write_atomically, write_json
from pipeline.data.png_writer import png_bytes

BLOCK = 512  # bytes; what tar pads headers and members to
DESCRIPTION_BYTES = 512  # of each sample's json
CHECKSUM = 148  # where a ustar header has it
NPY_HEADER_BYTES = 128
Format = Literal["npy", "png"]
# A stage that is done runs again only when forced, and alone only between these two.
MAKE_AGAIN = "make the shards again with --from and --until naming their stage, and --force"


class ShardError(ValueError):
    """Shards that can't be read as they are; the message names the file and says what to do."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What the record beside a tar says of it."""

    file: str
    format: Format
    samples: int
    images: dict[str, list[int]]  # shape (height, width, channels) by name: clean, corrupted
    first: int  # byte at which sample 0 begins
    stride: int | None  # bytes from one sample to the next; None: see offsets
    offsets: str | None  # file of (samples, images, 2) int64: first byte, bytes
    bytes: int
    sha256: str
    seconds: float
    skipped: list[dict[str, str]] = field(default_factory=list)  # photographs: path, kind, reason


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


def read_record(folder: Path, name: str) -> ShardRecord | None:
    """What the record of a shard says; None where the shard was never finished."""
    path = folder / f"{name}.json"
    try:
        return ShardRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ShardError(
            f"{path}: not a shard record ({error}); delete it, then {MAKE_AGAIN}"
        ) from error


def is_whole(folder: Path, record: ShardRecord) -> bool:
    """Whether the files of the shard are there, the tar as large as its record says."""
    try:
        size = (folder / record.file).stat().st_size
        if record.offsets is not None:
            (folder / record.offsets).stat()
    except FileNotFoundError:
        return False
    return size == record.bytes


class ShardWriter:
    """Writes one shard into `file`, which `finish` puts under the shard's name, whole."""

    def __init__(self, file: BinaryIO, folder: Path, name: str, *, image_format: Format) -> None:
        self._file = file
        self._folder = folder
        self._name = name
        self._format = image_format
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._offsets: list[list[tuple[int, int]]] = []
        self._began = time.monotonic()

    def add(
        self, key: str, images: Mapping[str, np.ndarray], description: Mapping[str, JSON]
    ) -> None:
        """Append a sample: uint8 (height, width, channels) images by name, of the same shapes each
        time."""
        shapes = {name: image.shape for name, image in images.items()}
        self._shapes = self._shapes or shapes
        assert shapes == self._shapes, f"{key}: {shapes}, the samples before {self._shapes}"
        places: list[tuple[int, int]] = []
        parts: list[bytes] = []
        end = self._bytes
        for name, image in images.items():
            assert image.dtype == np.uint8, f"{key}.{name}: {image.dtype}"
            encoded = npy_bytes(image) if self._format == "npy" else png_bytes(image)
            places.append((end + BLOCK, len(encoded)))
            parts += member(f"{key}.{name}.{self._format}", encoded)
            end += BLOCK + len(encoded) + len(parts[-1])
        parts += member(f"{key}.json", description_bytes(description))
        self._write(b"".join(parts))
        self._offsets.append(places)

    def finish(self, skipped: Sequence[Mapping[str, str]] = ()) -> ShardRecord:
        """Close the tar, put it on disk under its name, then write its record.

        Where another process has meanwhile made the shard, nothing is written and its record is
        returned: the stage may be sealed by now.
        """
        end = -(self._bytes + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK
        self._write(bytes(end))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        made = read_record(self._folder, self._name)
        if made is not None and is_whole(self._folder, made):
            return made
        offsets = None
        if self._format == "png":
            offsets = f"{self._name}.offsets.npy"
            table = np.array(self._offsets, dtype="<i8")
            content = BytesIO()
            # Reshaped, because a table without samples has no shape of its own.
            np.save(content, table.reshape(len(self._offsets), len(self._shapes), 2))
            write_atomically(self._folder / offsets, content.getvalue())
        Path(self._file.name).rename(self._folder / f"{self._name}.tar")
        sync_folder(self._folder)
        images = {name: list(shape) for name, shape in self._shapes.items()}
        record = ShardRecord(
            file=f"{self._name}.tar",
            format=self._format,
            samples=len(self._offsets),
            images=images,
            first=0,
            stride=sample_bytes(images) if self._format == "npy" else None,
            offsets=offsets,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            seconds=round(time.monotonic() - self._began, 3),
            skipped=[dict(each) for each in skipped],
        )
        write_json(self._folder / f"{self._name}.json", asdict(record))
        return record

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._bytes += len(content)


@contextmanager
def writing_shard(folder: Path, name: str, *, image_format: Format) -> Iterator[ShardWriter]:
    """A writer that leaves nothing behind unless `finish` was reached."""
    temporary = folder / f".{name}.tar.{socket.gethostname()}.{os.getpid()}.tmp"
    file = temporary.open("wb", buffering=2**20)
    try:
        yield ShardWriter(file, folder, name, image_format=image_format)
    finally:
        with suppress(OSError):  # a full disk fails again when what is buffered is flushed
            file.close()
        temporary.unlink(missing_ok=True)


def member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """A file in the tar: its header, its content, its padding."""
    return member_header(name, len(content)), content, bytes(-len(content) % BLOCK)


def member_header(name: str, size: int) -> bytes:
    """A ustar header in which only the name and the size vary: no time, no owner."""
    header, total = _nameless_header(size)
    encoded = name.encode("ascii")
    checksum = b"%06o\0 " % (total + sum(encoded))
    return encoded + header[len(encoded) : CHECKSUM] + checksum + header[CHECKSUM + 8 :]


@lru_cache(maxsize=4096)
def _nameless_header(size: int) -> tuple[bytes, int]:
    """The header of a member without a name, and its sum; the checksum counts as spaces in it."""
    member = tarfile.TarInfo("")
    member.size = size
    header = member.tobuf(tarfile.USTAR_FORMAT)
    return header, sum(header[:CHECKSUM]) + 8 * ord(" ") + sum(header[CHECKSUM + 8 :])


def npy_bytes(image: np.ndarray) -> bytes:
    return _npy_header(image.shape) + image.tobytes()


@lru_cache(maxsize=8)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    content = BytesIO()
    header = np.lib.format.header_data_from_array_1_0(np.empty(shape, np.uint8))
    np.lib.format.write_array_header_1_0(content, header)
    assert len(content.getvalue()) == NPY_HEADER_BYTES
    return content.getvalue()


_DESCRIPTION = json.JSONEncoder(sort_keys=True)  # made once: json.dumps would make it each time


def description_bytes(description: Mapping[str, JSON]) -> bytes:
    """The sample's json in exactly DESCRIPTION_BYTES; a source name too long for it loses its
    beginning, the key identifies it anyway."""
    shortened = dict(description)
    while len(text := _DESCRIPTION.encode(shortened)) > DESCRIPTION_BYTES - 1:
        surplus = len(text) - (DESCRIPTION_BYTES - 1)
        source = str(shortened["source"])
        assert len(source) > 1, f"nothing left to shorten in {text}"
        # An escaped character takes up to 12 bytes of text.
        shortened["source"] = "…" + source[max(2, surplus // 12 + 1) :]
    return text.encode("ascii").ljust(DESCRIPTION_BYTES - 1) + b"\n"


def sample_bytes(images: Mapping[str, Sequence[int]]) -> int:
    """Bytes of one npy sample with its headers and padding."""
    members = sum(npy_member_bytes(shape) for shape in images.values())
    return members + BLOCK + DESCRIPTION_BYTES


def npy_member_bytes(shape: Sequence[int]) -> int:
    content = NPY_HEADER_BYTES + math.prod(shape)
    return BLOCK + content + -content % BLOCK
