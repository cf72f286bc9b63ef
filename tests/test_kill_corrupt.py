from pathlib import Path

import pytest

from benchmarks.kill_corrupt import kill_and_compare


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_if_untouched(tmp_path: Path) -> None:
    kills, ends, files = kill_and_compare(tmp_path, 3, seed=1)

    # It raises where a file differs, or where a finished shard was made again.
    assert sum(kill.in_flight > 0 for kill in kills) == 3
    assert any(kill.parts > 1 for kill in kills)
    assert ends >= 1
    assert files > 40
    assert all(kill.in_flight <= 2 * kill.killed for kill in kills)
    assert any(kill.finished for kill in kills)
