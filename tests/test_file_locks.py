"""Locks on files that are renamed and deleted while others wait for them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.data.file_locks import hold, is_at


def test_a_lock_is_of_one_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "made" / "lock"
    first = hold(path, wait=False)
    assert first is not None

    assert hold(path, wait=False) is None
    os.close(first)
    second = hold(path, wait=False)

    assert second is not None
    os.close(second)


@pytest.mark.parametrize("change", ["deleted", "renamed", "replaced"])
def test_who_waited_for_a_file_that_has_gone_holds_the_one_that_is_there(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "lock"
    first = hold(path, wait=False)
    assert first is not None
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(hold, path, wait=True)
        time.sleep(0.1)
        if change == "renamed":
            path.rename(tmp_path / "finished")
        else:
            path.unlink()
        if change == "replaced":
            path.touch()
        os.close(first)
        second = waiting.result()

    assert second is not None
    assert is_at(path, second)
    assert hold(path, wait=False) is None
    os.close(second)
