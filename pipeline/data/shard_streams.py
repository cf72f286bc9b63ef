"""The bytes of a shard from wherever it is: a web server, a bucket, a disk. Never imports torch
nor webdataset."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.data.downloads import CHUNK, BrokenOff, Refused, http_chunks, persistently
from pipeline.data.shards import ShardError, ShardRecord
from pipeline.graph import FINGERPRINT_DIGITS

_AGAIN = "then run the same command again; it goes on where it was"
# Another attempt won't find what is not there, nor what is not for us.
_UNWILLING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def shard_url(base: str, stage: str, fingerprint: str, file: str) -> str:
    """Where a shard is in a copy of the run's folder, whose URL or path is `base`."""
    place = f"{stage}/{fingerprint[:FINGERPRINT_DIGITS]}/shards/{file}"
    if not _is_http(base):
        return f"{base.rstrip('/')}/{place}"
    parts = urlsplit(base)  # a signature may follow the path
    path = f"{quote(parts.path.rstrip('/'), safe='/%')}/{quote(place)}"
    return parts._replace(path=path).geturl()


def copy_verified(
    url: str,
    record: ShardRecord,
    *,
    into: int,
    backoff_seconds: float,
    pause: Callable[[float], None],
    between_chunks: Callable[[], None],
) -> None:
    """Write the shard's bytes into the descriptor `into`, from its beginning on, and only return if
    they are those of its record.

    Raises ShardError at the end of all attempts, and OSError only where writing fails.
    """

    def attempt() -> None:
        os.lseek(into, 0, os.SEEK_SET)
        digest = hashlib.sha256()
        received = 0
        for chunk in _chunks(url):
            between_chunks()
            received += len(chunk)
            if received > record.bytes:
                raise BrokenOff(f"has more than the {record.bytes:,} bytes of its record")
            digest.update(chunk)
            _write(into, chunk)
        if received < record.bytes:
            raise BrokenOff(f"has {received:,} of the {record.bytes:,} bytes of its record")
        if digest.hexdigest() != record.sha256:
            raise BrokenOff("has other bytes than its record says (SHA-256 differs)")

    try:
        persistently(attempt, url, backoff_seconds=backoff_seconds, pause=pause)
    except BrokenOff as error:
        raise ShardError(
            f"{url}: {error}; check that it can be reached and is a whole copy, {_AGAIN}"
        ) from error
    except Refused as error:
        raise ShardError(
            f"{url}: {error}; check the address and your right to read it, {_AGAIN}"
        ) from error


def _write(descriptor: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _chunks(url: str) -> Iterator[bytes]:
    if _is_http(url):
        return http_chunks(url)
    if url.startswith("file://"):
        return _disk_chunks(Path(unquote(urlsplit(url).path)))
    if "://" in url:
        return _fsspec_chunks(url)
    return _disk_chunks(Path(url))


def _disk_chunks(path: Path) -> Iterator[bytes]:
    """A disk of the network's can break off as a server can."""
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except _UNWILLING as error:
        raise Refused(f"can't be opened ({error.strerror})") from error
    except OSError as error:
        raise BrokenOff(f"can't be read ({error})") from error


def _fsspec_chunks(url: str) -> Iterator[bytes]:
    import fsspec  # a tenth of a second, in every worker

    scheme = url.partition("://")[0].rpartition("::")[2]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        how = "pip install 'ipt-pretrain[s3]'" if scheme in ("s3", "s3a") else str(error)
        raise ShardError(f"{url}: {scheme}:// needs another package: {how}") from error
    except ValueError as error:
        raise ShardError(
            f"{url}: nothing is known that reads {scheme}://; give the address as http://, "
            "https://, s3:// or the path of a folder"
        ) from error
    try:
        with fsspec.open(url, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except _UNWILLING as error:
        raise Refused(f"can't be opened ({error})") from error
    except Exception as error:  # of any of a dozen packages, few of whose are OSErrors
        raise BrokenOff(f"can't be read ({type(error).__name__}: {error})") from error
