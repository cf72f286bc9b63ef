"""Finished shards, read at random through memory maps. Never imports torch nor webdataset."""

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts import JSON
from pipeline.data.shards import (
    BLOCK,
    DESCRIPTION_BYTES,
    MAKE_AGAIN,
    NPY_HEADER_BYTES,
    ShardError,
    ShardRecord,
    npy_member_bytes,
    read_record,
    shard_name,
)

MAPS_KEPT = 256  # shards that a process keeps mapped; each takes a file descriptor


class ShardReader:
    """The finished shards of one split, in the order of their numbers."""

    def __init__(self, folder: Path, records: Sequence[ShardRecord]) -> None:
        self.folder = folder
        self.records = tuple(records)
        self._maps: OrderedDict[int, _MappedShard] = OrderedDict()

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[Path, tuple[ShardRecord, ...]]]:
        return (ShardReader, (self.folder, self.records))  # maps are not for other processes

    @property
    def counts(self) -> list[int]:
        return [record.samples for record in self.records]

    @property
    def stores_corrupted(self) -> bool:
        """Whether the corrupted images are here; where not, noise is drawn on the clean ones."""
        return any("corrupted" in record.images for record in self.records)

    def images(self, name: str, shards: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(N, height, width, channels) uint8 of the samples at `places` of `shards`."""
        gathered: np.ndarray | None = None
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            part = self._mapped(shard).images(name, places[here])
            if gathered is None:
                gathered = np.empty((len(shards), *part.shape[1:]), np.uint8)
            gathered[here] = part
        assert gathered is not None, "no samples asked for"
        return gathered

    def keys(self, shards: np.ndarray, places: np.ndarray) -> list[str]:
        pairs = zip(shards.tolist(), places.tolist(), strict=True)
        return [self._mapped(shard).key(place) for shard, place in pairs]

    def descriptions(self, shards: np.ndarray, places: np.ndarray) -> list[dict[str, JSON]]:
        """The json of each sample."""
        pairs = zip(shards.tolist(), places.tolist(), strict=True)
        return [self._mapped(shard).description(place) for shard, place in pairs]

    def _mapped(self, shard: int) -> "_MappedShard":
        if shard not in self._maps:
            if len(self._maps) >= MAPS_KEPT:
                self._maps.popitem(last=False)
            self._maps[shard] = _MappedShard(self.folder, self.records[shard])
        self._maps.move_to_end(shard)
        return self._maps[shard]


def open_shards(folder: Path, split: str) -> ShardReader:
    """The shards of `split` in `folder`, the artifact's `shards` folder."""
    found = {path.stem for path in folder.glob(f"{split}-*.json")}
    names = [shard_name(split, number) for number in range(len(found))]
    if not found or found != set(names):
        raise ShardError(
            f"{folder}: the shards of {split} are not complete ({len(found)} records found); "
            f"{MAKE_AGAIN}"
        )
    records = []
    for name in names:
        record = read_record(folder, name)
        if record is None:
            raise ShardError(
                f"{folder / name}.tar: missing, or not of the size that its record says; "
                f"{MAKE_AGAIN}"
            )
        records.append(record)
    return ShardReader(folder, records)


class _MappedShard:
    """One tar in memory, as far as the kernel keeps it there."""

    def __init__(self, folder: Path, record: ShardRecord) -> None:
        self._path = folder / record.file
        self._record = record
        try:
            # A plain array: every slice of a memmap object costs microseconds.
            self._bytes = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r"))
            self._offsets = np.load(folder / record.offsets) if record.offsets is not None else None
        except (OSError, ValueError) as error:
            raise ShardError(
                f"{self._path}: can't be opened ({error}); its record says that it was made: bring "
                f"it back, or {MAKE_AGAIN}"
            ) from error
        if len(self._bytes) != record.bytes:
            raise self._damaged(f"{len(self._bytes)} bytes, its record says {record.bytes}")
        for place in {0, record.samples - 1} if record.samples else ():
            begin = self._begin(place)
            if self._bytes[begin + 257 : begin + 262].tobytes() != b"ustar":
                raise self._damaged(f"sample {place} is not where its record says")
        self._columns = self._npy_columns() if record.samples and record.stride else {}

    def _npy_columns(self) -> dict[str, np.ndarray]:
        """The pixels of every sample, (samples, height · width · channels), by image."""
        record = self._record
        assert record.stride is not None
        samples = self._bytes[record.first :][: record.samples * record.stride]
        rows = samples.reshape(record.samples, record.stride)
        columns = {}
        begin = BLOCK + NPY_HEADER_BYTES
        for name, shape in record.images.items():
            columns[name] = rows[:, begin : begin + math.prod(shape)]
            begin += npy_member_bytes(shape)
        return columns

    def _damaged(self, what: str) -> ShardError:
        return ShardError(f"{self._path}: {what}; {MAKE_AGAIN}")

    def _begin(self, place: int) -> int:
        if self._offsets is not None:
            return int(self._offsets[place, 0, 0]) - BLOCK
        assert self._record.stride is not None
        return self._record.first + place * self._record.stride

    def key(self, place: int) -> str:
        begin = self._begin(place)
        return self._bytes[begin : begin + 100].tobytes().partition(b".")[0].decode("ascii")

    def description(self, place: int) -> dict[str, JSON]:
        if self._offsets is None:
            assert self._record.stride is not None
            end = self._begin(place) + self._record.stride
        else:
            offset, size = self._offsets[place, -1].tolist()
            end = offset + size + -size % BLOCK + BLOCK + DESCRIPTION_BYTES
        return json.loads(self._bytes[end - DESCRIPTION_BYTES : end].tobytes())

    def images(self, name: str, places: np.ndarray) -> np.ndarray:
        shape = self._record.images[name]
        if self._offsets is None:
            return self._columns[name][places].reshape(-1, *shape)
        column = list(self._record.images).index(name)
        images = [self._png(place, column) for place in places.tolist()]
        return np.stack(images).reshape(-1, *shape)

    def _png(self, place: int, column: int) -> np.ndarray:
        assert self._offsets is not None
        offset, size = self._offsets[place, column].tolist()
        content = BytesIO(self._bytes[offset : offset + size].tobytes())
        try:
            with Image.open(content, formats=("PNG",)) as image:
                return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise self._damaged(f"the png of sample {place} is damaged ({error})") from error
