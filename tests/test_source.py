import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    as_nobody,
    execute,
    largest_file,
    listed,
    listing_stage,
    photograph,
    public_folder,
    write_photographs,
)
from PIL import Image

from pipeline.data.source import SourceError, SourceIndex, photograph_key
from pipeline.graph import StageError
from stages.source import resolve_location


def index_of(photographs: Path, folder: Path, **settings: object) -> SourceIndex:
    artifact = listed(photographs, folder, **settings)
    return SourceIndex(artifact.folder, Path(artifact.manifest.summary["root"]))


def test_index_names_every_photograph_by_the_hash_of_its_path(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 7)

    index = index_of(photographs, tmp_path / "out")

    expected = {f"class{number % 3}/photograph {number}.png" for number in range(7)}
    assert {index.name(number) for number in range(7)} == expected
    for number in range(7):
        assert index.key(number) == f"{photograph_key(index.relative_path(number)):016x}"
        assert index.path(number).stat().st_size == index.sizes[number]
    assert index.keys.tolist() == sorted(index.keys.tolist())
    # sha256(b"class0/photograph 0.png")
    assert f"{photograph_key(b'class0/photograph 0.png'):016x}" == "ab94f2b120422d79"


def test_listing_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    write_photographs(tmp_path / "a", 6)
    for number in reversed(range(6)):
        source = tmp_path / "a" / f"class{number % 3}" / f"photograph {number}.png"
        target = tmp_path / "b" / source.relative_to(tmp_path / "a")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())

    first = listed(tmp_path / "a", tmp_path / "out_a")
    second = listed(tmp_path / "b", tmp_path / "out_b")

    assert first.identity == second.identity
    for name in ("index.npy", "paths.bin"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_location_is_in_no_fingerprint(tmp_path: Path) -> None:
    here, there = listing_stage(tmp_path / "a"), listing_stage(tmp_path / "b")

    assert here.fingerprint({}) == there.fingerprint({})
    other = listing_stage(tmp_path / "a", validation_images=3)
    assert here.fingerprint({}) != other.fingerprint({})


def test_validation_is_kept_out_by_a_hash_of_the_key(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 12)

    few = index_of(photographs, tmp_path / "few", validation_images=2)
    more = index_of(photographs, tmp_path / "more", validation_images=5)

    assert few.validation.sum() == 2
    assert more.validation.sum() == 5
    assert not (few.validation & ~more.validation).any()


def test_validation_takes_only_photographs_that_every_task_can_crop(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", 9, height=20)
    for number in (100, 101, 102):
        Image.fromarray(photograph(number)).save(tmp_path / "in" / f"large{number}.png")

    index = index_of(tmp_path / "in", tmp_path / "out", validation_images=2)

    chosen = [index.name(number) for number in np.flatnonzero(index.validation)]
    assert len(chosen) == 2
    assert all(name.startswith("large") for name in chosen)


def test_held_out_patterns_choose_validation(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)

    index = index_of(photographs, tmp_path / "out", held_out=("class1/*",))

    chosen = {index.name(number) for number in np.flatnonzero(index.validation)}
    assert chosen == {"class1/photograph 1.png", "class1/photograph 4.png"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": ("class1/*", "val/*")}, r"held_out: val/\* matches no photograph"),
        ({"held_out": ("*",)}, r"no other photograph is readable and at least 32 pixels"),
        ({"validation_images": 6}, r"validation_images: 6 would keep all 6 .*; use at most 5"),
        ({"largest_crop": 41}, r"0 of 6 photographs can be used .*at least 41 pixels per side"),
    ],
)
def test_a_choice_that_leaves_a_side_empty_is_an_error(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    photographs = write_photographs(tmp_path / "in", 6)

    with pytest.raises(StageError, match=message):
        listed(photographs, tmp_path / "out", **settings)


def test_one_usable_photograph_is_an_error_that_says_what_is_wrong_with_others(
    tmp_path: Path,
) -> None:
    photographs = write_photographs(tmp_path / "in", 1)
    (photographs / "text.jpg").write_text("no photograph")

    with pytest.raises(StageError, match=r"1 of 2 .* at least 2; text.jpg: not an image"):
        listed(photographs, tmp_path / "out", validation_images=1)


def test_a_folder_without_photographs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")

    with pytest.raises(StageError, match=r"no photograph in it, at any depth \(1 other files\)"):
        listed(tmp_path, tmp_path / ".out")


def test_a_missing_folder_and_a_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")

    with pytest.raises(StageError, match="nowhere: no such folder"):
        listed(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(StageError, match=r"photo.png: not a folder"):
        listed(tmp_path / "photo.png", tmp_path / "out")


def test_odd_names_are_listed_and_read(tmp_path: Path) -> None:
    names = [
        b'it\'s "quoted".png',
        "grüße 写真.png".encode(),
        b"not-utf8-\xff\xe9.png",
        b"n\nl.png",
    ]
    for number, name in enumerate(names):
        image = tmp_path / "plain.png"
        Image.fromarray(photograph(number)).save(image)
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(os.fsencode(image), os.path.join(os.fsencode(tmp_path / "in"), name))

    index = index_of(tmp_path / "in", tmp_path / "out")

    assert {index.relative_path(number) for number in range(4)} == set(names)
    assert all(index.path(number).is_file() for number in range(4))
    assert all(index.name(number).encode("utf-8") for number in range(4))


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 3)
    (photographs / "loop").symlink_to(photographs)
    (photographs / "a link").symlink_to(photographs / "class1")
    (photographs / "itself.png").symlink_to(photographs / "itself.png")
    (photographs / "broken.png").symlink_to(photographs / "nowhere.png")
    outside = write_photographs(tmp_path / "elsewhere", 2)
    (photographs / "more").symlink_to(outside)

    artifact = listed(photographs, tmp_path / "out", validation_images=1)

    summary = artifact.manifest.summary
    assert summary["images"] == 5
    assert [each["path"] for each in summary["unreadable"]] == ["broken.png", "itself.png"]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 3)
    (photographs / "._photograph 0.png").write_bytes(b"resource fork")
    (photographs / ".cache").mkdir()
    Image.fromarray(photograph(0)).save(photographs / ".cache" / "thumbnail.png")
    (photographs / "LICENSES.md").write_text("CC0")

    summary = listed(photographs, tmp_path / "out", validation_images=1).manifest.summary

    assert (summary["images"], summary["other_files"]) == (3, 1)


def test_a_changed_folder_makes_the_listing_stale(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    stage = listing_stage(photographs)
    artifact = execute(stage, tmp_path / "out")
    assert artifact is not None
    assert stage.stale is not None
    assert stage.stale(stage.config, artifact.manifest) is None

    Image.fromarray(photograph(9)).save(photographs / "class1" / "another.png")

    assert "class1 changed since" in str(stage.stale(stage.config, artifact.manifest))
    moved = listing_stage(tmp_path / "moved")
    assert "listed from" in str(stage.stale(moved.config, artifact.manifest))


def test_photographs_may_be_deleted_once_they_are_corrupted(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    stage = listing_stage(photographs)
    artifact = execute(stage, tmp_path / "out")
    assert artifact is not None

    photographs.rename(tmp_path / "gone")

    assert stage.stale is not None
    assert stage.stale(stage.config, artifact.manifest) is None


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def test_photographs_that_nobody_may_list_are_an_error_and_make_nothing_stale(
    public: Path,
) -> None:
    photographs = write_photographs(public / "closed" / "in", 6)
    stage = listing_stage(photographs)
    artifact = execute(stage, public / "out")
    assert artifact is not None
    assert stage.stale is not None
    (public / "new").mkdir(mode=0o777)

    for closed in (photographs, photographs.parent):
        closed.chmod(0)
        try:
            with as_nobody():
                with pytest.raises(
                    StageError, match=rf"^{photographs}: Permission denied; .*again"
                ):
                    execute(stage, public / "new")
                assert stage.stale(stage.config, artifact.manifest) is None
        finally:
            closed.chmod(0o755)


def test_a_folder_that_nobody_may_list_is_left_out_and_listed(public: Path) -> None:
    photographs = write_photographs(public / "in", 6)
    (public / "new").mkdir()
    (public / "new").chmod(0o777)

    (photographs / "class1").chmod(0)
    try:
        with as_nobody():
            summary = listed(photographs, public / "new").manifest.summary
    finally:
        (photographs / "class1").chmod(0o755)

    assert (summary["images"], summary["unreadable_found"]) == (4, 1)
    assert summary["unreadable"] == [{"path": "class1", "reason": "permission denied"}]


def test_a_full_disk_and_a_read_only_one_are_named(public: Path) -> None:
    photographs = write_photographs(public / "in", 6)
    folder = public / "out"
    folder.mkdir()

    with largest_file(64), pytest.raises(StageError, match=rf"^{folder}: File too large; .*again"):
        execute(listing_stage(photographs), folder)
    folder.chmod(0o555)
    with as_nobody(), pytest.raises(StageError, match=rf"^{folder}.*: Permission denied; .*again"):
        execute(listing_stage(photographs), folder)

    assert list(folder.iterdir()) == []


def test_an_index_of_another_version_is_an_error(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    artifact = listed(photographs, tmp_path / "out")
    np.save(artifact.folder / "index.npy", np.zeros(6))

    with pytest.raises(SourceError, match=r"index.npy: not an index of this version"):
        SourceIndex(artifact.folder, photographs)


def test_an_interrupted_listing_begins_again(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    whole = listed(photographs, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".paths.bin.spool").write_bytes(b"half a path")
    (tmp_path / "out" / "paths.bin").write_bytes(b"of another attempt")

    again = listed(photographs, tmp_path / "out")

    assert again.manifest.files == whole.manifest.files
    assert not list(again.folder.glob(".*"))


def test_package_locations_are_inside_the_package() -> None:
    assert (resolve_location("package:assets/photos") / "chelsea.png").is_file()
    assert resolve_location("photos") == Path.cwd() / "photos"


def test_stage_modules_import_no_torch_and_no_numpy() -> None:
    code = (
        "import sys, stages.source, stages.corrupt; "
        "print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )

    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )

    assert printed.stdout.strip() == "[]"
