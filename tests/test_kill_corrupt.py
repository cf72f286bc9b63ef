from pathlib import Path

import pytest

from benchmarks.kill_corrupt import kill_and_compare


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_if_untouched(tmp_path: Path) -> None:
    kills, ends, files = kill_and_compare(tmp_path, 6, seed=1)

    # It raises where a file differs, or where a finished shard was made again.
    assert len(kills) == 6
    assert ends >= 1
    assert files > 40
    assert max(kill.in_flight for kill in kills) <= 2
    assert any(kill.finished for kill in kills)
