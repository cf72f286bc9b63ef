import os
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    as_nobody,
    encoded,
    execute,
    imported_by,
    index_of,
    listed,
    listing_stage,
    photograph,
    write_photographs,
)
from PIL import Image
from source_samples import tar_bytes, write_folder

from pipeline.data import folder_tree
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex, photograph_key
from pipeline.graph import StageError
from stages.source import resolve_location


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

        os.utime(target, ns=(1, number))

    first = listed(tmp_path / "a", tmp_path / "out_a")
    second = listed(tmp_path / "b", tmp_path / "out_b")

    assert first.identity == second.identity
    for name in ("containers.json", "paths.bin"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    rows, others = (np.load(each.folder / "index.npy") for each in (first, second))
    assert set(rows["modified_ns"].tolist()).isdisjoint(others["modified_ns"].tolist())
    rows["modified_ns"] = others["modified_ns"]
    assert np.array_equal(rows, others)


def bitmap(seed: int, *, height: int = 80) -> bytes:
    """Uncompressed: all of one height have as many bytes."""
    return encoded(Image.fromarray(photograph(seed, height=height, width=80)), "BMP")


def test_a_photograph_swapped_for_one_of_equal_size_is_not_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", {f"{number}.bmp": bitmap(number) for number in range(4)})
    index = index_of(folder, tmp_path / "out")
    first = index.path(0)
    assert len(index.read(0)) == len(first.read_bytes())

    first.write_bytes(bitmap(9))

    with pytest.raises(
        SourceError, match=rf"{first}: was written to since it was listed: the source changed"
    ):
        index.read(0)


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("height", [20, 80])  # few bytes, all of which count; and many
def test_other_photographs_of_equal_size_are_another_identity(
    tmp_path: Path, form: str, height: int
) -> None:
    identities = []
    for number, seeds in enumerate([(0, 1, 2, 3), (0, 1, 9, 3), (0, 1, 2, 3)]):
        place = tmp_path / str(number)
        contents = {f"{at}.bmp": bitmap(seed, height=height) for at, seed in enumerate(seeds)}
        if form == "tar":
            contents = {"a.tar": tar_bytes(contents)}
        write_folder(place, contents)
        path = place / "a.tar" if form == "tar" else place
        identities.append(listed(path, tmp_path / f"out{number}", largest_crop=8).identity)

    assert identities[0] == identities[2] != identities[1]


def test_the_edges_of_photographs_do_not_hide_that_they_differ(tmp_path: Path) -> None:
    """As of scans with white borders, whose first and last bytes are all alike."""
    identities = []
    for seed in (1, 2):
        image = np.full((200, 200, 3), 255, np.uint8)
        image[60:140, 60:140] = photograph(seed, height=80, width=80)
        bordered = encoded(Image.fromarray(image), "BMP")
        folder = write_folder(tmp_path / str(seed), {"a.bmp": bordered, "b.bmp": bordered})
        identities.append(listed(folder, tmp_path / f"out{seed}", validation_images=1).identity)

    assert identities[0] != identities[1]


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


def test_a_task_of_a_larger_scale_moves_no_photograph_to_the_other_side(tmp_path: Path) -> None:
    """Else the shards of all other tasks would be made again."""
    for number in range(24):
        image = photograph(number, height=40 if number % 4 else 20, width=48)
        path = tmp_path / "in" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)

    few, more = (
        listed(
            tmp_path / "in",
            tmp_path / str(crop),
            largest_crop=crop,
            preferred_crop=40,
            validation_images=7,
        )
        for crop in (10, 40)
    )

    assert few.manifest.config != more.manifest.config
    assert few.identity == more.identity


def test_photographs_of_no_preferred_size_are_kept_for_validation_too(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)

    index = index_of(photographs, tmp_path / "out", preferred_crop=1000, validation_images=2)

    assert index.validation.sum() == 2


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


def test_an_index_of_another_version_is_an_error(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    artifact = listed(photographs, tmp_path / "out")
    np.save(artifact.folder / "index.npy", np.zeros(6))

    with pytest.raises(SourceError, match=r"index.npy: not an index of this version"):
        SourceIndex(artifact.folder, photographs)


def test_package_locations_are_inside_the_package() -> None:
    assert (resolve_location("package:assets/photos") / "chelsea.png").is_file()
    assert resolve_location("photos") == Path.cwd() / "photos"


def test_stage_modules_import_no_torch_and_no_numpy() -> None:
    assert not {"torch", "numpy", "PIL"} & imported_by("import stages.source, stages.corrupt")


@pytest.mark.parametrize("most_named", [10_000, 2])
def test_a_folder_that_is_opened_makes_the_listing_stale(
    public: Path, monkeypatch: pytest.MonkeyPatch, most_named: int
) -> None:
    monkeypatch.setattr(folder_tree, "MOST_NAMED", most_named)
    closed = write_photographs(public / "in", 6) / "class1"
    (public / "new").mkdir()
    (public / "new").chmod(0o777)
    closed.chmod(0)

    with as_nobody():
        stage = listing_stage(public / "in", skip_damaged=True)
        artifact = execute(stage, public / "new")
        before = stage.stale(stage.config, artifact.manifest)
    closed.chmod(0o755)
    with as_nobody():
        after = stage.stale(stage.config, artifact.manifest)

    where = closed if most_named > 2 else closed.parent
    assert (before, after) == (None, f"{where} changed since it was listed")
