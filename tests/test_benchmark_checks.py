"""What is verified about benchmarks."""

import itertools
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from benchmark_samples import save, save_nearest
from PIL import Image
from shared_data import BENCHMARKS as SHARED
from shared_data import needs_data

from pipeline.benchmark_checks import Checker
from pipeline.benchmark_folders import find_benchmarks
from pipeline.benchmarks import BENCHMARKS
from pipeline.checks import Check, differing
from pipeline.corruptions.bicubic import imresize
from pipeline.data.testsets import open_benchmark
from pipeline.scoring import as_tensor, score
from pipeline.tasks import TASKS, Task, task_named


def checks(name: str, task: Task, *, root: Path = SHARED, of: int | None = None) -> list[Check]:
    """What is verified of a benchmark, a shared one if not of `root`, or of its first images."""
    found, _ = find_benchmarks(root, task)
    (one,) = (each for each in found if each.benchmark.name == name)
    checker = Checker(benchmark=one.benchmark, task=task)
    for pair in itertools.islice(open_benchmark(one, task, seed=0), of):
        scores = {}
        if task.scale == 1:
            images = as_tensor(pair.corrupted), as_tensor(pair.clean)
            scores = score(*images, crop_border=0)
            if task.name == "derain":
                rounded = score(*images, crop_border=0, rounded_luma=True)
                scores |= {f"{key}_rounded": rounded[key] for key in ("psnr_y", "ssim_y")}
        given = None if one.corrupted is None else pair.corrupted
        checker.add(pair.name, clean=pair.clean, corrupted=scores, given=given)
    return [Check(**each) for each in checker.checks()]


@needs_data
@pytest.mark.parametrize(
    ("task", "scores"),
    [("sr2", "33.66 / 0.9299"), ("sr3", "30.39 / 0.8682"), ("sr4", "28.42 / 0.8104")],
)
def test_set5_is_verified_by_the_published_bicubic_scores(task, scores):
    number, sizes, bicubic, small = checks("Set5", TASKS[task])

    assert number.state == sizes.state == bicubic.state == small.state == "verified"
    assert bicubic.found == bicubic.expected == scores
    assert small.found == "equal"


@needs_data
def test_low_resolution_images_of_another_making_are_not_verified(tmp_path):
    for path in (SHARED / "Set5" / "HR").iterdir():
        save_nearest(path, tmp_path / "Set5")

    number, sizes, bicubic, small = checks("Set5", TASKS["sr2"], root=tmp_path)

    assert number.state == sizes.state == "verified"
    assert bicubic.state == small.state == "differs"
    assert bicubic.found == "29.97 / 0.8923"  # of these images, not 33.66 of ours
    assert small.found.startswith("baby 3")
    assert small.found.endswith(" dB and 2 more")


@needs_data
def test_low_resolution_images_by_an_older_matlab_are_verified(tmp_path):
    shutil.copytree(SHARED / "Set5", tmp_path / "Set5")
    clean = np.asarray(Image.open(tmp_path / "Set5" / "HR" / "baby.png"))
    small = imresize(clean, Fraction(1, 2), border="replicate")
    Image.fromarray(small).save(tmp_path / "Set5" / "LR_bicubic" / "X2" / "babyx2.png")

    *_, bicubic, small = checks("Set5", TASKS["sr2"], root=tmp_path)

    assert bicubic.state == small.state == "verified"
    assert small.found == "73.2 dB or more"


@needs_data
@pytest.mark.slow
def test_20_pairs_of_rain100l_are_the_part_that_is_known():
    number, sizes, rainy = checks("Rain100L", TASKS["derain"])

    assert number.state == "differs"
    assert number.found == "20, the part that is known too"
    assert sizes.state == rainy.state == "verified"
    assert rainy.found == "26.175 / 0.8136"
    assert differing([vars(each) for each in (number, sizes, rainy)]) == []


@needs_data
def test_fewer_images_are_no_benchmark_and_nothing_is_said_of_their_score():
    number, sizes, noise = checks("Set12", task_named("grey25", clip_noise=False), of=2)

    assert (number.state, number.expected, number.found) == ("differs", "12", "2")
    assert (sizes.state, noise.state) == ("verified", "not checked")
    assert differing([vars(each) for each in (number, sizes)]) == [
        "number of images: expected 12, found 2"
    ]


@needs_data
def test_noise_is_verified_by_its_level():
    *_, noise = checks("Set12", task_named("grey25", clip_noise=False))

    assert (noise.state, noise.expected) == ("verified", "20.17")


@needs_data
@pytest.mark.slow
def test_clipped_noise_of_cbsd68_is_as_strong_as_counted_elsewhere():
    *_, noise = checks("CBSD68", TASKS["denoise50"])

    assert (noise.state, noise.expected) == ("verified", "15.00")


def test_other_sizes_are_named(tmp_path):
    for number in range(5):
        save(tmp_path / "Set5" / f"{number}.png", seed=number, height=100, width=60)
    (found,), _ = find_benchmarks(tmp_path, TASKS["sr2"])
    checker = Checker(benchmark=found.benchmark, task=TASKS["sr2"])
    for pair in open_benchmark(found, TASKS["sr2"], seed=0):
        checker.add(pair.name, clean=pair.clean, corrupted={})

    number, sizes, bicubic = (Check(**each) for each in checker.checks())

    assert number.state == "verified"
    assert sizes.state == bicubic.state == "differs"
    assert sizes.found == "0 60×100, 1 60×100, 2 60×100 and 2 more"
    assert str(bicubic).startswith("bicubic upscaling on Y, 8-bit Y")
    assert "differs: expected 33.66 / 0.9299, found " in str(bicubic)


def test_a_copy_cut_to_multiples_of_12_has_the_sizes_of_the_benchmark():
    checker = Checker(benchmark=BENCHMARKS["B100"], task=TASKS["sr2"])
    for number, (height, width) in enumerate([(312, 480), (480, 312), (321, 481), (320, 480)]):
        checker.images.append((str(number), width, height))

    assert checker._sizes().state == "verified"
    checker.images.append(("x", 481, 300))
    assert checker._sizes().found == "x 481×300"


def test_most_of_urban100_has_its_usual_size():
    checker = Checker(benchmark=BENCHMARKS["Urban100"], task=TASKS["sr2"])
    checker.images = [("a", 1024, 680), ("b", 1024, 768), ("c", 672, 1020)]
    assert checker._sizes().state == "verified"

    checker.images = [(name, width // 2, height // 2) for name, width, height in checker.images]
    assert checker._sizes().state == "differs"
