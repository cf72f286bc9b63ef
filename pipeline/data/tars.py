"""Finds the photographs in tars, which stay as they are: each is read where it lies."""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.containers import container_at, reading
from pipeline.data.listing import Listing, is_photograph
from pipeline.data.source import SourceError

BLOCK = tarfile.BLOCKSIZE
PADDING = 2**24  # at most, after the end mark; tar itself pads to 10,240 bytes
# What tarfile raises on damaged headers, beside the TarError that it documents.
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def list_tars(listing: Listing, paths: Sequence[Path], *, beside: Path | None = None) -> None:
    """Add the photographs in every tar, each named `<tar>/<member>`.

    `beside` is the folder of the index, where both move together. What a damaged tar still holds is
    listed, and that it lost something is in `listing.lost`.
    """
    names: dict[str, Path] = {}
    for path in paths:
        if path.name in names:
            raise SourceError(
                f"{names[path.name]} and {path} have the same name, which is part of the keys of "
                "the photographs in them; rename one"
            )
        names[path.name] = path
    for path in paths:
        stored_as = os.path.relpath(path.resolve(), beside.resolve()) if beside else None
        listing.containers.append(container_at(path, stored_as=stored_as))
        with reading(path), path.open("rb") as file:
            _list_tar(listing, path, file.fileno())


def _list_tar(listing: Listing, path: Path, descriptor: int) -> None:
    name = os.fsencode(path.name)
    size = listing.containers[-1].bytes
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0:  # the next header would be looked for before this one
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                # It would grow with the tar.
                tar.members.clear()  # type: ignore[attr-defined]
                _add(listing, name, member, size)
            end = tar.offset
    except _DAMAGED as error:
        listing.lose(name, f"damaged tar ({_reason(error, path)})", place=path)
        return
    # tarfile takes a damaged header, and the first empty block, for the end of the tar.
    tail = os.pread(descriptor, PADDING, end)
    reason = None
    if len(tail) < BLOCK:
        reason = f"truncated tar (no end mark at byte {end:,})"
    elif any(tail[:BLOCK]):
        reason = f"damaged tar (header at byte {end:,}; what follows it is lost)"
    elif size - end > PADDING or any(tail):
        reason = f"damaged tar (what follows its end mark at byte {end:,} is lost)"
    if reason:
        listing.lose(name, reason, place=path)


def _reason(error: Exception, path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(BLOCK)
    return why_no_tar(start) or str(error) or type(error).__name__


def why_no_tar(start: bytes) -> str | None:
    """What tells that a file whose first block is `start` is no tar; None if nothing does."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except _DAMAGED:
        if start == bytes(BLOCK):  # the end mark of an empty one
            return None
        if start.startswith(_COMPRESSED):
            return "it is compressed, unpack it first"
        return f"it begins with {start[:20]!r}" if start else "it is empty"
    return None


def _add(listing: Listing, tar: bytes, member: tarfile.TarInfo, tar_bytes: int) -> None:
    if member.isdir():
        return
    # As if it were unpacked, by a program that lets nothing out of the folder.
    path = os.path.normpath(b"/" + member.name.encode("utf-8", "surrogateescape")).lstrip(b"/")
    name = tar + b"/" + path
    if any(part.startswith(b".") for part in path.split(b"/")):
        listing.other_files += 1  # hidden, as in a folder
    elif not is_photograph(path):
        listing.leave_out(path)
    elif not member.isfile() or member.issparse():
        listing.refuse(name, "not a plain file (a link or a sparse file in a tar)")
    elif member.offset_data + member.size > tar_bytes:
        listing.refuse(
            name,
            f"truncated (the tar has {tar_bytes - member.offset_data:,} of {member.size:,} bytes)",
        )
    else:
        listing.add(name, member.size, offset=member.offset_data)
