import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pytest
from arrow_samples import PHOTOGRAPHS, ROWS, index_in, numbered, write_parquet
from data_samples import (
    corrupting_stage,
    execute,
    job_of,
    listed,
    listing_stage,
)
from pyarrow import parquet
from source_samples import (
    contents_of,
    write_folder,
)

from pipeline.data import arrow_files
from pipeline.data.source import SourceError
from pipeline.data.source_index import SourceIndex
from pipeline.graph import StageError

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


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


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_signs_of_life_are_given_while_datasets_prepares_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Else the batch script takes a large dataset for a hang."""
    monkeypatch.setattr(arrow_files, "REPORT_SECONDS", 0.01)
    write_parquet(tmp_path / "in", ROWS, ("train.parquet",))
    told = threading.Event()
    owner, name = {
        "parquet": (datasets, "load_dataset"),
        "dataset": (datasets.DatasetBuilder, "download_and_prepare"),
    }[kind]
    prepare = getattr(owner, name)

    def slowly(*arguments: object, **options: object) -> object:
        (tmp_path / "more").write_bytes(bytes(arrow_files.REPORT_BYTES))
        assert told.wait(20)
        return prepare(*arguments, **options)

    monkeypatch.setattr(owner, name, slowly)
    stage = listing_stage(
        f"hf:{tmp_path}/in" if kind == "dataset" else tmp_path / "in" / "train.parquet"
    )
    job = job_of(stage, tmp_path / "out")

    stage.run(replace(job, progress=lambda done, total, note: "GB prepared" in note and told.set()))

    threads = {thread.name for thread in threading.enumerate()}
    assert "telling" not in threads


def test_a_folder_of_parquet_files_gives_the_pattern_that_names_them(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "table.parquet" / "year=1", ROWS[:4], ("part.0.parquet",))
    write_parquet(tmp_path / "in" / "plain", ROWS[4:], ("b.parquet",))
    said = {
        "": rf"no photograph .*2 of them parquet files\); .* to {tmp_path}/in/\*\*/\*.parquet;",
        "/table.parquet": r"^\S+/table.parquet: a folder; .*: \S+/table.parquet/\*\*/\*.parquet$",
        "/*.parquet": r"^\S+/table.parquet: a folder; .*: \S+/table.parquet/\*\*/\*.parquet$",
    }

    for number, (path, message) in enumerate(said.items()):
        with pytest.raises(StageError, match=message):
            listed(f"{tmp_path}/in{path}", tmp_path / f"refused {number}")
    every = index_in(listed(tmp_path / "in" / "**" / "*.parquet", tmp_path / "out"))
    one = index_in(listed(tmp_path / "in" / "table.parquet" / "**" / "*.parquet", tmp_path / "one"))

    assert sorted(contents_of(every).values()) == sorted(PHOTOGRAPHS.values())
    assert sorted(contents_of(one).values()) == sorted(list(PHOTOGRAPHS.values())[:4])


def test_a_parquet_file_that_the_disk_fails_to_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "in", ROWS[:4], ("a.parquet",))

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(parquet, "ParquetFile", fail)

    with pytest.raises(StageError, match=rf"^{tmp_path}/in/a.parquet: can't be read \(Input/out"):
        listed(tmp_path / "in" / "a.parquet", tmp_path / "out")
