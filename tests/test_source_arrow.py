from pathlib import Path

import datasets
import pyarrow
import pytest
from arrow_samples import PHOTOGRAPHS, ROWS, index_in, numbered, write_parquet
from data_samples import (
    corrupted,
    execute,
    imported_by,
    listed,
    listing_stage,
    shard_bytes,
)
from pyarrow import parquet
from source_samples import (
    contents_of,
    tar_bytes,
    write_folder,
)

from pipeline.data import folder_tree

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def test_photographs_in_parquet_files_are_byte_identical(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", ROWS, ("b.parquet", "a.parquet", "c.parquet"))

    artifact = listed(tmp_path / "in" / "*.parquet", tmp_path / "out")

    names = list(PHOTOGRAPHS)
    expected = dict(
        zip(
            numbered("b.parquet", names[:3])
            + numbered("a.parquet", names[3:6])
            + numbered("c.parquet", names[6:]),
            PHOTOGRAPHS.values(),
            strict=True,
        )
    )
    assert contents_of(index_in(artifact)) == expected


def test_names_that_look_like_patterns_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a [x] {y,z}?*"
    write_parquet(folder, ROWS, ("a[1].parquet", "a{1,2}.parquet", "b*.parquet"))
    monkeypatch.chdir(folder)

    one = index_in(listed("a[1].parquet", tmp_path / "one"))
    all_three = index_in(listed("*.parquet", tmp_path / "all"))

    assert sorted(contents_of(one).values()) == sorted(list(PHOTOGRAPHS.values())[:3])
    assert sorted(contents_of(all_three).values()) == sorted(PHOTOGRAPHS.values())


def test_photographs_of_a_dataset_are_byte_identical(tmp_path: Path) -> None:
    parts = tuple(f"train-0000{number}-of-00002.parquet" for number in range(2))
    write_parquet(tmp_path / "in" / "data", ROWS, parts)

    artifact = listed(f"hf:{tmp_path}/in", tmp_path / "out")

    expected = dict(zip(numbered("train", list(PHOTOGRAPHS)), PHOTOGRAPHS.values(), strict=True))
    index = index_in(artifact)
    assert contents_of(index) == expected
    place = index.path(0)
    assert place.suffix == ".arrow"
    for number in range(len(index)):
        content = expected[index.name(number)]
        assert place.read_bytes().count(content) == 1
        assert int(index._rows["offset"][number]) == place.read_bytes().index(content)


def test_a_subset_of_a_dataset_is_named_after_a_colon(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "all", ROWS, ("train.parquet",))
    write_parquet(tmp_path / "in" / "few", ROWS[:3], ("train.parquet",))
    subsets = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("all", "few"))
    (tmp_path / "in" / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")

    artifact = listed(f"hf:{tmp_path}/in:few@train", tmp_path / "out")

    assert contents_of(index_in(artifact)).keys() == set(numbered("train", list(PHOTOGRAPHS)[:3]))


def test_a_dataset_of_many_batches_and_files_is_byte_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "MAX_SHARD_SIZE", "2KB")
    write_parquet(tmp_path / "in", ROWS, ("validation.parquet",))

    artifact = listed(f"hf:{tmp_path}/in@validation", tmp_path / "out")

    index = index_in(artifact)
    expected = dict(
        zip(numbered("validation", list(PHOTOGRAPHS)), PHOTOGRAPHS.values(), strict=True)
    )
    assert contents_of(index) == expected
    assert len({index.path(number) for number in range(len(index))}) > 1


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()], ids=str)
def test_parquet_of_other_writers_is_read(tmp_path: Path, kind: pyarrow.DataType) -> None:
    column = pyarrow.array(ROWS, pyarrow.struct({"bytes": kind, "path": pyarrow.string()}))
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.table({"picture": column}), tmp_path / "in" / "a.parquet")

    index = index_in(listed(tmp_path / "in" / "a.parquet", tmp_path / "out"))

    assert sorted(contents_of(index).values()) == sorted(PHOTOGRAPHS.values())


def test_one_set_of_photographs_gives_the_same_crops_whatever_its_form(tmp_path: Path) -> None:
    """The form is part of the names, these give the keys and the keys the places of crops: a
    folder whose names are those of the tar or of the parquet file gives the same shards."""
    write_folder(tmp_path / "tars", {"x.tar": tar_bytes(PHOTOGRAPHS)})
    write_parquet(tmp_path / "parquet", ROWS, ("x.parquet",))
    rows = dict(zip(numbered("x.parquet", list(PHOTOGRAPHS)), PHOTOGRAPHS.values(), strict=True))
    forms = {
        "tars/x.tar": {f"x.tar/{name}": content for name, content in PHOTOGRAPHS.items()},
        "parquet/x.parquet": rows,
    }

    for path, as_folder in forms.items():
        folder = write_folder(tmp_path / "as_folder" / path.partition("/")[0], as_folder)
        here, there = (
            corrupted("sr3", source, tmp_path / name / path)
            for name, source in (("here", tmp_path / path), ("there", folder))
        )
        assert shard_bytes(here.folder) == shard_bytes(there.folder)
        assert here.manifest.summary["train_samples"] == 21


def test_reading_needs_no_library_of_formats(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", ROWS, ("x.parquet",))
    folder = listed(tmp_path / "in" / "x.parquet", tmp_path / "out").folder

    modules = imported_by(
        "from pathlib import Path\n"
        "from pipeline.data.source_index import SourceIndex\n"
        f"assert SourceIndex(Path({str(folder)!r}), '').photograph(3).shape == (40, 44, 3)"
    )

    assert not {"torch", "webdataset", "datasets", "pyarrow", "huggingface_hub"} & modules


@pytest.mark.parametrize("most_named", [10_000, 1])
def test_a_folder_that_is_a_dataset_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_named: int
) -> None:
    monkeypatch.setattr(folder_tree, "MOST_NAMED", most_named)
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "in" / "data", ROWS[:4], ("train.parquet",))
    (tmp_path / "in" / "nowhere").symlink_to("gone")
    stage = listing_stage("hf:in")
    artifact = execute(stage, tmp_path / "out")
    assert artifact is not None
    assert stage.stale is not None
    assert stage.stale(stage.config, artifact.manifest) is None
    whole = tmp_path / "in" / "data" / "train.parquet"

    write_parquet(tmp_path / "all", ROWS[:8], ("train.parquet",))
    whole.write_bytes((tmp_path / "all" / "train.parquet").read_bytes())  # no folder's time tells

    changed = whole if most_named > 1 else tmp_path / "in"
    assert stage.stale(stage.config, artifact.manifest) == f"{changed} changed since it was listed"
    again = execute(stage, tmp_path / "again")
    assert again is not None
    assert again.manifest.summary["images"] == 8
    (tmp_path / "in").rename(tmp_path / "moved")
    assert stage.stale(stage.config, again.manifest) is None
    (tmp_path / "in").mkdir()  # where it should be mounted
    assert stage.stale(stage.config, again.manifest) is None
