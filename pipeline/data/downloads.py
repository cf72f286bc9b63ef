"""Brings files from web servers, several at a time, each once and whole, or says why not."""

import base64
import binascii
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from http.client import HTTPException, HTTPMessage
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from pipeline.data.listing import replacing, unfinished
from pipeline.data.patterns import ascii_url
from pipeline.data.source import SourceError
from pipeline.data.tars import BLOCK, why_no_tar
from pipeline.locks import writing

logger = logging.getLogger(__name__)

DOWNLOADS_FOLDER = "downloads"
AT_ONCE = 4  # connections: one alone seldom gets all that a line carries
REPORT_SECONDS = 2.0
ATTEMPTS = 5
BACKOFF_SECONDS = 2.0
SILENCE_SECONDS = 60.0  # after which a connection counts as broken
CHUNK = 2**20
END_MARK = bytes(2 * BLOCK)  # of a tar
# Worth another attempt: the server is busy or broken, not unwilling.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_BROKEN = (OSError, HTTPException)  # URLError and timeouts are OSErrors


class BrokenOff(Exception):  # noqa: N818 - an attempt, not the download
    """An attempt that may do better when made again."""


class Refused(Exception):  # noqa: N818 - by the server
    """What further attempts won't change."""


class DownloadCancelled(Exception):  # noqa: N818 - told to stop, not failed
    """What was begun is discarded."""


def download(
    urls: Sequence[str], folder: Path, *, progress: Callable[[int, str], None]
) -> list[Path]:
    """The tars of `urls` below `folder`; those that are there from an earlier run stay.

    A file is there under its name only if it begins as a tar does, and has every byte that the
    server announced (or else the end of a tar) and the checksum if it announced one; one that
    another run is fetching is waited for. Where one fails, those under way are brought to their
    end, and those waited for are left. `progress` is told how many are there and, every
    REPORT_SECONDS, how much has come.
    """
    _check_names(urls)
    paths = [_path_of(url, folder) for url in urls]
    missing = {path: url for url, path in zip(urls, paths, strict=True) if not _is_tar(path)}
    transfers = _Transfers(missing)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {pool.submit(transfers.fetch, path, url) for path, url in missing.items()}
        failure: BaseException | None = None
        try:
            while True:
                ready = len(urls) - len(waiting)
                progress(ready, transfers.note())
                if not waiting:
                    break
                ended, waiting = wait(waiting, REPORT_SECONDS, return_when=FIRST_COMPLETED)
                failures = [error for each in ended if (error := each.exception())]
                if failures and failure is None:
                    failure = failures[0]
                    transfers.failed.set()
                    waiting = {each for each in waiting if not each.cancel()}
                    logger.warning(
                        "%s; %d under way are brought to their end", failure, len(waiting)
                    )
        except BaseException:
            transfers.cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failure is not None:
        raise failure
    return paths


class _Transfers:
    """What the threads of a download do, and how far they are."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.cancelled = threading.Event()
        self.failed = threading.Event()  # one of them: the others no longer wait for other runs
        self._received = dict.fromkeys(paths, 0)
        self._awaited: set[Path] = set()  # of other runs

    def fetch(self, path: Path, url: str) -> None:
        def pause(seconds: float) -> None:
            if self.cancelled.wait(seconds):
                raise DownloadCancelled(url)

        def wait_for_others(seconds: float) -> None:
            self._awaited.add(path)
            pause(seconds)
            if self.failed.is_set():
                raise DownloadCancelled(url)

        def count(size: int) -> None:
            pause(0)
            self._received[path] += size

        path.parent.mkdir(parents=True, exist_ok=True)
        lock = f".{path.name}.lock"
        with writing(path.parent, name=lock, patience=math.inf, pause=wait_for_others):
            self._awaited.discard(path)
            if not _is_tar(path):
                _fetch(url, path, pause=pause, count=count)

    def note(self) -> str:
        """What has come, and what other runs have of the files waited for: whoever watches takes
        what doesn't move for a hang."""
        note = f"{sum(self._received.values()) / 1e9:.3f} GB"
        if not (awaited := self._awaited.copy()):
            return note
        others = 0
        for path in awaited:
            for part in unfinished(path):
                with suppress(FileNotFoundError):  # it is whole by now
                    others += part.stat().st_size
        return f"{note} (and {others / 1e9:.3f} GB to other runs)"


def _without_query(url: str) -> str:
    """What stays the same when an address is signed anew, and may be shown to anyone."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _check_names(urls: Sequence[str]) -> None:
    known: dict[str, str] = {}
    for url in urls:
        other = known.setdefault(_path_of(url, Path()).name, url)
        if other != url:
            raise SourceError(
                f"{_without_query(other)} and {_without_query(url)} have the same name (what "
                "follows a question mark is no part of it), which is part of the keys of the "
                "photographs in them; rename one"
            )


def _path_of(url: str, folder: Path) -> Path:
    """A folder for each place on the web, so that no other place's file is taken for this one."""
    place, _, name = _without_query(url).rpartition("/")
    digest = hashlib.sha256(place.encode()).hexdigest()
    return folder / digest[:12] / unquote(name).replace("/", "_")


def _is_tar(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return why_no_tar(file.read(BLOCK)) is None


def _fetch(
    url: str, path: Path, *, pause: Callable[[float], None], count: Callable[[int], None]
) -> None:
    def attempt() -> None:
        with replacing(path) as file:
            for chunk in _tar_chunks(url):
                count(len(chunk))
                file.write(chunk)

    shown = _without_query(url)
    try:
        persistently(attempt, shown, backoff_seconds=BACKOFF_SECONDS, pause=pause)
    except BrokenOff as error:
        raise SourceError(
            f"{shown}: {error}. Files that are complete are kept; run the same command again once "
            "the server can be reached"
        ) from error
    except Refused as error:
        raise SourceError(
            f"{shown}: {error}; check the address and your right to read it"
        ) from error


def _tar_chunks(url: str) -> Iterator[bytes]:
    """The content, Refused before any of it is kept where it doesn't begin as a tar does."""
    start = end = b""
    chunks = http_chunks(url, is_whole=lambda: end == END_MARK)
    for chunk in chunks:
        start += chunk
        if len(start) >= BLOCK:
            break
    if why := why_no_tar(start[:BLOCK]):
        raise Refused(f"what the server sends is no tar: {why}")
    for chunk in chain([start], chunks):
        end = (end + chunk[-len(END_MARK) :])[-len(END_MARK) :]
        yield chunk


def persistently(
    attempt: Callable[[], None],
    url: str,
    *,
    backoff_seconds: float,
    pause: Callable[[float], None],
) -> None:
    """Make `attempt` until it succeeds; BrokenOff says why the last of ATTEMPTS did not.

    Waits for `backoff_seconds` before the second, doubled before each further one.
    """
    for number in range(ATTEMPTS):
        try:
            attempt()
            return
        except BrokenOff as error:
            if number + 1 == ATTEMPTS:
                raise BrokenOff(f"{error}; {ATTEMPTS} attempts failed") from error
            seconds = backoff_seconds * 2**number
            logger.warning("%s: %s; again in %.0f s", url, error, seconds)
            pause(seconds)


def http_chunks(url: str, *, is_whole: Callable[[], bool] = lambda: True) -> Iterator[bytes]:
    """The content; raises BrokenOff at its end where it isn't what the server announced.

    Chunks have at most CHUNK bytes, and come as soon as some have arrived. `is_whole` is asked
    where the server says nothing by which to tell the end from a broken connection.
    """
    try:
        # Compressed on the way, its length and checksum would be those of something else.
        request = Request(ascii_url(url), headers={"Accept-Encoding": "identity"})
        response = urlopen(request, timeout=SILENCE_SECONDS)
    except HTTPError as error:
        what = f"the server answers {error.code} ({error.reason})"
        if error.code in _PASSING:
            raise BrokenOff(what) from error
        raise Refused(what) from error
    except _BROKEN as error:
        raise BrokenOff(f"can't be reached ({error})") from error
    except ValueError as error:  # it, or what it redirects to
        raise Refused(f"is no address ({error})") from error
    with response:
        announced = _announced_length(response.headers)
        algorithm, checksum = _announced_checksum(response.headers)
        digest = hashlib.new(algorithm, usedforsecurity=False)
        received = 0
        while True:
            try:
                chunk = response.read1(CHUNK)
            except _BROKEN as error:
                raise BrokenOff(f"broke off after {received:,} bytes ({error})") from error
            if not chunk:
                break
            received += len(chunk)
            digest.update(chunk)
            yield chunk
    if announced is not None and received != announced:
        raise BrokenOff(f"broke off after {received:,} of {announced:,} bytes")
    if announced is None and checksum is None and not response.chunked and not is_whole():
        raise BrokenOff(f"broke off after {received:,} bytes (of how many, the server doesn't say)")
    if checksum is not None and digest.digest() != checksum:
        raise BrokenOff(f"damaged on the way (its {algorithm} is not the announced one)")


def _announced_length(headers: HTTPMessage) -> int | None:
    length = headers.get("Content-Length")
    if length is not None and not (length.isascii() and length.strip().isdecimal()):
        raise Refused(f"the server announces a length that is none (Content-Length: {length!r})")
    return None if length is None else int(length)


def _announced_checksum(headers: HTTPMessage) -> tuple[str, bytes | None]:
    """(algorithm, digest) as RFC 9530, RFC 3230, Google or RFC 1864 have it, in this order."""
    fields = [("sha256", "sha-256=", each) for each in headers.get_all("Repr-Digest", [])]
    fields += [("sha256", "sha-256=", each) for each in headers.get_all("Digest", [])]
    fields += [("md5", "md5=", each) for each in headers.get_all("X-Goog-Hash", [])]
    fields += [("md5", "", each) for each in headers.get_all("Content-MD5", [])]
    for algorithm, start, field in fields:
        for value in map(str.strip, field.split(",")):
            if value.lower().startswith(start):
                with suppress(binascii.Error):
                    checksum = base64.b64decode(value[len(start) :].strip(":"))
                    if len(checksum) == hashlib.new(algorithm, usedforsecurity=False).digest_size:
                        return algorithm, checksum
    return "sha256", None
