"""DnCNN beside a plain loop: what is called equal, and that a wrong recipe is not."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_run import ROOT

from benchmarks import plain_dncnn
from benchmarks.dncnn import DATA, fit_in_db
from benchmarks.dncnn_curves import SAME, Point, Training, furthest, judged
from benchmarks.plain_dncnn import PlainLoop, Recipe, plain_network
from pipeline.model_configs import DnCNNConfig
from pipeline.models.dncnn import DnCNN

RECIPE = Recipe(steps=8, batch=3, depth=4, features=5)


def point(pipeline: list[float], plain: list[float]) -> Point:
    return Point(where="here", is_loss=True, pipeline=pipeline, plain=plain)


def agreeing(*points: Point) -> list[bool]:
    """At each point, and in the mean of all."""
    return [each.agrees for each in judged(points)]


def test_curves_agree_within_what_their_seeds_spread() -> None:
    close = point([25.0, 25.2, 24.9], [25.1, 25.0, 25.0])
    apart = point([25.0, 25.2, 24.9], [26.1, 26.2, 26.0])
    lucky = point([25.0, 25.1, 25.2], [25.1, 25.2, 25.3])  # a spread of 0: that of all counts
    diverged = point([25.0, 25.2, math.nan], [25.0, 25.2, 25.1])

    assert agreeing(close) == [True, True]
    assert agreeing(close, apart)[:2] == [True, False]
    assert agreeing(lucky, close)[:2] == [True, True]
    assert agreeing(diverged) == [False, False]
    assert judged([apart])[0].difference == pytest.approx(-3.2 / 3)


def test_a_small_gap_of_every_seed_at_every_point_is_seen_in_the_mean_of_all() -> None:
    left, right = [25.3, 25.1, 24.9, 24.7], [24.8, 25.0, 25.2, 25.4]  # what they spread by cancels
    points = [point([each - 0.1 for each in side], [25.0] * 4) for side in (left, right)]

    assert agreeing(*points) == [True, True, False]
    assert judged(points)[-1].difference == pytest.approx(-0.05)


def test_a_wrong_recipe_is_seen_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = torch.rand(3, 1, 40, 40)
    noise = torch.randn_like(clean) * 0.1

    def losses() -> list[float]:
        loop = PlainLoop(RECIPE, 0, photographs=[])
        return [fit_in_db(loop.step_on(clean, noise, number)) for number in range(RECIPE.steps)]

    def apart(**wrong: float) -> float:
        with monkeypatch.context() as patched:
            for name, value in wrong.items():
                patched.setattr(plain_dncnn, name, value)
            return furthest(right, Training(fits=losses(), psnrs=[], seconds=0))

    right = Training(fits=losses(), psnrs=[], seconds=0)
    assert apart() == 0
    assert apart(FIRST_RATE=1.2e-3) > SAME
    assert apart(DROP_AT=0.3) > SAME


def test_plain_network_begins_as_ours_does() -> None:
    torch.manual_seed(3)
    ours = DnCNN(DnCNNConfig(depth=4, features=5, channels=1))
    torch.manual_seed(3)
    plain = plain_network(depth=4, features=5)
    noisy = torch.rand(2, 1, 16, 16)

    torch.testing.assert_close(noisy - plain(noisy), ours(noisy))
    assert len(list(plain.parameters())) == len(list(ours.parameters()))


def test_plain_loop_follows_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = np.arange(48 * 52, dtype=np.uint32).reshape(48, 52).astype(np.uint8)
    loop = PlainLoop(RECIPE, 0, photographs=[photograph])

    torch.nn.init.zeros_(loop.network[-1].weight)
    patches = loop.patches()
    losses = [loop.step(number) for number in range(RECIPE.steps)]

    assert patches.shape == (3, 1, 40, 40)
    assert 0 <= patches.min() <= patches.max() <= 1
    # What predicts nothing loses σ²/2 a pixel.
    of_nothing = (25 / 255) ** 2 / 2 * 40 * 40
    assert losses[0] == pytest.approx(of_nothing, rel=0.1)
    assert fit_in_db(of_nothing) == pytest.approx(20.17, abs=0.01)
    assert loop.adam.param_groups[0]["lr"] == plain_dncnn.FINAL_RATE
    assert RECIPE.ends == [2, 4, 6, 8]


@pytest.mark.slow
def test_a_short_training_runs_to_its_page(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA}: no such folder")
    sizes = ("--seeds", "2", "--steps", "8", "--batch", "2", "--depth", "3", "--features", "4")
    out = tmp_path / "dncnn.md"
    command = [sys.executable, "-m", "benchmarks.dncnn", *sizes, "--out", str(out)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode in (0, 1), done.stderr  # two seeds of eight steps may differ by chance
    page = out.read_text()
    assert page.count("| yes |") + page.count("| **no** |") == 9
    assert "not measured" in page
    assert ": within the 0.05 dB" in page  # on the same batches
