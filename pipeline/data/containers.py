"""Files that hold many photographs each, tars and Arrow files, read at an offset: no format is
parsed here, so that workers need none of the libraries that do."""

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.data.source import SourceError, readable

CONTAINERS_FILE = "containers.json"
FILES_KEPT = 64  # open, per index
SAMPLE_BYTES = 4096  # what a disk reads at least
_NO_CACHE = (
    "the cache of datasets was emptied, or is not on this machine: HF_HOME must be set to a "
    "folder that all machines share when photographs are listed"
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """One file of many photographs, as it was when they were listed."""

    path: str  # absolute; or relative to the index, for those that were downloaded beside it
    bytes: int
    modified_ns: int | None = None  # of those elsewhere: a copy of a download has another
    content: int | None = None  # of downloads, see `content_digest`


@dataclass(frozen=True, kw_only=True)
class Places:
    """What an index says beside its rows, which refer to the containers."""

    containers: Sequence[Container] = ()
    content: str  # a digest of samples of every photograph, see `content_digest`
    corrupted_root: str | None = None  # of real pairs: the folder of the corrupted versions


@contextmanager
def reading(path: Path | str | bytes, *, below: Path | None = None) -> Iterator[None]:
    """Name the file in errors of reading it: through an open descriptor, the system names none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        place = os.path.join(os.fsencode(below or ""), os.fsencode(path))
        # A new one: what is changed in an error doesn't reach another process.
        reason = f"can't be read ({error.strerror or error})"
        raise OSError(error.errno, reason, readable(place)) from error


def container_at(path: Path, *, stored_as: str | None = None) -> Container:
    """The container as it is now; `stored_as` is its path from the index, if both move together."""
    status = path.stat()
    size = status.st_size
    if stored_as is None:
        return Container(path=str(path), bytes=size, modified_ns=status.st_mtime_ns)
    with reading(path), path.open("rb") as file:
        return Container(path=stored_as, bytes=size, content=file_content(file.fileno(), size))


def content_digest(size: int, read: Callable[[int, int], bytes]) -> int:
    """CRC-32 of samples of a photograph's bytes: the first, the middle and the last; of a small
    one, of all. `read` takes an offset and a number of bytes.

    Enough to tell photographs apart without reading them; in an uncompressed one, what differs
    between the samples alone is not seen.
    """
    if size <= 3 * SAMPLE_BYTES:
        return zlib.crc32(read(0, size))
    digest = 0
    for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
        digest = zlib.crc32(read(start, SAMPLE_BYTES), digest)
    return digest


def file_content(descriptor: int, size: int) -> int:
    return content_digest(size, lambda start, count: os.pread(descriptor, count, start))


def write_places(folder: Path, places: Places) -> None:
    write_json(folder / CONTAINERS_FILE, asdict(places))


def read_places(folder: Path) -> Places:
    record = json.loads((folder / CONTAINERS_FILE).read_text())
    containers = [Container(**each) for each in record["containers"]]
    return Places(
        containers=containers, content=record["content"], corrupted_root=record["corrupted_root"]
    )


class ContainerReader:
    """Reads bytes out of the containers of one index."""

    def __init__(self, folder: Path, containers: Sequence[Container]) -> None:
        self._folder = folder
        self._containers = containers
        self._open: OrderedDict[int, int] = OrderedDict()
        self._compared: dict[int, int] = {}  # when what was compared had been written

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def path(self, container: int) -> Path:
        return self._folder / self._containers[container].path

    def read(self, container: int, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(container)
        parts = []
        while size:
            with reading(self._containers[container].path, below=self._folder):
                part = os.pread(descriptor, size, offset)
            if not part:
                raise SourceError(
                    f"{self.path(container)}: shorter than listed: the source changed"
                )
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _descriptor(self, container: int) -> int:
        if container not in self._open:
            if len(self._open) >= FILES_KEPT:
                os.close(self._open.popitem(last=False)[1])
            self._open[container] = self._checked(container)
        self._open.move_to_end(container)
        return self._open[container]

    def _checked(self, container: int) -> int:
        path, listed = self.path(container), self._containers[container]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            why = _NO_CACHE if path.suffix == ".arrow" else "the source changed"
            raise SourceError(f"{path}: is gone: {why}") from error
        status = os.fstat(descriptor)
        modified_ns = status.st_mtime_ns
        if listed.content is None:
            is_same = listed.modified_ns in (None, modified_ns)
        else:
            with reading(path):
                is_same = self._compared.get(container) == modified_ns or (
                    file_content(descriptor, listed.bytes) == listed.content
                )
        found = None
        if status.st_size != listed.bytes:
            found = f"has {status.st_size} bytes, {listed.bytes} when listed"
        elif not is_same:
            found = "was written to since it was listed"
        if found:
            os.close(descriptor)
            raise SourceError(f"{path}: {found}: the source changed")
        self._compared[container] = modified_ns
        return descriptor
