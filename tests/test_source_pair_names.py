from pathlib import Path

import pytest
from data_samples import photograph
from PIL import Image
from source_samples import PAIRS, listed_pairs, write_pairs

from pipeline.data.source_index import SourceIndex
from pipeline.graph import StageError


def test_one_folder_is_not_both_sides(tmp_path: Path) -> None:
    """Every photograph would be its own corrupted version."""
    write_pairs(tmp_path, clean="norain-{}.png", corrupted="rain-{}.png")
    for path in (tmp_path / "corrupted").iterdir():
        path.rename(tmp_path / "clean" / path.name)
    (tmp_path / "corrupted").rmdir()
    (tmp_path / "corrupted").symlink_to("clean")

    with pytest.raises(StageError, match=r"clean: is both clean and corrupted; name two folders"):
        listed_pairs(tmp_path)


@pytest.mark.parametrize(
    ("clean", "corrupted"),
    [
        ("a/{}.png", "a/{}.png"),
        ("a/norain-{}.png", "a/rain-{}.png"),
        ("{}_GT.png", "{}_in.png"),
        ("img_{}_SRF_2_HR.png", "img_{}_SRF_2_LR.png"),
        ("baby{}.png", "baby{}x2.png"),
        ("{}.bmp", "{}.png"),
    ],
)
def test_names_of_pairs_may_differ_as_in_benchmarks(
    tmp_path: Path, clean: str, corrupted: str
) -> None:
    artifact = listed_pairs(write_pairs(tmp_path, clean=clean, corrupted=corrupted))
    index = SourceIndex(artifact.folder, artifact.manifest.summary["root"])

    assert index.corrupted is not None
    matched = {
        index.name(number): index.corrupted.name(int(index.partners[number]))
        for number in range(PAIRS)
    }
    assert matched == {clean.format(n): corrupted.format(n) for n in range(PAIRS)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("clean/b.png", r"no corrupted photograph for b.png. Pairs are matched by name"),
        ("corrupted/a/b.png", r"no clean photograph for a/b.png. Pairs"),
        ("clean/a/3.jpg", r"a/3.(png|jpg) and a/3.(png|jpg) read as the same name"),
    ],
)
def test_photographs_without_a_partner_are_named(tmp_path: Path, extra: str, message: str) -> None:
    folder = write_pairs(tmp_path)
    Image.fromarray(photograph(0)).save(folder / extra)

    with pytest.raises(StageError, match=message):
        listed_pairs(folder)


def test_many_without_a_partner_are_counted(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    for number in range(9):
        Image.fromarray(photograph(0)).save(folder / "clean" / f"{number} more.png")

    with pytest.raises(StageError, match=r"no corrupted photograph for .* and 4 more. Pairs"):
        listed_pairs(folder)
