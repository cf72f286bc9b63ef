"""Photographs in parquet files and datasets, as the Hub has them."""

from pathlib import Path

import datasets
from pyarrow import parquet
from source_samples import encoded_photographs

from pipeline.artifacts import Artifact
from pipeline.data.source_index import SourceIndex

PHOTOGRAPHS = encoded_photographs(9)
ROWS = [{"bytes": content, "path": f"/made/at/{name}"} for name, content in PHOTOGRAPHS.items()]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})


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
