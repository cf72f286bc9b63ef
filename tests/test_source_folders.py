import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from data_samples import (
    as_nobody,
    execute,
    index_of,
    largest_file,
    listed,
    listing_stage,
    photograph,
    write_photographs,
)
from PIL import Image

from pipeline.artifacts import read_manifest
from pipeline.data import folder_tree
from pipeline.graph import Stage, StageError


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


def test_links_to_listed_files_are_left_out_and_counted(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 3)
    outside = write_photographs(tmp_path / "elsewhere", 3)
    inside = photographs / "class1" / "photograph 1.png"
    (photographs / "a.png").symlink_to(inside)
    (photographs / "b.png").symlink_to(photographs / "a.png")
    (photographs / "more").symlink_to(outside / "class0")
    (photographs / "c.png").symlink_to(outside / "class0" / "photograph 0.png")
    for name in ("d.png", "e.png"):
        (photographs / name).symlink_to(outside / "class2" / "photograph 2.png")
    (photographs / ".hidden.png").write_bytes(inside.read_bytes())
    (photographs / "f.png").symlink_to(photographs / ".hidden.png")

    artifact = listed(photographs, tmp_path / "out", validation_images=1)

    names = set((artifact.folder / "paths.bin").read_text().split("\0")[:-1])
    own = {f"class{number}/photograph {number}.png" for number in range(3)}
    assert names == own | {"more/photograph 0.png", "d.png", "f.png"}
    assert artifact.manifest.summary["repeated_links"] == 4


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


def stale_after(stage: Stage, folder: Path, change: Callable[[], object]) -> str | None:
    artifact = execute(stage, folder)
    assert artifact is not None
    assert stage.stale is not None
    manifest = read_manifest(artifact.folder)  # as it is in JSON
    assert manifest is not None
    assert stage.stale(stage.config, manifest) is None
    change()
    return stage.stale(stage.config, manifest)


@pytest.mark.parametrize("most_named", [10_000, 2])
@pytest.mark.parametrize("name", ["train/c1", "grüße \\x41/c1", "not-utf8-\udcff/c1"])
def test_a_change_at_any_depth_makes_the_listing_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most_named: int
) -> None:
    monkeypatch.setattr(folder_tree, "MOST_NAMED", most_named)
    photographs = write_photographs(tmp_path / "in" / name, 6).parent.parent
    new = photographs / name / "class1" / "another.png"

    stale = stale_after(
        listing_stage(photographs),
        tmp_path / "out",
        lambda: Image.fromarray(photograph(9)).save(new),
    )

    where = folder_tree.path_text(os.fsencode(new.parent if most_named > 2 else photographs))
    assert stale == f"{where} changed since it was listed"


def test_a_change_behind_a_link_makes_the_listing_stale(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 3)
    outside = write_photographs(tmp_path / "elsewhere", 3)
    (photographs / "more").symlink_to(outside)

    stale = stale_after(
        listing_stage(photographs),
        tmp_path / "out",
        (outside / "class1" / "photograph 1.png").unlink,
    )

    assert stale == f"{photographs}/more/class1 changed since it was listed"


def test_what_a_link_led_to_and_is_gone_makes_the_listing_stale(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 3)
    outside = write_photographs(tmp_path / "elsewhere", 3)
    (photographs / "more").symlink_to(outside)

    stale = stale_after(
        listing_stage(photographs), tmp_path / "out", lambda: outside.rename(tmp_path / "gone")
    )

    assert stale == f"{photographs}/more changed since it was listed"


def test_to_look_for_changes_asks_once_for_each_folder_however_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    for number in range(1000):
        (photographs / "class1" / f"{number}.txt").touch()
        (photographs / f"{number}.txt").touch()
    asked: list[object] = []

    def counted(path: object, **options: bool) -> os.stat_result:
        asked.append(path)
        return stat(path, **options)

    stat = os.stat
    stage = listing_stage(photographs)
    count = partial(monkeypatch.setattr, os, "stat", counted)

    assert stale_after(stage, tmp_path / "out", count) is None

    folders = 4
    assert len(asked) <= folders + 2  # whether the root is there, and is a folder


def test_photographs_may_be_deleted_once_they_are_corrupted(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    stage = listing_stage(photographs)
    artifact = execute(stage, tmp_path / "out")
    assert artifact is not None

    photographs.rename(tmp_path / "gone")

    assert stage.stale is not None
    assert stage.stale(stage.config, artifact.manifest) is None
    photographs.mkdir()  # where they should be mounted
    (photographs / ".hidden").touch()
    assert stage.stale(stage.config, artifact.manifest) is None


def test_photographs_that_nobody_may_list_are_an_error_and_make_nothing_stale(
    public: Path,
) -> None:
    photographs = write_photographs(public / "closed" / "in", 6)
    stage = listing_stage(photographs)
    artifact = execute(stage, public / "out")
    assert artifact is not None
    assert stage.stale is not None
    (public / "new").mkdir()
    (public / "new").chmod(0o777)

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


def test_a_folder_that_nobody_may_list_stops_the_listing_unless_the_config_does_without(
    public: Path,
) -> None:
    photographs = write_photographs(public / "in", 6)
    (public / "new").mkdir()
    (public / "new").chmod(0o777)

    (photographs / "class1").chmod(0)
    try:
        with as_nobody():
            with pytest.raises(StageError, match=rf"^{photographs}/class1: permission denied; "):
                listed(photographs, public / "new")
            summary = listed(photographs, public / "new", skip_damaged=True).manifest.summary
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


def test_an_interrupted_listing_begins_again(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    whole = listed(photographs, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".paths.bin.spool").write_bytes(b"half a path")
    (tmp_path / "out" / "paths.bin").write_bytes(b"of another attempt")

    again = listed(photographs, tmp_path / "out")

    assert again.manifest.files == whole.manifest.files
    assert not list(again.folder.glob(".*"))
