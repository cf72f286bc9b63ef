"""Which files a pattern names, and which of its characters are those of a name."""

from pathlib import Path

import pytest
from data_samples import index_of, listing_stage
from source_samples import encoded_photographs, tar_bytes, write_folder

from pipeline.config_file import ConfigError
from pipeline.data.patterns import PatternError, ascii_url, matching_files
from stages.source import resolve_location


@pytest.mark.parametrize("folder", ["a [x]", "{a,b}", "open {", "what?*"])
def test_a_folder_that_is_there_is_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    here = write_folder(tmp_path / folder, {"d/a.tar": b"1", "d/b[1].tar": b"2"})
    monkeypatch.chdir(here)
    first, second = here / "d" / "a.tar", here / "d" / "b[1].tar"

    found = {
        path: matching_files(str(resolve_location(path)))
        for path in ("d/*.tar", "d/[a-z].tar", "d/b[1].tar", "d/{a,b*}.tar")
    }

    assert found == {
        "d/*.tar": [first, second],
        "d/[a-z].tar": [first],
        "d/b[1].tar": [second],
        "d/{a,b*}.tar": [first, second],
    }
    with pytest.raises(PatternError, match=r"c\.tar: no such file"):
        matching_files(str(resolve_location("d/{a,c}.tar")))


def test_alternatives_may_be_longer_than_a_name(tmp_path: Path) -> None:
    names = [f"{number:03d}.tar" for number in range(100)]
    write_folder(tmp_path, dict.fromkeys(names, b""))

    found = matching_files(f"{tmp_path}/{{{','.join(names)}}}")

    assert [path.name for path in found] == names


@pytest.mark.parametrize("pattern", ["{s-0.tar,s-1.tar}", "s-{0.tar,1.tar}", "s-{0,1}.{tar,tar}"])
def test_alternatives_may_end_in_a_brace(tmp_path: Path, pattern: str) -> None:
    for number, (name, content) in enumerate(encoded_photographs(2).items()):
        (tmp_path / f"s-{number}.tar").write_bytes(tar_bytes({name: content}))

    assert len(index_of(tmp_path / pattern, tmp_path / "out", validation_images=1)) == 2


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://h.org:8080/a%20b/{x}.tar?a=b+c", "https://h.org:8080/a%20b/{x}.tar?a=b+c"),
        ("https://h.org/länge/a b.tar?ü", "https://h.org/l%C3%A4nge/a%20b.tar?%C3%BC"),
        ("https://Bücher.example:80/x.tar", "https://xn--bcher-kva.example:80/x.tar"),
        ("http://[::1]:80/日.tar", "http://[::1]:80/%E6%97%A5.tar"),
    ],
)
def test_addresses_are_sent_in_ascii(url: str, sent: str) -> None:
    assert ascii_url(url) == sent


def test_addresses_may_end_in_a_brace() -> None:
    listing_stage("https://example.org/{0.tar,1.tar}")
    listing_stage("{https://example.org/0.tar,https://example.com/1.tar}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train-{000..146.tar", "a brace is not closed"),
        ("https://example.org/{0..1}.zip", "only tars .* are read by URL"),
        ("https://example.org/{0.tar,1.zip}", "only tars .* are read by URL"),
        ("s3://bucket/a.tar.gz", "only https:// and http://"),
        ("http://[::1/x.tar", r"x.tar: no address \(Invalid IPv6 URL\); write it as https://"),
        ("http://host:port/x.tar", r"x.tar: no address \(Port could not .*\); write"),
        ("http:///x.tar", r"x.tar: no address \(it names no host\); write"),
        ("s-{0..3}.tar.gz", "s-0.tar.gz: compressed tars are not read; run gunzip on it"),
        ("s.tgz", "compressed tars are not read; run gunzip on it and name the .tar, or unpack"),
        ("*.tar.zst", "compressed tars are not read; run unzstd on it"),
        ("s-{0..3.txz", "compressed tars are not read; run unxz on it"),
        ("{a.tar,b.parquet}", r"names what is read differently \(parquet, tars\); make a source"),
    ],
)
def test_a_path_that_nothing_reads_is_refused_before_anything_is_made(
    path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^sources.photos.path: .*{message}"):
        listing_stage(path)


@pytest.mark.parametrize(
    "path",
    [
        "https://me:secret@example.org/{0..1}.tar",
        "https://{me:secret@example.org/0,example.org/1}.tar",
        "{https://example.org/0.tar,https://me:secret@example.org/1.tar}",
        "http{s://me:secret,://me:secret}@example.org/1.tar",
        "https://me:se{cret@example.org/0.tar",
        "https://secret@example.org/0.tar",
        "s3://me:secret@bucket/0.tar",
        "https://me:secret@example.org/0.zip",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_shown(path: str) -> None:
    with pytest.raises(ConfigError, match=r"photos.path: an address with .* signed") as refused:
        listing_stage(path)

    assert "secret" not in str(refused.value)


def test_what_follows_the_host_may_have_an_at_sign() -> None:
    listing_stage("https://example.org/@me/{0..1}.tar?user=me@example.org")


def test_a_folder_may_be_called_like_a_compressed_tar(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.tar.gz", encoded_photographs(2))

    assert len(index_of(folder, tmp_path / "out", validation_images=1)) == 2
