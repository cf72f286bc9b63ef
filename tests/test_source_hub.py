"""Datasets of the Hugging Face Hub: their names, and what a Hub on this machine answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import listing_stage
from source_samples import web_server

from pipeline.config_file import ConfigError
from pipeline.data.patterns import NamedDataset, parse_dataset


@pytest.mark.parametrize(
    ("path", "subset", "split"),
    [
        ("hf:a/b", None, "train"),
        ("hf:a/b@test", None, "test"),
        ("hf:a/b:few@train+test", "few", "train+test"),
        ("hf:a/b:few", "few", "train"),
    ],
)
def test_a_path_names_dataset_subset_and_split(path: str, subset: str | None, split: str) -> None:
    named = parse_dataset(path)

    assert named == NamedDataset(name="a/b", subset=subset, split=split, revision=None)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf:a/b@train[:50%]", r"only whole splits are read, such as hf:a/b@train; save the part"),
        (
            "hf:a/b:few@test[3:7]",
            r"load_dataset\('a/b', 'few', split=\"test\[3:7\]\"\)\.to_parquet",
        ),
        ("hf:a/b@train[:9%](closest)", "only whole splits are read"),
        ("hf:@train", "names no dataset"),
    ],
)
def test_a_dataset_that_can_not_be_read_is_refused_before_anything_is_made(
    path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^sources.photos.path: .*{message}"):
        listing_stage(path)


GATED = """
import sys
from pathlib import Path
from data_samples import listed
from pipeline.graph import StageError
try:
    listed("hf:somebody/closed", Path(sys.argv[1]))
except StageError as error:
    print(error)
"""


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_dataset_gives_the_two_steps(tmp_path: Path, status: int) -> None:
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
    card = "/datasets/somebody/closed/resolve/main/README.md"
    faults = {path: [str(status)] * 9 for path in (card, "/api/datasets/somebody/closed")}
    with web_server({}, faults=faults, headers=headers) as (address, asked):
        done = subprocess.run(
            [sys.executable, "-c", GATED, str(tmp_path / "out")],
            cwd=Path(__file__).parents[1],
            env=os.environ
            | {
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_OFFLINE": "0",
                "PYTHONPATH": "tests",
            },
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert done.returncode == 0, done.stderr
    assert card in asked
    assert done.stdout.strip() == (
        "hf:somebody/closed: a gated dataset. Two steps: accept its terms on "
        f"{address}/datasets/somebody/closed, then log in here with `hf auth login`; "
        "and run the same command again"
    )
