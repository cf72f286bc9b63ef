"""Downloads lie beside the listings of a source, and are shared by all of them."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from data_samples import execute, listed, listing_stage
from source_samples import contents_of, encoded_photographs, tar_bytes, web_server

from pipeline.data import downloads
from pipeline.data.downloads import download
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex
from pipeline.locks import writing

PHOTOGRAPHS = encoded_photographs(6)
FILES = {"/set/0.tar": tar_bytes(PHOTOGRAPHS), "/set/1.tar": tar_bytes({"x.png": b"more"})}


def test_another_listing_of_the_same_address_downloads_nothing_again(tmp_path: Path) -> None:
    with web_server(FILES) as (address, asked):
        first = listed(f"{address}/set/{{0..1}}.tar", tmp_path / "photos" / "first")
        other = listing_stage(f"{address}/set/0.tar", validation_images=1, largest_crop=8)
        second = execute(other, tmp_path / "photos" / "second")

    assert sorted(asked) == sorted(FILES)
    shutil.copytree(tmp_path / "photos", tmp_path / "moved", copy_function=shutil.copyfile)
    for artifact, count in ((first, 7), (second, 6)):
        folder = tmp_path / "moved" / artifact.folder.name
        assert len(contents_of(SourceIndex(folder, ""))) == count


def test_downloads_of_an_older_layout_are_kept_and_not_sealed(tmp_path: Path) -> None:
    out = tmp_path / "photos" / "out"
    with web_server(FILES) as (address, asked):
        urls = [address + path for path in FILES]
        download(urls, out / "downloads", progress=lambda done, much: None)
        [left] = out.rglob("1.tar")
        left.rename(left.with_name(".1.tar.tmp"))
        artifact = listed(f"{address}/set/{{0..1}}.tar", out)

    assert sorted(asked) == ["/set/0.tar", "/set/1.tar", "/set/1.tar"]
    assert len(contents_of(SourceIndex(out, ""))) == 7
    assert not (out / "downloads").exists()
    assert not [each.path for each in artifact.manifest.files if "downloads" in each.path]


def test_a_download_that_is_altered_or_gone_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    with web_server(FILES) as (address, _):
        artifact = listed(f"{address}/set/0.tar", tmp_path / "out")
    [tar] = tmp_path.rglob("0.tar")

    tar.write_bytes(tar.read_bytes().replace(b"PNG", b"png"))
    with pytest.raises(SourceError, match=r"0.tar: was written to since it was listed"):
        SourceIndex(artifact.folder, "").read(0)
    tar.unlink()
    with pytest.raises(SourceError, match=r"0.tar: is gone"):
        SourceIndex(artifact.folder, "").read(0)


def test_two_who_download_the_same_at_once_ask_once(tmp_path: Path) -> None:
    with web_server(FILES, faults={path: ["slow"] for path in FILES}) as (address, asked):

        def fetch() -> list[bytes]:
            urls = [address + path for path in FILES]
            paths = download(urls, tmp_path, progress=lambda done, much: None)
            return [path.read_bytes() for path in paths]

        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(fetch) for _ in range(2)]

    assert [each.result() for each in both] == [list(FILES.values())] * 2
    assert sorted(asked) == sorted(FILES)


def test_who_waits_for_another_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "REPORT_SECONDS", 0.05)
    calls = iter(range(3))

    def stop_soon(done: int, much: str) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    with web_server(FILES) as (address, asked):
        [path] = download([f"{address}/set/0.tar"], tmp_path, progress=lambda done, much: None)
        path.unlink()
        before = set(threading.enumerate())
        with (
            writing(path.parent, name=".0.tar.lock"),
            pytest.raises(KeyboardInterrupt),
        ):
            download([f"{address}/set/0.tar"], tmp_path, progress=stop_soon)
        for thread in set(threading.enumerate()) - before:
            thread.join(20)

    assert asked == ["/set/0.tar"]
    assert not path.exists()


def test_what_another_run_fetches_is_told_while_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever watches takes the wait for a hang."""
    monkeypatch.setattr(downloads, "REPORT_SECONDS", 0.05)
    files = {"/set/0.tar": bytes(20_000_000)}
    told: list[str] = []

    with web_server(files, faults={"/set/0.tar": ["slow"]}) as (address, asked):

        def fetch(progress: Callable[[int, str], object]) -> None:
            download([f"{address}/set/0.tar"], tmp_path, progress=progress)

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(fetch, lambda done, much: None)
            while not asked:
                time.sleep(0.01)
            fetch(lambda done, much: told.append(much))
        other.result()

    assert len(asked) == 1
    assert len(set(told)) > 3
    assert told[-1] == "0.000 GB"


def test_who_waits_for_another_ends_once_one_of_its_own_has_failed(tmp_path: Path) -> None:
    with web_server(FILES) as (address, _):
        urls = [f"{address}/set/0.tar", f"{address}/set/none.tar"]
        [path] = download(urls[:1], tmp_path, progress=lambda done, much: None)
        path.unlink()
        with ExitStack() as held:
            held.enter_context(writing(path.parent, name=".0.tar.lock"))
            # Where it does not end by itself, the test still does.
            timer = threading.Timer(20, held.close)
            timer.start()
            with pytest.raises(SourceError, match=r"none.tar: the server answers 404"):
                download(urls, tmp_path, progress=lambda done, much: None)
            timer.cancel()

    assert not path.exists()
