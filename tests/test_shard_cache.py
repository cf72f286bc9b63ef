"""What a cache of shards keeps, deletes and finds out; where shards come from is in
test_shard_streams.py."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cache_samples import (
    BYTES,
    content_of,
    eventually,
    impatient,
    kept,
    names_of,
    read,
    record_of,
    write_shards,
)
from data_samples import as_nobody, imported_by, largest_file
from source_samples import web_server

from pipeline.data.file_locks import hold
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import ShardError


def test_a_shard_is_fetched_once_and_read_from_its_beginning(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    cache = impatient(tmp_path / "cache")

    first = read(cache, tmp_path / "copy" / record.file, record)
    shutil.rmtree(tmp_path / "copy")
    again = read(cache, tmp_path / "copy" / record.file, record)

    assert first == again == content_of(0)
    assert kept(tmp_path / "cache") == names_of(record)


def test_the_descriptor_does_not_write(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    cache = impatient(tmp_path / "cache")

    for _ in ("fetched", "found"):
        descriptor = cache.open(str(tmp_path / "copy" / record.file), record)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
        os.close(descriptor)


def test_two_runs_share_a_shard_and_a_changed_one_is_another(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", 2)
    other = write_shards(tmp_path / "other", 1)
    cache = impatient(tmp_path / "cache")

    read(cache, tmp_path / "one" / one[0].file, one[0])
    assert read(cache, tmp_path / "nowhere", other[0]) == content_of(0)
    read(cache, tmp_path / "one" / one[1].file, one[1])

    assert kept(tmp_path / "cache") == names_of(*one)


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    records = write_shards(tmp_path / "copy", 5)
    cache = impatient(tmp_path / "cache", shards=3)

    for record in records[:3]:
        read(cache, tmp_path / "copy" / record.file, record)
    assert cache.touch(records[0])
    read(cache, "no longer there", records[1])
    for record in records[3:]:
        read(cache, tmp_path / "copy" / record.file, record)

    assert kept(tmp_path / "cache") == names_of(records[1], *records[3:])
    assert not cache.touch(records[0])


def test_a_shard_in_use_stays_readable_after_it_made_room(tmp_path: Path) -> None:
    records = write_shards(tmp_path / "copy", 2)
    cache = impatient(tmp_path / "cache", shards=1)

    descriptor = cache.open(str(tmp_path / "copy" / records[0].file), records[0])
    read(cache, tmp_path / "copy" / records[1].file, records[1])

    assert kept(tmp_path / "cache") == names_of(records[1])
    assert os.pread(descriptor, BYTES + 1, 0) == content_of(0)
    os.close(descriptor)


def test_a_smaller_limit_holds_from_the_next_fetch_on(tmp_path: Path) -> None:
    records = write_shards(tmp_path / "copy", 5)
    for record in records[:4]:
        read(impatient(tmp_path / "cache", shards=4), tmp_path / "copy" / record.file, record)

    read(impatient(tmp_path / "cache", shards=2), tmp_path / "copy" / records[4].file, records[4])

    assert kept(tmp_path / "cache") == names_of(*records[3:])


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (content_of(0)[:700] + b"\0" + content_of(0)[701:], "SHA-256 differs"),
        (content_of(0)[:-1], "99,999 instead of 100,000 bytes"),
        (content_of(0) + b"\0", "100,001 instead of 100,000 bytes"),
        (b"", "0 instead of 100,000 bytes"),
    ],
    ids=["altered", "truncated", "longer", "empty"],
)
def test_damage_is_reported_and_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, damage: str
) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    path = tmp_path / "cache" / f"{record.sha256}.tar"
    path.parent.mkdir()
    path.write_bytes(content)

    assert read(impatient(tmp_path / "cache"), tmp_path / "copy" / record.file, record) == (
        content_of(0)
    )

    assert f"{path}: damaged ({damage}); it is fetched again" in caplog.messages
    assert path.read_bytes() == content_of(0)


def test_a_folder_deleted_underneath_is_made_again(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    cache = impatient(tmp_path / "some" / "cache")
    read(cache, tmp_path / "copy" / record.file, record)

    shutil.rmtree(tmp_path / "some")

    assert not cache.touch(record)
    assert read(cache, tmp_path / "copy" / record.file, record) == content_of(0)
    assert kept(cache.folder) == names_of(record)


def test_a_folder_deleted_during_a_fetch_costs_only_another_fetch(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cache = impatient(tmp_path / "cache")

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read, cache, pipe, record)
        with pipe.open("wb") as sender:
            shutil.rmtree(cache.folder)
            sender.write(content_of(0))
        assert reading.result() == content_of(0)

    assert not cache.touch(record)
    assert read(cache, tmp_path / "copy" / record.file, record) == content_of(0)


def test_a_shard_that_never_fits_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    cache = ShardCache(tmp_path / "cache", limit=BYTES - 1)

    with pytest.raises(ShardError, match=r"^runtime.shard_cache_gib: .* GiB are less than the"):
        read(cache, tmp_path / "copy" / record.file, record)


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)
    (tmp_path / "cache").write_text("mine")

    with pytest.raises(ShardError, match=r"cache: shards can't be cached there \(Not a directory"):
        read(impatient(tmp_path / "cache"), tmp_path / "copy" / record.file, record)


def test_a_folder_that_can_not_be_written_is_an_error(public: Path) -> None:
    (record,) = write_shards(public / "copy", 1)
    (public / "cache").mkdir(mode=0o555)

    with as_nobody(), pytest.raises(ShardError, match=r"\(Permission denied\); it must be a"):
        read(impatient(public / "cache"), public / "copy" / record.file, record)


def test_a_file_larger_than_allowed_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (record,) = write_shards(tmp_path / "copy", 1)

    with largest_file(4096), pytest.raises(ShardError, match=r"cached there \(File too large\)"):
        read(impatient(tmp_path / "cache"), tmp_path / "copy" / record.file, record)

    assert kept(tmp_path / "cache") == {".lock"}


FULL_DISK = """
import shutil, sys
from pathlib import Path
from cache_samples import content_of, impatient, read, write_shards
from pipeline.data.shards import ShardError

work, disk = Path(sys.argv[1]), Path(sys.argv[2])
records = write_shards(work / "copy", 8)
cache = impatient(disk / "cache", shards=100)
for number, record in enumerate(records):
    assert read(cache, work / "copy" / record.file, record) == content_of(number)
print("kept", [cache.touch(record) for record in records].count(True))
shutil.rmtree(cache.folder)
(disk / "other").write_bytes(bytes(350_000))
try:
    read(cache, work / "copy" / records[0].file, records[0])
except ShardError as error:
    print(error)
print([path.name for path in cache.folder.iterdir()])
"""


def test_a_full_disk_makes_room_and_in_the_end_an_error(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = f'mount -t tmpfs -o size=400k none "{tmp_path}/disk" && exec "$@"'
    on_disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*on_disk, "true"], capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here")

    done = subprocess.run(
        [*on_disk, sys.executable, "-c", FULL_DISK, str(tmp_path), str(tmp_path / "disk")],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", "tests"])},
        capture_output=True,
        text=True,
        check=True,
    )

    evicted, message, left = done.stdout.splitlines()
    assert evicted == "kept 4"
    assert message.startswith(
        f"{tmp_path}/disk/cache: the disk is full, 100,000 bytes are needed for a shard and no"
    )
    assert left == "['.lock']"


def test_what_else_is_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    records = write_shards(tmp_path / "copy", 2)
    (tmp_path / "cache").mkdir()
    for name in ("mine.tar", "mine.part"):
        (tmp_path / "cache" / name).write_bytes(bytes(3 * BYTES))
    cache = impatient(tmp_path / "cache", shards=1)

    for record in records:
        read(cache, tmp_path / "copy" / record.file, record)

    assert kept(tmp_path / "cache") == names_of(records[1]) | {"mine.tar", "mine.part"}


def test_what_killed_processes_left_is_deleted_and_what_is_in_flight_counts(
    tmp_path: Path,
) -> None:
    records = write_shards(tmp_path / "copy", 2)
    cache = impatient(tmp_path / "cache", shards=2)
    abandoned, in_flight = (tmp_path / "cache" / f"{digit * 64}.part" for digit in "01")
    lock = hold(in_flight, wait=False)
    assert lock is not None
    os.ftruncate(lock, BYTES + 1)
    abandoned.write_bytes(bytes(BYTES))

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read, cache, tmp_path / "copy" / records[0].file, records[0])
        assert eventually(lambda: not abandoned.exists())
        time.sleep(0.2)
        waited = not reading.done()
        in_flight.unlink()
        os.close(lock)
        assert reading.result() == content_of(0)

    assert waited
    assert kept(tmp_path / "cache") == names_of(records[0])


def test_threads_that_want_the_same_shards_fetch_each_once(tmp_path: Path) -> None:
    files = {f"/{number}.tar": content_of(number, 1000) for number in range(60)}
    records = [record_of(content) for content in files.values()]
    cache = impatient(tmp_path, shards=60)

    with web_server(files) as (address, asked), ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(read, cache, address + path, record)
            for path, record in zip(files, records, strict=True)
            for _ in range(4)
        ]
        contents = [job.result() for job in jobs]

    assert contents[::4] == list(files.values())
    assert sorted(asked) == sorted(files)


def test_neither_torch_nor_webdataset_is_imported() -> None:
    modules = imported_by("import pipeline.data.prefetch")

    assert not modules & {"torch", "webdataset", "fsspec"}
