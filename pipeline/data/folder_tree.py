"""The folders below a folder, each visited once, and when they were changed. Imports nothing heavy:
every plan asks."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

MOST_NAMED = 10_000  # folders that a manifest names one by one
CLOSED = "may not be listed"


def visit(
    root: Path,
    *,
    entered: Callable[[bytes, int], None],
    found: Callable[[bytes, os.DirEntry[bytes]], None] = lambda name, entry: None,
    closed: Callable[[bytes], None] = lambda name: None,
) -> None:
    """Every folder that isn't hidden, and the files in it; names are relative to `root`.

    `entered` is told of each folder and when it was changed (nanoseconds), as it was before it is
    read, `found` of each entry that is no folder, `closed` of each folder that nobody may read.

    Every folder once: those reached through a link after all others, so that the path by which
    a photograph is known depends on the tree alone and a loop of links comes to an end.
    """
    base = os.fsencode(root)
    visited: set[tuple[int, int]] = set()
    plain, linked = [b""], list[bytes]()
    while plain or linked:
        if not plain:
            linked.sort(reverse=True)
        relative = (plain or linked).pop()
        here = os.path.join(base, relative) if relative else base
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entered(relative, status.st_mtime_ns)
            folders: list[bytes] = []
            with os.scandir(here) as entries:
                for entry in entries:
                    name = os.path.join(relative, entry.name)
                    if _is_folder(entry):
                        (linked if entry.is_symlink() else folders).append(name)
                    elif not entry.name.startswith(b"."):
                        found(name, entry)
        except PermissionError:
            if not relative:
                raise
            closed(relative)
            continue
        plain += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(b".")
    except OSError:  # a link that leads to itself
        return False


def is_empty(folder: Path) -> bool:
    """Whether nothing is in it, hidden files apart."""
    with os.scandir(folder) as entries:
        return all(entry.name.startswith(".") for entry in entries)


class FolderTimes:
    """When the folders below a root were changed: by name, or too many to name, in one digest."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._named: dict[str, int | str] = {}
        self._count = 0
        self._digest = hashlib.sha256()

    def add(self, relative: bytes, modified: int | str) -> None:
        self._count += 1
        self._digest.update(b"%b\0%b\0" % (relative, str(modified).encode()))
        if self._count <= MOST_NAMED:
            path = os.path.join(self._root, relative) if relative else self._root
            self._named[path_text(path)] = modified

    def add_closed(self, relative: bytes) -> None:
        """In the place of its time, which stays when it is opened."""
        self.add(relative, CLOSED)

    def record(self) -> dict[str, int | str]:
        if self._count <= MOST_NAMED:
            return dict(self._named)
        digest = self._digest.hexdigest()
        return {path_text(self._root): f"{self._count:,} folders, {digest}"}


def tree_times(root: Path) -> dict[str, int | str]:
    """A record of FolderTimes that knows the files too, their bytes and times: what is read of them
    lies elsewhere, so that nothing else notices that one was written to."""
    times, files = FolderTimes(root), dict[bytes, str]()

    def add(name: bytes, entry: os.DirEntry[bytes]) -> None:
        with suppress(FileNotFoundError):  # a link that leads nowhere
            status = entry.stat()
            files[name] = f"{status.st_size} bytes, {status.st_mtime_ns}"

    visit(root, entered=times.add, found=add, closed=times.add_closed)
    for name in sorted(files):  # the digest depends on the order
        times.add(name, files[name])
    return times.record()


def changed_folder(recorded: Mapping[str, int | str]) -> str | None:
    """A folder of a record of FolderTimes that was changed since, or is gone; None if none was.

    One `stat` for each folder. Raises OSError where one can't be reached.
    """
    for text, before in recorded.items():
        path = text_path(text)
        try:
            if isinstance(before, int):
                now: int | str | None = os.stat(path).st_mtime_ns
            elif before == CLOSED:
                with suppress(PermissionError), os.scandir(path):
                    return text
                now = CLOSED
            else:
                times = FolderTimes(Path(os.fsdecode(path)))
                visit(Path(os.fsdecode(path)), entered=times.add, closed=times.add_closed)
                now = times.record().get(text)
        except (FileNotFoundError, NotADirectoryError):
            now = None
        if now != before:
            return text
    return None


def path_text(path: bytes) -> str:
    """A path as text that JSON can hold, and that tells every path from every other."""
    return path.replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace")


def text_path(text: str) -> bytes:
    """The path that `path_text` made `text` of."""
    return re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), text.encode())
