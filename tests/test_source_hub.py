"""Datasets of the Hugging Face Hub: their names, and what a Hub on this machine answers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow
import pytest
from data_samples import listed, listing_stage
from pyarrow import parquet
from source_samples import encoded_photographs, web_server

from pipeline.config_file import ConfigError
from pipeline.data.patterns import NamedDataset, parse_dataset
from pipeline.graph import StageError

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("path", "name", "subset", "split", "revision"),
    [
        ("hf:a/b", "a/b", None, "train", None),
        ("hf:a/b@test", "a/b", None, "test", None),
        ("hf:a/b:few@train+test", "a/b", "few", "train+test", None),
        ("hf:a/b:few@test#refs/pr/3", "a/b", "few", "test", "refs/pr/3"),
        ("hf:/folder #1@train", "/folder #1", None, "train", None),
    ],
)
def test_a_path_names_dataset_subset_split_and_revision(
    path: str, name: str, subset: str | None, split: str, revision: str | None
) -> None:
    named = parse_dataset(path)

    assert named == NamedDataset(name=name, subset=subset, split=split, revision=revision)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf:a/b@train[:50%]", r"only whole splits are read, such as hf:a/b@train; save the part"),
        (
            "hf:a/b:few@test[3:7]",
            r"load_dataset\('a/b', 'few', split=\"test\[3:7\]\"\)\.to_parquet",
        ),
        ("hf:a/b@train[:9%](closest)", "only whole splits are read"),
        ("hf:a/b#v1", "a revision comes after a split; write it as hf:owner/name@split#revision"),
        ("hf:@train", "names no dataset"),
    ],
)
def test_a_dataset_that_can_not_be_read_is_refused_before_anything_is_made(
    path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^sources.photos.path: .*{message}"):
        listing_stage(path)


LISTED = """
import json
import sys
from pathlib import Path
from data_samples import listed
from pipeline.graph import StageError
try:
    print(json.dumps(listed(sys.argv[1], Path(sys.argv[2])).manifest.summary))
except StageError as error:
    print(error)
"""


def listed_elsewhere(path: str, folder: Path, endpoint: str, *, offline: bool = False) -> str:
    """What a process of its own, which alone can have its own Hub, prints of a listing."""
    done = subprocess.run(
        [sys.executable, "-c", LISTED, path, str(folder / "out")],
        cwd=Path(__file__).parents[1],
        env=os.environ
        | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "PYTHONPATH": "tests",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@contextmanager
def hub(revision: str, content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A Hub with one dataset, some/photographs: `content` in one parquet file."""
    card = b"---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
    name, api = "/datasets/some/photographs", "/api/datasets/some/photographs"
    entry = {"type": "file", "path": "train.parquet", "size": len(content), "oid": "0" * 40}
    files = {
        f"{name}/resolve/{revision}/README.md": card,
        f"{name}/resolve/{COMMIT}/train.parquet": content,
        f"{api}/revision/{COMMIT}": json.dumps({"id": "some/photographs"}).encode(),
        f"{api}/tree/{COMMIT}?recursive=false&expand=false": json.dumps([entry]).encode(),
    }
    headers = {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"}

    def tag(path: str) -> None:  # by which the client tells files apart
        headers["ETag"] = path.rpartition("/")[2]

    with web_server(files, headers=headers, before=tag) as server:
        yield server


def test_a_revision_is_read_and_its_commit_recorded(tmp_path: Path) -> None:
    photographs = encoded_photographs(3)
    rows = [{"bytes": content, "path": name} for name, content in photographs.items()]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "a.parquet")
    path = "hf:some/photographs@train"

    with hub("v1", (tmp_path / "a.parquet").read_bytes()) as (address, asked):
        summary = json.loads(listed_elsewhere(f"{path}#v1", tmp_path, address))
        unknown = listed_elsewhere(f"{path}#v2", tmp_path, address, offline=True)
        known = json.loads(listed_elsewhere(f"{path}#{COMMIT}", tmp_path, address, offline=True))

    assert "/datasets/some/photographs/resolve/v1/README.md" in asked
    assert summary["commit"] == known["commit"] == COMMIT
    assert summary["bytes"] == sum(map(len, photographs.values()))
    assert unknown == (
        f"{path}#v2: the Hub doesn't answer, and what is in the cache of datasets is the commit "
        f"{COMMIT}; name that one, or run the same command again where the Hub answers"
    )


def test_a_folder_has_no_commit_and_no_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"bytes": content, "path": name} for name, content in encoded_photographs(3).items()]
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "in" / "train.parquet")

    summary = listed(f"hf:{tmp_path}/in@train", tmp_path / "out").manifest.summary

    assert "commit" not in summary
    with pytest.raises(StageError, match=r"a folder has no revisions; leave #v1 out"):
        listed(f"hf:{tmp_path}/in@train#v1", tmp_path / "out")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_dataset_gives_the_two_steps(tmp_path: Path, status: int) -> None:
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
    card = "/datasets/somebody/closed/resolve/main/README.md"
    faults = {path: [str(status)] * 9 for path in (card, "/api/datasets/somebody/closed")}
    with web_server({}, faults=faults, headers=headers) as (address, asked):
        printed = listed_elsewhere("hf:somebody/closed", tmp_path, address)

    assert card in asked
    assert printed == (
        "hf:somebody/closed: a gated dataset. Two steps: accept its terms on "
        f"{address}/datasets/somebody/closed, then log in here with `hf auth login`; "
        "and run the same command again"
    )
