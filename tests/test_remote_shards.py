"""Shards behind a real nginx that is slow, cuts connections, answers 500 or has a bad copy: the
right bytes arrive, or an error says why not."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cache_samples import (
    BYTES,
    content_of,
    eventually,
    impatient,
    kept,
    names_of,
    read,
    record_of,
    write_shards,
)
from nginx_server import Nginx, nginx

from pipeline.data import downloads
from pipeline.data.prefetch import Need, Prefetcher
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shard_streams import shard_url
from pipeline.data.shards import ShardError, ShardRecord

STAGE, FINGERPRINT = "corrupt-sr2@photos", "0123456789abcdef"
# The number of a connection decides; the first one asks whether the server is there.
EVERY_OTHER = "map $connection $is_faulty { ~[02468]$ 1; default 0; }"


def served(server: Nginx, count: int, *, root: str = "root") -> list[ShardRecord]:
    """The records of shards that the server has, as a copy of a run."""
    return write_shards(server.folder / root / STAGE / FINGERPRINT[:12] / "shards", count)


def url_of(server: Nginx, record: ShardRecord) -> str:
    return shard_url(server.address, STAGE, FINGERPRINT, record.file)


def read_all(server: Nginx, cache: ShardCache, records: list[ShardRecord]) -> None:
    for number, record in enumerate(records):
        assert read(cache, url_of(server, record), record) == content_of(number)
    assert kept(cache.folder) == names_of(*records)


def statuses(server: Nginx) -> list[str]:
    return [status for _, status in server.answers()]


def test_shards_are_read_from_a_copy_of_a_run(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx") as server:
        read_all(server, impatient(tmp_path / "cache", shards=4), served(server, 4))

    assert statuses(server) == 4 * ["200"]


def test_a_slow_server_takes_its_time(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", location="limit_rate 100k;") as server:
        began = time.monotonic()
        read_all(server, impatient(tmp_path / "cache"), served(server, 1))

    assert time.monotonic() - began > 0.5
    assert statuses(server) == ["200"]


def test_a_server_that_answers_500_every_other_time(tmp_path: Path) -> None:
    fault = "if ($is_faulty) { return 500; }"
    with nginx(tmp_path / "nginx", maps=EVERY_OTHER, location=fault) as server:
        read_all(server, impatient(tmp_path / "cache", shards=6), served(server, 6))

    assert statuses(server).count("200") == 6
    assert statuses(server).count("500") >= 5


@pytest.mark.parametrize("fault", ["truncated", "altered", "empty"])
def test_a_server_with_a_bad_copy_behind_every_other_connection(tmp_path: Path, fault: str) -> None:
    other_root = "if ($is_faulty) { root {folder}/bad; }"
    with nginx(tmp_path / "nginx", maps=EVERY_OTHER, location=other_root) as server:
        records = served(server, 6)
        served(server, 6, root="bad")
        for path in (server.folder / "bad").rglob("*.tar"):
            content = bytearray(path.read_bytes())
            content[BYTES // 2] ^= 1
            path.write_bytes(
                {"truncated": content[: BYTES // 3], "altered": content, "empty": b""}[fault]
            )
        read_all(server, impatient(tmp_path / "cache", shards=6), records)

    assert statuses(server).count("200") >= 11


@pytest.mark.parametrize(
    ("size", "what"),
    [(BYTES // 3, "has 33,333 of the 100,000 bytes"), (BYTES, "has other bytes than its record")],
)
def test_a_server_that_only_has_a_bad_copy(tmp_path: Path, size: int, what: str) -> None:
    with nginx(tmp_path / "nginx") as server:
        (record,) = served(server, 1)
        (path,) = server.root.rglob("*.tar")
        path.write_bytes(bytes(size))
        message = f"{url_of(server, record)}: {what}.*; 5 attempts failed; check"
        with pytest.raises(ShardError, match=message):
            read(impatient(tmp_path / "cache"), url_of(server, record), record)

    assert kept(tmp_path / "cache") == {".lock"}


def test_connections_cut_in_the_middle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Every other connection gets next to nothing after its first bytes, until it is cut.
    rate = "map $connection $rate { ~[02468]$ 1; default 0; }"
    location = "limit_rate $rate; limit_rate_after 20000;"
    with (
        nginx(tmp_path / "nginx", maps=rate, location=location) as server,
        ThreadPoolExecutor() as pool,
    ):
        cache = impatient(tmp_path / "cache")
        for number, record in enumerate(served(server, 3)):
            reading = pool.submit(read, cache, url_of(server, record), record)
            temporary = cache.folder / f"{record.sha256}.part"
            assert eventually(lambda path=temporary: path.exists() and any(path.read_bytes()))
            assert not reading.done()
            server.cut_connections()
            assert reading.result() == content_of(number)

    assert [message for message in caplog.messages if "broke off after" in message] == (
        caplog.messages
    )
    assert len(caplog.messages) == 3


def test_a_server_that_comes_back(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx") as server, ThreadPoolExecutor() as pool:
        (record,) = served(server, 1)
        server.stop()
        cache = ShardCache(tmp_path / "cache", limit=BYTES, backoff_seconds=0.5)
        reading = pool.submit(read, cache, url_of(server, record), record)
        time.sleep(0.2)
        server.start()

        assert reading.result() == content_of(0)


def test_a_server_that_is_stopped_for_good(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx") as server:
        records = served(server, 2)
        cache = impatient(tmp_path / "cache")
        read_all(server, cache, records[:1])
        server.stop()

        assert read(cache, url_of(server, records[0]), records[0]) == content_of(0)
        with pytest.raises(
            ShardError, match=r"00001.tar: can't be reached \(.*refused.*; 5 attempts failed; check"
        ):
            read(cache, url_of(server, records[1]), records[1])


def test_a_server_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "SILENCE_SECONDS", 0.4)
    # After 20,000 bytes, one byte a second.
    location = "limit_rate 1; limit_rate_after 20000;"
    with nginx(tmp_path / "nginx", location=location) as server:
        (record,) = served(server, 1)
        with pytest.raises(ShardError, match=r"broke off after [\d,]+ bytes \(.*timed out\); 5 "):
            read(impatient(tmp_path / "cache"), url_of(server, record), record)


def test_a_shard_that_the_server_does_not_have(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx") as server:
        record = record_of(b"another")
        with pytest.raises(ShardError, match=r"00000.tar: the server answers 404 \(Not Found\); "):
            read(impatient(tmp_path / "cache"), url_of(server, record), record)

    assert statuses(server) == ["404"]


def test_a_training_goes_on_whatever_the_server_does(tmp_path: Path) -> None:
    maps = 'map $connection $fault { ~3$ 500; ~5$ 503; ~7$ bad; default ""; }'
    location = """
        limit_rate 2m;
        if ($fault = 500) { return 500; }
        if ($fault = 503) { return 503; }
        if ($fault = bad) { root {folder}/bad; }
    """
    with nginx(tmp_path / "nginx", maps=maps, location=location) as server:
        records = served(server, 20)
        served(server, 20, root="bad")
        for path in (server.folder / "bad").rglob("*.tar"):
            path.write_bytes(path.read_bytes()[: BYTES // 2])
        cache = ShardCache(tmp_path / "cache", limit=6 * BYTES, backoff_seconds=0.02)
        needs = [
            Need(first_step=place, last_step=place, url=url_of(server, record), record=record)
            for place, record in enumerate(records)
        ]
        prefetcher = Prefetcher(cache, iter(needs), budget=4 * BYTES)
        cuts = threading.Timer(0.2, server.cut_connections)
        cuts.start()
        for step, need in enumerate(needs):
            prefetcher.advance(step)
            assert read(cache, need.url, need.record) == content_of(step)
        prefetcher.close()
        cuts.join()

    assert {"200", "500", "503"} <= set(statuses(server))
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.limit
