"""Which files a pattern names, and which of its characters are those of a name."""

from pathlib import Path

import pytest
from source_samples import write_folder

from pipeline.data.patterns import PatternError, matching_files
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
