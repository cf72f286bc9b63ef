import os
from pathlib import Path

import datasets
import pyarrow
import pytest
from data_samples import (
    corrupted,
    corrupting_stage,
    execute,
    imported_by,
    listed,
    listing_stage,
    shard_bytes,
)
from pyarrow import parquet
from source_samples import (
    contents_of,
    encoded_photographs,
    tar_bytes,
    write_folder,
)

from pipeline.artifacts import Artifact
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex
from pipeline.graph import StageError

PHOTOGRAPHS = encoded_photographs(9)
ROWS = [{"bytes": content, "path": f"/made/at/{name}"} for name, content in PHOTOGRAPHS.items()]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_parquet(folder: Path, rows: list[dict], names: tuple[str, ...]) -> None:
    """The rows in files of equal parts, as the Hub has them."""
    folder.mkdir(parents=True)
    each = -(-len(rows) // len(names))
    for number, name in enumerate(names):
        part = rows[number * each : (number + 1) * each]
        table = {"image": part, "label": list(range(len(part)))}
        dataset = datasets.Dataset.from_dict(table, features=FEATURES)
        dataset.to_parquet(folder / name)
        written = parquet.read_table(folder / name)
        parquet.write_table(written, folder / name, row_group_size=2)


def index_in(artifact: Artifact) -> SourceIndex:
    return SourceIndex(artifact.folder, artifact.manifest.summary["root"])


def numbered(part: str, names: list[str], first: int = 0) -> list[str]:
    return [f"{part}/{first + row}/{name.split('/')[-1]}" for row, name in enumerate(names)]


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


def test_rows_without_bytes_are_listed(tmp_path: Path) -> None:
    rows = [*ROWS, {"bytes": None, "path": "elsewhere.png"}, None]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "a.parquet")

    summary = listed(tmp_path / "a.parquet", tmp_path / "out").manifest.summary

    assert summary["images"] == len(PHOTOGRAPHS)
    assert [each["path"] for each in summary["unreadable"]] == [
        "a.parquet/10",
        "a.parquet/9/elsewhere.png",
    ]
    assert "no bytes in the dataset" in summary["unreadable"][0]["reason"]


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_files_that_rows_name_are_read_where_they_are(tmp_path: Path, form: str) -> None:
    write_folder(tmp_path / "in", PHOTOGRAPHS)
    named = {str(tmp_path / "in" / name): PHOTOGRAPHS[name] for name in sorted(PHOTOGRAPHS)}
    path, part = f"hf:{tmp_path}/in", "train"
    if form == "parquet":
        rows = [{"bytes": None, "path": each} for each in named]
        rows[4]["bytes"] = named[rows[4]["path"]]  # bytes between files
        path, part = tmp_path / "a.parquet", "a.parquet"
        parquet.write_table(pyarrow.table({"image": rows}), path)

    index = index_in(listed(path, tmp_path / "out"))

    expected = dict(zip(numbered(part, list(named)), named.values(), strict=True))
    assert contents_of(index) == expected
    changed = index.path(next(at for at in range(9) if index.path(at).suffix != ".arrow"))
    changed.write_bytes(changed.read_bytes() + b"more")
    with pytest.raises(SourceError, match=rf"{changed}: has \d+ bytes, .*: the source changed"):
        contents_of(SourceIndex(index.folder, index.root))  # no file of it is open


def test_parquet_files_without_rows_are_left_out(tmp_path: Path) -> None:
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    for name, rows in (("a", ROWS[:4]), ("b", []), ("c", ROWS[4:])):
        table = pyarrow.table({"image": pyarrow.array(rows, kind)})
        parquet.write_table(table, tmp_path / f"{name}.parquet")

    index = index_in(listed(tmp_path / "*.parquet", tmp_path / "out"))

    names = list(PHOTOGRAPHS)
    assert contents_of(index).keys() == {
        *numbered("a.parquet", names[:4]),
        *numbered("c.parquet", names[4:]),
    }
    with pytest.raises(StageError, match=r"b.parquet: no rows; write the dataset again"):
        listed(tmp_path / "b.parquet", tmp_path / "none")


def test_the_cause_of_an_error_of_datasets_is_quoted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", ROWS[:4], ("a.parquet",))
    parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "in" / "b.parquet")

    with pytest.raises(StageError, match=r"occurred while generating the dataset.*: .*other"):
        listed(tmp_path / "in" / "*.parquet", tmp_path / "out")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1]}, r"no column of images; one is needed. The columns are label: make"),
        ({"a": ROWS[:1], "b": ROWS[:1]}, r"the columns a and b are images; one is needed"),
    ],
)
def test_a_dataset_has_one_column_of_images(
    tmp_path: Path, columns: dict[str, list], message: str
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)

    with pytest.raises(StageError, match=message):
        listed(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "{}/broken.parquet",
            r"broken.parquet: Parquet magic bytes .*; repair or replace the file",
        ),
        (
            "{}/in/a::b.parquet",
            r"a::b.parquet: `datasets` takes :: for .*; rename it",
        ),
        ("{}/none-*.parquet", r"none-\*.parquet: no such file"),
        ("hf:{}/in@test", r"can't be loaded: Unknown split .test.. Should be one of \['train'\]"),
        ("hf:nobody/nothing", r"hf:nobody/nothing@train: can't be loaded: .*OfflineMode"),
    ],
)
def test_what_can_not_be_loaded_is_an_error(tmp_path: Path, path: str, message: str) -> None:
    write_parquet(tmp_path / "in", ROWS, ("a.parquet",))
    (tmp_path / "in" / "a::b.parquet").hardlink_to(tmp_path / "in" / "a.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet PAR1?")

    with pytest.raises(StageError, match=message):
        listed(path.format(tmp_path), tmp_path / "out")


def test_a_cache_that_was_emptied_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.parquet"
    write_parquet(path.parent, ROWS, (path.name,))
    stage = listing_stage(path)
    source = execute(stage, tmp_path / "out")
    assert source is not None
    index_in(source).path(0).unlink()

    message = r"arrow: is gone: the cache of datasets .* HF_HOME must be .*--until source@"
    with pytest.raises(StageError, match=message):
        execute(corrupting_stage("denoise30", path), tmp_path / "noise", {"source": source})

    os.utime(path, ns=(1, 1))
    assert stage.stale is not None
    assert stage.stale(stage.config, source.manifest) == f"{path} changed since it was listed"
