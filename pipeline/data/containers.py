"""Files that hold many photographs each, tars and Arrow files, read at an offset: no format is
parsed here, so that workers need none of the libraries that do."""

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.data.source import SourceError

CONTAINERS_FILE = "containers.json"
FILES_KEPT = 64  # open, per index
_NO_CACHE = (
    "the cache of datasets was emptied, or is not on this machine: HF_HOME must be set to a "
    "folder that all machines share when photographs are listed"
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """One file of many photographs, as it was when they were listed."""

    path: str  # absolute; or relative to the index, for those that were downloaded beside it
    bytes: int
    modified_ns: int | None  # None: in an older index, whose manifest watches its downloads


@dataclass(frozen=True, kw_only=True)
class Places:
    """What an index says beside its rows, which refer to the containers."""

    containers: Sequence[Container] = ()
    content: str  # a digest of samples of every photograph, see `listing.content_digest`
    corrupted_root: str | None = None  # of real pairs: the folder of the corrupted versions


def container_at(path: Path, *, stored_as: str | None = None) -> Container:
    """The container as it is now; `stored_as` is its path from the index, if both move together."""
    status = path.stat()
    return Container(
        path=stored_as or str(path),
        bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


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

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def path(self, container: int) -> Path:
        return self._folder / self._containers[container].path

    def read(self, container: int, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(container)
        parts = []
        while size:
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
        found = None
        if status.st_size != listed.bytes:
            found = f"has {status.st_size} bytes, {listed.bytes} when listed"
        elif listed.modified_ns not in (None, status.st_mtime_ns):
            found = "was written to since it was listed"
        if found:
            os.close(descriptor)
            raise SourceError(f"{path}: {found}: the source changed")
        return descriptor
