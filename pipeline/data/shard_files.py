"""Where the tars of a corrupt stage are: beside their records, or in a copy of the run's folder
somewhere else. Never imports torch nor webdataset."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config import Runtime
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shard_streams import shard_url
from pipeline.data.shards import MAKE_AGAIN, ShardError, ShardRecord, is_whole

GIBIBYTE = 2**30


class ShardFiles(Protocol):
    """Where tars are."""

    def open(self, record: ShardRecord) -> int:
        """A file descriptor of the shard's tar, which the caller is to close."""
        ...

    def is_local(self, record: ShardRecord) -> bool:
        """Whether opening it fetches nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalFiles:
    """Tars beside their records."""

    folder: Path

    def open(self, record: ShardRecord) -> int:
        path = self.folder / record.file
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise ShardError(
                    f"{path}: {error.strerror}; allow this process more of them (ulimit -n)"
                ) from error
            raise ShardError(
                f"{path}: can't be opened ({error.strerror}); its record says that it was made: "
                f"bring it back, or {MAKE_AGAIN}"
            ) from error

    def is_local(self, record: ShardRecord) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class RemoteFiles:
    """Tars that are fetched through a cache, unless they are beside their records."""

    artifact_folder: Path
    base: str  # URL or path of the copy
    cache: ShardCache

    def open(self, record: ShardRecord) -> int:
        if self.is_local(record):
            return LocalFiles(folder=self._folder).open(record)
        return self.cache.open(self.url(record), record)

    def is_local(self, record: ShardRecord) -> bool:
        return is_whole(self._folder, record)

    def url(self, record: ShardRecord) -> str:
        folder = self.artifact_folder
        return shard_url(self.base, folder.parent.name, folder.name, record.file)

    @property
    def _folder(self) -> Path:
        return self.artifact_folder / "shards"


def shard_files(artifact_folder: Path, runtime: Runtime) -> ShardFiles:
    """Where the tars of a corrupt stage are, as `runtime` has it."""
    if runtime.shards_at is None:
        return LocalFiles(folder=artifact_folder / "shards")
    cache = ShardCache(
        runtime.shard_cache.expanduser(), limit=int(runtime.shard_cache_gib * GIBIBYTE)
    )
    base = runtime.shards_at
    if "://" not in base:
        base = str(Path(base).expanduser())
    return RemoteFiles(artifact_folder=artifact_folder, base=base, cache=cache)
