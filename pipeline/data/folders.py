"""Finds the photographs in a folder, at any depth."""

import os
import stat
from pathlib import Path

from pipeline.data.listing import Listing, content_digest, is_photograph


def list_folder(listing: Listing, root: Path) -> None:
    """Add every photograph below `root`.

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
            folders: list[bytes] = []
            with os.scandir(here) as entries:
                for entry in entries:
                    name = os.path.join(relative, entry.name)
                    if _is_folder(entry):
                        (linked if entry.is_symlink() else folders).append(name)
                    elif not entry.name.startswith(b"."):
                        _add(listing, entry, name)
        except PermissionError:
            if not relative:
                raise
            listing.refuse(relative, "permission denied")
            continue
        plain += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(b".")
    except OSError:  # a link that leads to itself
        return False


def _add(listing: Listing, entry: os.DirEntry[bytes], name: bytes) -> None:
    if not is_photograph(entry.name):
        listing.other_files += 1
        return
    try:
        status = entry.stat()
    except OSError as error:
        listing.refuse(name, (error.strerror or "can't be listed").lower())
        return
    if not stat.S_ISREG(status.st_mode):
        listing.refuse(name, "not a file")
        return
    listing.add_file(
        name,
        status.st_size,
        modified_ns=status.st_mtime_ns,
        content=_content(entry.path, status.st_size),
    )


def _content(path: bytes, size: int) -> int:
    """Its digest; 0 for what nobody may read, which is left out when it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return 0
    try:
        return content_digest(size, lambda start, count: os.pread(descriptor, count, start))
    finally:
        os.close(descriptor)
