"""The index of a source: every photograph listed once, read by its number wherever it lies.

`index.npy` is one structured row per photograph, sorted by key, memory-mapped by every worker;
`paths.bin` holds the relative paths, each ended by a zero byte (`tr '\\0' '\\n' < paths.bin`).
A photograph is a file of its own, or a part of a container (a tar, an Arrow file) that
`containers.json` names.
"""

import hashlib
import mmap
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.data.containers import ContainerReader, read_places, reading
from pipeline.data.decoding_memory import MOST_MEMORY
from pipeline.data.source import (
    NO_MEMORY,
    SourceError,
    UnreadablePhotograph,
    check_bytes,
    decode_photograph,
    readable,
)

INDEX_FILE = "index.npy"
PATHS_FILE = "paths.bin"
INDEX_ROW = np.dtype(
    [
        ("key", "<u8"),
        ("size", "<i8"),  # bytes
        ("path_offset", "<i8"),
        ("offset", "<i8"),  # of the first byte in the container
        ("modified_ns", "<i8"),  # of a file of its own; containers have theirs
        ("path_bytes", "<i4"),
        ("container", "<i4"),  # its number; OWN_FILE: none
        ("validation", "?"),
    ],
    align=True,
)
OWN_FILE = -1
PARTNERS_FILE = "partners.npy"
CORRUPTED_FOLDER = "corrupted"  # the index of the corrupted versions, of a source of real pairs


def photograph_key(relative_path: bytes) -> int:
    """The first 64 bits of the path's SHA-256: the same wherever and whenever it is listed."""
    return int.from_bytes(hashlib.sha256(relative_path).digest()[:8])


class SourceIndex:
    """The photographs of a sealed source artifact, sorted by key, memory-mapped."""

    def __init__(self, folder: Path, root: Path | str) -> None:
        self.folder = folder
        self.root = root
        # The map without NumPy's class for it, whose every slice costs microseconds.
        self._rows = np.asarray(np.load(folder / INDEX_FILE, mmap_mode="r"))
        if self._rows.dtype != INDEX_ROW:
            raise SourceError(f"{folder / INDEX_FILE}: not an index of this version; list it again")
        with (folder / PATHS_FILE).open("rb") as file:
            self._paths = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._places = read_places(folder)
        self._containers = ContainerReader(folder, self._places.containers)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def keys(self) -> np.ndarray:
        """(n,) uint64, ascending."""
        return self._rows["key"]

    @property
    def sizes(self) -> np.ndarray:
        """(n,) int64, in bytes, when they were listed."""
        return self._rows["size"]

    @property
    def validation(self) -> np.ndarray:
        """(n,) bool: which photographs never enter training."""
        return self._rows["validation"]

    @property
    def content(self) -> str:
        """A digest of what the photographs hold, the same wherever they lie."""
        return self._places.content

    @cached_property
    def corrupted(self) -> "SourceIndex | None":
        """Of a source of real pairs: the photographs' corrupted versions."""
        if self._places.corrupted_root is None:
            return None
        return SourceIndex(self.folder / CORRUPTED_FOLDER, self._places.corrupted_root)

    @cached_property
    def partners(self) -> np.ndarray:
        """(n,) int64, of a source of real pairs: the number in `corrupted` of each photograph."""
        return np.load(self.folder / PARTNERS_FILE, mmap_mode="r")

    def key(self, number: int) -> str:
        return f"{int(self._rows['key'][number]):016x}"

    def relative_path(self, number: int) -> bytes:
        """Below the root; in a container, `<its name>/<the photograph's>`."""
        row = self._rows[number]
        return self._paths[row["path_offset"] : row["path_offset"] + row["path_bytes"]]

    def path(self, number: int) -> Path:
        """The file that holds the photograph: its own, or a container of many."""
        container = int(self._rows["container"][number])
        if container != OWN_FILE:
            return self._containers.path(container)
        return Path(self.root) / os.fsdecode(self.relative_path(number))

    def name(self, number: int) -> str:
        """The relative path as text that any program can print and encode."""
        return readable(self.relative_path(number))

    def place(self, number: int) -> str:
        """Where the photograph lies, for messages."""
        if self._rows["container"][number] == OWN_FILE:
            return str(self.path(number))
        return f"{self.name(number)} in {self.path(number)}"

    def read(self, number: int) -> bytes:
        """The bytes of the photograph's file, if it is still the one that was listed.

        What nobody may read is UnreadablePhotograph, as a damaged file is; any other failure of
        the disk passes and must not decide what is made of the photographs.
        """
        row = self._rows[number]
        size = int(row["size"])
        try:
            if row["container"] != OWN_FILE:
                return self._containers.read(int(row["container"]), int(row["offset"]), size)
            path = self.path(number)
            # Unbuffered, it is read at once into one block of its size.
            with reading(path), path.open("rb", buffering=0) as file:
                data = file.read()
                # Looked at last, so that what is written meanwhile is noticed too.
                modified_ns = os.fstat(file.fileno()).st_mtime_ns
        except PermissionError as error:
            raise UnreadablePhotograph("permission denied") from error
        except FileNotFoundError:
            raise SourceError(f"{self.path(number)}: is gone: the source changed") from None
        found = None
        if len(data) != size:
            found = f"has {len(data)} bytes, {size} when listed"
        elif modified_ns != row["modified_ns"]:
            found = "was written to since it was listed"
        if found:
            raise SourceError(f"{self.path(number)}: {found}: the source changed")
        return data

    def photograph(self, number: int, *, held: int = 0) -> np.ndarray:
        """As `read_photograph` describes it, beside `held` bytes of other photographs."""
        most = MOST_MEMORY - held
        check_bytes(int(self._rows["size"][number]), most)
        try:
            return decode_photograph(self.read(number), most_memory=most)
        except MemoryError as error:
            raise MemoryError(f"{self.place(number)}: {NO_MEMORY}") from error
