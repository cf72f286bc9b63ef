"""What a server sends instead of a tar is never kept as one."""

from pathlib import Path

import pytest
from data_samples import execute, listing_stage
from source_samples import contents_of, encoded_photographs, tar_bytes, web_server

from pipeline.data import downloads
from pipeline.data.downloads import ATTEMPTS, download
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex
from pipeline.graph import StageError

PHOTOGRAPHS = encoded_photographs(2)
TAR = tar_bytes(PHOTOGRAPHS)
PATH = "/set/s.tar"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.001)


def downloaded(url: str, folder: Path) -> bytes:
    (path,) = download([url], folder, progress=lambda done, much: None)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("page", r"no tar: it begins with b'<!DOCTYPE html><titl'; check the address"),
        (
            "end",
            r"broke off after [\d,]+ bytes \(of how many, the server doesn't say\); 5 ",
        ),
        ("length", r"a length that is none \(Content-Length: '12 bytes'\); check"),
    ],
)
def test_a_bad_answer_is_refused_and_asked_for_anew_by_the_same_command(
    tmp_path: Path, fault: str, message: str
) -> None:
    with web_server({PATH: TAR}, faults={PATH: [fault] * ATTEMPTS}) as (address, asked):
        stage = listing_stage(address + PATH, validation_images=1)
        with pytest.raises(StageError, match=rf"^{address}{PATH}: .*{message}"):
            execute(stage, tmp_path / "out")
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        while len(asked) < ATTEMPTS:  # a refused one is not asked for again
            with pytest.raises(StageError):
                execute(stage, tmp_path / "out")

        artifact = execute(stage, tmp_path / "out")

    assert artifact is not None
    expected = {f"s.tar/{name}": content for name, content in PHOTOGRAPHS.items()}
    assert contents_of(SourceIndex(artifact.folder, "")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no tar: it is empty"),
        (b"\x1f\x8b\x08" + TAR, "no tar: it is compressed, unpack it first"),
        (b"X" + TAR[1:], "no tar: it begins with b'Xlass0"),
    ],
)
def test_what_does_not_begin_as_a_tar_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with (
        web_server({PATH: content}) as (address, asked),
        pytest.raises(SourceError, match=f"{PATH}: .*{message}"),
    ):
        downloaded(address + PATH, tmp_path)

    assert asked == [PATH]


def test_a_tar_of_no_announced_length_that_was_cut_is_asked_for_again(tmp_path: Path) -> None:
    with web_server({PATH: TAR}, faults={PATH: ["end", "whole"]}) as (address, asked):
        assert downloaded(address + PATH, tmp_path) == TAR

    assert asked == [PATH] * 2


def test_chunks_tell_their_end_themselves(tmp_path: Path) -> None:
    without_mark = TAR[: TAR.rindex(b"\xff\xd9") // 512 * 512 + 512]
    with web_server({PATH: without_mark}, faults={PATH: ["chunked"]}) as (address, asked):
        assert downloaded(address + PATH, tmp_path) == without_mark

    assert asked == [PATH]


def test_what_was_kept_without_being_a_tar_is_asked_for_again(tmp_path: Path) -> None:
    with web_server({PATH: TAR}) as (address, asked):
        downloaded(address + PATH, tmp_path)
        (path,) = tmp_path.rglob("*.tar")
        path.write_bytes(b"<!DOCTYPE html>")

        assert downloaded(address + PATH, tmp_path) == TAR

    assert asked == [PATH] * 2


def test_an_address_may_have_any_character(tmp_path: Path) -> None:
    quoted = "/l%C3%A4nge/%E6%97%A5%20a%2B.tar?%C3%BC=1"
    with web_server({quoted: TAR}) as (address, asked):
        assert downloaded(f"{address}/länge/日 a%2B.tar?ü=1", tmp_path) == TAR

    assert asked == [quoted]


def test_a_redirect_to_no_address_is_an_error(tmp_path: Path) -> None:
    redirect = {"Location": "http://[::1/s.tar"}
    with (
        web_server({}, faults={PATH: ["302"]}, headers=redirect) as (address, _),
        pytest.raises(SourceError, match=rf"{PATH}: is no address \(Invalid IPv6 URL\); check"),
    ):
        downloaded(address + PATH, tmp_path)
