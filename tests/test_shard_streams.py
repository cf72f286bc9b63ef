"""Where shards come from: only their own bytes ever arrive, or a sentence says why not. Real web
servers' faults are in test_remote_shards.py."""

import importlib.util
import logging
import time
from pathlib import Path

import fsspec
import pytest
from cache_samples import BYTES, content_of, impatient, kept, read, record_of, write_shards
from fsspec.implementations.memory import MemoryFileSystem
from source_samples import web_server

from pipeline.data import shard_cache
from pipeline.data.downloads import ATTEMPTS
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shard_streams import shard_url
from pipeline.data.shards import ShardError

RECORD = record_of(content_of(0))
PATH = f"/{RECORD.file}"
DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://host/runs/a", "http://host/runs/a/corrupt-sr2%40photos/0123456789ab/shards/x.tar"),
        (
            "HTTPS://host/a/?key=b/c",
            "https://host/a/corrupt-sr2%40photos/0123456789ab/shards/x.tar?key=b/c",
        ),
        ("s3://bucket/a/", "s3://bucket/a/corrupt-sr2@photos/0123456789ab/shards/x.tar"),
        ("/mnt/a b/", "/mnt/a b/corrupt-sr2@photos/0123456789ab/shards/x.tar"),
        ("file:///mnt/a%20b", "file:///mnt/a%20b/corrupt-sr2@photos/0123456789ab/shards/x.tar"),
    ],
)
def test_a_shard_has_its_place_in_the_copy_of_a_run(base: str, expected: str) -> None:
    assert shard_url(base, "corrupt-sr2@photos", DIGEST, "x.tar") == expected


def test_paths_and_their_urls_are_read(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "a copy", 1)
    path = tmp_path / "a copy" / record.file

    for number, url in enumerate((path, path.as_uri())):
        assert read(impatient(tmp_path / str(number)), url, record) == content_of(0)


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "cut", "flip"])
def test_a_server_that_recovers_is_asked_again(tmp_path: Path, fault: str) -> None:
    with web_server({PATH: content_of(0)}, faults={PATH: [fault, fault]}) as (address, asked):
        assert read(impatient(tmp_path), address + PATH, RECORD) == content_of(0)

    assert len(asked) == 3


@pytest.mark.parametrize(
    ("served", "what"),
    [
        (content_of(0)[:50_000], "has 50,000 of the 100,000 bytes of its record"),
        (content_of(0) + b"\0", "has more than the 100,000 bytes of its record"),
        (content_of(1), r"has other bytes than its record says \(SHA-256 differs\)"),
        (b"", "has 0 of the 100,000 bytes of its record"),
    ],
    ids=["truncated", "longer", "other", "empty"],
)
def test_a_copy_that_is_wrong_is_an_error_and_not_kept(
    tmp_path: Path, served: bytes, what: str
) -> None:
    message = f"{PATH}: {what}; 5 attempts failed; check that it can be reached and is a whole copy"
    with web_server({PATH: served}) as (address, asked), pytest.raises(ShardError, match=message):
        read(impatient(tmp_path), address + PATH, RECORD)

    assert len(asked) == ATTEMPTS
    assert kept(tmp_path) == {".lock"}


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "410"])
def test_a_server_that_refuses_is_asked_once(tmp_path: Path, status: str) -> None:
    with (
        web_server({PATH: content_of(0)}, faults={PATH: [status]}) as (address, asked),
        pytest.raises(ShardError, match=rf"{PATH}: the server answers {status} .*your right to"),
    ):
        read(impatient(tmp_path), address + PATH, RECORD)

    assert len(asked) == 1


def test_each_wait_is_twice_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(tmp_path, limit=BYTES, backoff_seconds=0.02)
    began = time.monotonic()

    with pytest.raises(ShardError, match="5 attempts failed"):
        read(cache, "http://127.0.0.1:9/x.tar", RECORD)

    assert time.monotonic() - began >= 0.02 * (1 + 2 + 4 + 8)
    assert len(caplog.messages) == ATTEMPTS - 1


def test_a_path_without_the_shard_is_an_error_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ShardError, match=r"x.tar: can't be opened \(No such file or directory\); "):
        read(impatient(tmp_path / "cache"), tmp_path / "x.tar", RECORD)

    assert not caplog.messages


def test_other_schemes_are_read_through_fsspec(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/copy/x.tar", content_of(0))

    assert read(impatient(tmp_path), "memory://copy/x.tar", RECORD) == content_of(0)
    with pytest.raises(
        ShardError, match=r"memory://copy/y.tar: can't be opened \(.*y.tar\); check"
    ):
        read(impatient(tmp_path), "memory://copy/y.tar", record_of(b"y"))


class Broken(Exception):  # noqa: N818
    """As botocore's and aiohttp's, no OSError."""


class BreakingOff(MemoryFileSystem):
    """A file system of another package that fails as often as `faults` says."""

    protocol = "breaking"
    faults = 0

    def _open(self, path: str, **options: object) -> object:
        if BreakingOff.faults:
            BreakingOff.faults -= 1
            raise Broken("connection lost")
        return super()._open(path, **options)


def test_other_schemes_are_asked_again_whatever_they_raise(tmp_path: Path) -> None:
    fsspec.register_implementation("breaking", BreakingOff, clobber=True)
    fsspec.filesystem("breaking").pipe("breaking://x.tar", content_of(0))

    BreakingOff.faults = 3
    assert read(impatient(tmp_path), "breaking://x.tar", RECORD) == content_of(0)
    BreakingOff.faults = ATTEMPTS
    with pytest.raises(ShardError, match=r"x.tar: can't be read \(Broken: connection lost\); 5 "):
        read(impatient(tmp_path / "other"), "breaking://x.tar", RECORD)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_s3_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"s3:// needs .* pip install 'ipt-pretrain\[s3\]'$"):
        read(impatient(tmp_path), "s3://bucket/x.tar", RECORD)


def test_a_scheme_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"x.tar: nothing is known that reads htp://; give the"):
        read(impatient(tmp_path), "htp://host/x.tar", RECORD)


def test_attempts_are_logged_with_their_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with web_server({PATH: content_of(0)}, faults={PATH: ["500"]}) as (address, _):
        read(impatient(tmp_path), address + PATH, RECORD)

    assert caplog.messages == [
        f"{address}{PATH}: the server answers 500 (Internal Server Error); again in 0 s"
    ]


def test_addresses_of_any_characters_are_quoted() -> None:
    url = shard_url("http://127.0.0.1/über%20uns?sig=a", "corrupt-sr2@photos", "a" * 64, "b.tar")

    assert url == (
        "http://127.0.0.1/%C3%BCber%20uns/corrupt-sr2%40photos/aaaaaaaaaaaa/shards/b.tar?sig=a"
    )


def test_a_folder_that_cannot_be_made_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "POLL_SECONDS", 0.001)
    (record,) = write_shards(tmp_path / "copy", 1)

    with pytest.raises(ShardError, match=r"/proc/nope"):
        read(impatient(Path("/proc/nope")), tmp_path / "copy" / record.file, record)
