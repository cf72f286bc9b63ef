import base64
import hashlib
import threading
import time
from pathlib import Path

import pytest
from data_samples import corrupted, execute, largest_file, listed, listing_stage
from source_samples import (
    contents_of,
    encoded_photographs,
    tar_bytes,
    web_server,
)

from pipeline.data import downloads
from pipeline.data.downloads import AT_ONCE, ATTEMPTS, download
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex
from pipeline.graph import StageError, StoppedWithCheckpoint

PHOTOGRAPHS = encoded_photographs(6)
HALVES = [dict(list(PHOTOGRAPHS.items())[part::2]) for part in range(2)]
EMPTY = tar_bytes({})
FILES = {f"/set/{part}.tar": tar_bytes(half) for part, half in enumerate(HALVES)}
EXPECTED = {
    f"{part}.tar/{name}": content
    for part, half in enumerate(HALVES)
    for name, content in half.items()
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.001)


def downloaded(address: str, folder: Path) -> list[Path]:
    return download([address + path for path in FILES], folder, progress=lambda done, much: None)


def files_in(folder: Path) -> list[str]:
    """Their names; locks are none."""
    paths = (path for path in folder.rglob("*") if path.suffix != ".lock")
    return sorted(path.name for path in paths if path.is_file())


def test_tars_behind_urls_are_downloaded_once_and_read_where_they_are(tmp_path: Path) -> None:
    with web_server(FILES) as (address, asked):
        artifact = listed(f"{address}/set/{{0..1}}.tar", tmp_path / "out")

    assert sorted(asked) == ["/set/0.tar", "/set/1.tar"]
    artifact.folder.rename(tmp_path / "moved")
    index = SourceIndex(tmp_path / "moved", artifact.manifest.summary["root"])
    assert contents_of(index) == EXPECTED
    assert {each.path for each in artifact.manifest.files} == {
        "containers.json",
        "index.npy",
        "paths.bin",
    }


@pytest.mark.parametrize("pattern", ["{{0..1}}.tar?{}", "{{0.tar?{0},1.tar?{0}}}"])
def test_an_address_that_is_signed_anew_is_the_same(tmp_path: Path, pattern: str) -> None:
    tokens = ("token=secret&until=1", "token=geheim&until=2")
    signed = {f"{path}?{token}": tar for path, tar in FILES.items() for token in tokens}
    with web_server(signed, faults={f"/set/1.tar?{tokens[0]}": ["403"]}) as (address, asked):
        old, new = (listing_stage(f"{address}/set/{pattern.format(each)}") for each in tokens)
        with pytest.raises(StageError, match=r"/set/1.tar: the server answers 403"):
            execute(old, tmp_path / "out")
        artifact = execute(new, tmp_path / "out")

    assert artifact is not None
    assert sorted(asked)[:2] == [f"/set/0.tar?{tokens[0]}", f"/set/1.tar?{tokens[1]}"]
    assert len(asked) == 3
    assert contents_of(SourceIndex(artifact.folder, "")) == EXPECTED
    for stage in (old, new):
        assert stage.stale is not None
        assert stage.stale(stage.config, artifact.manifest) is None
    for path in artifact.folder.rglob("*.json"):
        assert "token" not in path.read_text()


@pytest.mark.parametrize("pattern", ["{set,other}/0.tar", "set/0.tar?{1,2}"])
def test_equal_names_are_refused_before_anything_is_downloaded(
    tmp_path: Path, pattern: str
) -> None:
    with (
        web_server(FILES) as (address, asked),
        pytest.raises(StageError, match=r"set/0.tar and .*/0.tar have the same name"),
    ):
        listed(f"{address}/{pattern}", tmp_path / "out")

    assert not asked


def test_some_are_downloaded_at_a_time_and_no_more(tmp_path: Path) -> None:
    files = {f"/set/{number}.tar": EMPTY for number in range(3 * AT_ONCE)}
    meeting = threading.Barrier(AT_ONCE)  # nobody is answered before all of these are here
    counts: list[int] = []

    with web_server(files, before=lambda _: meeting.wait(timeout=20)) as (address, asked):
        urls = [address + path for path in files]
        paths = download(
            [*urls, urls[0]], tmp_path, progress=lambda done, much: counts.append(done)
        )

    assert all(path.read_bytes() == EMPTY for path in paths)
    assert sorted(asked) == sorted(files)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, len(urls) + 1)


def test_once_one_has_failed_those_under_way_are_brought_to_their_end(tmp_path: Path) -> None:
    files = {f"/set/{number}.tar": EMPTY for number in range(1, 4 * AT_ONCE)}

    def slowly(path: str) -> None:
        if path in files:
            time.sleep(0.5)

    with web_server(files, before=slowly) as (address, asked):
        urls = [f"{address}/set/{number}.tar" for number in range(4 * AT_ONCE)]
        with pytest.raises(SourceError, match=r"0.tar: the server answers 404"):
            download(urls, tmp_path, progress=lambda done, much: None)

    made = {path.name for path in tmp_path.rglob("*.tar")}
    assert made == {path.rpartition("/")[2] for path in asked} - {"0.tar"}
    assert {f"{number}.tar" for number in range(1, AT_ONCE)} <= made
    assert len(made) < len(files)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoppedWithCheckpoint])
def test_a_stopped_download_ends_soon_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    monkeypatch.setattr(downloads, "REPORT_SECONDS", 0.05)
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    files = {f"/set/{number}.tar": bytes(2**16) for number in range(2)}

    def stopped(done: int, much: str) -> None:
        if done == 1:
            raise stop

    with web_server(files, faults={"/set/1.tar": ["slow"]}) as (address, _), pytest.raises(stop):
        download([address + path for path in files], tmp_path, progress=stopped)

    assert files_in(tmp_path) == ["0.tar"]


def test_what_comes_slowly_is_told_while_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever watches takes a large file for a hang."""
    monkeypatch.setattr(downloads, "REPORT_SECONDS", 0.05)
    files = {"/set/0.tar": bytes(20_000_000)}
    told: list[tuple[int, str]] = []

    with web_server(files, faults={"/set/0.tar": ["slow"]}) as (address, _):
        download([address + "/set/0.tar"], tmp_path, progress=lambda *each: told.append(each))

    assert len({much for done, much in told if done == 0}) > 2
    assert told[-1] == (1, "0.020 GB")


def test_shards_are_made_from_downloaded_tars(tmp_path: Path) -> None:
    with web_server(FILES) as (address, _):
        artifact = corrupted("denoise30", f"{address}/set/{{0..1}}.tar", tmp_path)

    assert artifact.manifest.summary["train_samples"] == 12


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut"])
def test_a_server_that_recovers_is_asked_again(tmp_path: Path, fault: str) -> None:
    with web_server(FILES, faults={"/set/1.tar": [fault, fault]}) as (address, asked):
        paths = downloaded(address, tmp_path)

    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert sorted(asked) == ["/set/0.tar"] + 3 * ["/set/1.tar"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", r"1.tar: the server answers 500 \(Internal Server Error\); 5 attempts failed"),
        (
            "cut",
            r"1.tar: broke off after [\d,]+ of [\d,]+ bytes; 5 attempts failed. Files that are",
        ),
    ],
)
def test_a_server_that_stays_broken_is_an_error_and_goes_on_where_it_was(
    tmp_path: Path, fault: str, message: str
) -> None:
    faults = {"/set/1.tar": [fault] * ATTEMPTS}
    with web_server(FILES, faults=faults) as (address, asked):
        stage = listing_stage(f"{address}/set/{{0..1}}.tar")

        with pytest.raises(StageError, match=message):
            execute(stage, tmp_path / "out")
        left = files_in(tmp_path)
        execute(stage, tmp_path / "out")

    assert left == ["0.tar"]
    assert asked.count("/set/0.tar") == 1


def test_a_server_that_falls_silent_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SILENCE_SECONDS", 0.2)
    with web_server(FILES, faults={"/set/0.tar": ["hang"]}) as (address, asked):
        paths = downloaded(address, tmp_path)

    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert sorted(asked) == ["/set/0.tar", "/set/0.tar", "/set/1.tar"]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with (
        web_server(FILES) as (address, _),
        largest_file(4096),
        pytest.raises(StageError, match=r"out: File too large; the listing stopped"),
    ):
        listed(f"{address}/set/{{0..1}}.tar", tmp_path / "out")

    assert files_in(tmp_path) == []


def test_what_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with (
        web_server({"/set/0.tar": EMPTY}) as (address, asked),
        pytest.raises(SourceError, match=r"1.tar: the server answers 404 \(Not Found\); check"),
    ):
        downloaded(address, tmp_path)

    assert len(asked) == 2


def test_no_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"\d.tar: can't be reached \(.*refused.*5 attempts"):
        downloaded("http://127.0.0.1:9", tmp_path)


def checksum(algorithm: str, content: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, content).digest()).decode()


@pytest.mark.parametrize(
    "header",
    [
        ("Repr-Digest", "sha-256=:{sha256}:"),
        ("Digest", "SHA-256={sha256}"),
        ("Content-MD5", "{md5}"),
        ("X-Goog-Hash", "crc32c=AAAAAA==,md5={md5}"),
    ],
    ids=lambda header: header[0],
)
def test_an_announced_checksum_is_checked(tmp_path: Path, header: tuple[str, str]) -> None:
    content = FILES["/set/0.tar"]
    sums = {name: checksum(name, content) for name in ("sha256", "md5")}
    headers = {header[0]: header[1].format(**sums)}
    files = {"/set/0.tar": content, "/set/1.tar": content}
    with web_server(files, faults={"/set/0.tar": ["flip"]}, headers=headers) as (address, asked):
        paths = downloaded(address, tmp_path)

    assert [path.read_bytes() for path in paths] == [content, content]
    assert sorted(asked) == ["/set/0.tar", "/set/0.tar", "/set/1.tar"]


def test_a_checksum_that_is_none_is_ignored(tmp_path: Path) -> None:
    headers = {"Content-MD5": "0123456789abcdef0123456789abcdef", "Digest": "sha-256=no"}
    with web_server(FILES, headers=headers) as (address, _):
        assert [path.read_bytes() for path in downloaded(address, tmp_path)] == list(FILES.values())


def test_what_another_address_left_is_not_taken_for_this_one(tmp_path: Path) -> None:
    other = {path: tar_bytes({"x.png": b"other"}) for path in FILES}
    with web_server(other) as (address, _):
        downloaded(address, tmp_path)

    with web_server(FILES) as (address, _):
        paths = downloaded(address, tmp_path)

    assert [path.read_bytes() for path in paths] == list(FILES.values())


def test_a_tar_that_the_server_has_truncated_is_named(tmp_path: Path) -> None:
    files = FILES | {"/set/1.tar": FILES["/set/1.tar"][:2000]}
    with (
        web_server(files) as (address, _),
        pytest.raises(StageError, match=r"1.tar: .*downloaded, delete it here") as stop,
    ):
        listed(f"{address}/set/{{0..1}}.tar", tmp_path / "out")

    assert Path(str(stop.value).partition(": ")[0]).is_file()
