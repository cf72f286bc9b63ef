"""The rows of benchmarks, the layouts they are found in, and what is verified about them."""

import itertools
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from benchmark_samples import BENCHMARKS as SHARED
from benchmark_samples import needs_benchmarks, save, save_nearest
from data_samples import imported_by
from PIL import Image

from pipeline.benchmark_checks import Checker
from pipeline.benchmark_folders import find_benchmarks, listed
from pipeline.benchmarks import BENCHMARKS, benchmark_named, benchmarks_for
from pipeline.checks import Check, differing
from pipeline.corruptions.bicubic import imresize
from pipeline.data.testsets import open_benchmark
from pipeline.scoring import as_tensor, score
from pipeline.tasks import TASKS, Task, at_levels, published_name, task_named


def names_for(task: str) -> set[str]:
    return {each.name for each in benchmarks_for(TASKS[task])}


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


def test_every_task_of_the_field_has_its_benchmarks():
    for task in ("sr2", "sr3", "sr4"):
        assert names_for(task) == {"Set5", "Set14", "B100", "Urban100"}
    for task in ("denoise30", "denoise50", "colour_blind"):
        assert names_for(task) == {"CBSD68", "Kodak24", "McMaster", "Urban100"}
    for task in ("grey15", "grey25", "grey50", "grey_blind"):
        assert names_for(task) == {"Set12", "BSD68"}
    assert names_for("derain") == {"Rain100L", "Rain100H"}
    assert names_for("jpeg") == {"LIVE1", "classic5"}
    assert names_for("gaussian_blur") == names_for("motion_blur") == set()
    for benchmark in BENCHMARKS.values():
        assert benchmark.sizes
        assert benchmark_named(benchmark.name.lower()) is benchmark


@pytest.mark.parametrize(
    ("task", "clean", "corrupted"),
    [
        ("sr2", "Set5/HR/baby.png", "Set5/LR_bicubic/X2/baby.png"),
        ("sr2", "set_5/HR/baby.png", "set_5/LR_bicubic/X2/babyx2.png"),
        ("sr3", "Set14/GTmod12/baboon.png", "Set14/LRbicx3/baboon.png"),
        ("sr4", "BSD100/original/1.png", "BSD100/LRBI/x4/1.png"),
        (
            "sr2",
            "B100/image_SRF_2/img_001_SRF_2_HR.png",
            "B100/image_SRF_2/img_001_SRF_2_LR.png",
        ),
        ("sr4", "Urban100/image_SRF_4/img_001_SRF_4_HR.png", None),
        ("sr3", "Urban100/image_SRF_4/img_001_SRF_4_HR.png", None),
        ("sr2", "Set5/baby.bmp", None),
        ("derain", "Rain100L/clean/1.png", "Rain100L/rainy/1.png"),
        ("derain", "Rain100L/target/1.png", "Rain100L/input/1.png"),
        ("derain", "Rain100L/norain-001.png", "Rain100L/rainy/rain-001.png"),
        ("derain", "Rain100H/norain-001.png", "Rain100H/rain-001.png"),
        ("derain", "Rain100H/norain/norain-001.png", "Rain100H/rain/rain-001.png"),
        ("derain", "Rain100H_old/cleancrop/1.png", "Rain100H_old/inputcrop/1.png"),
        ("denoise30", "CBSD68-dataset/original_png/0000.png", None),
        ("denoise50", "Kodak/kodim01.png", None),
        ("denoise50", "McMaster/1.tif", None),
        ("grey25", "BSD68/test001.png", None),
        ("jpeg", "LIVE1/bikes.bmp", None),
    ],
)
def test_layouts_that_people_have_are_found(tmp_path, task, clean, corrupted):
    scale = TASKS[task].scale
    save(tmp_path / clean, height=24 * scale, width=36 * scale)
    if corrupted is not None:
        save(tmp_path / corrupted, seed=1, height=24, width=36)

    (found,), missing = find_benchmarks(tmp_path, TASKS[task])
    (pair,) = open_benchmark(found, TASKS[task], seed=0)

    assert found.benchmark.name not in missing
    assert found.clean == (tmp_path / clean,)
    if corrupted is not None:
        assert np.array_equal(pair.corrupted, np.asarray(Image.open(tmp_path / corrupted)))
        assert pair.clean.shape[:2] == (24 * scale, 36 * scale)


def test_the_half_sized_copy_of_urban100_is_not_taken_for_it(tmp_path):
    save(tmp_path / "Urban100" / "image_SRF_2" / "img_001_SRF_2_HR.png")
    save(tmp_path / "Urban100" / "image_SRF_2" / "img_001_SRF_2_LR.png", height=20, width=24)

    found, missing = find_benchmarks(tmp_path, TASKS["sr2"])

    assert found == []
    assert "Urban100 (Urban100 is laid out in no way that is known)" in missing


def test_clean_images_alone_are_no_benchmark_of_deraining(tmp_path):
    save(tmp_path / "Rain100L" / "clean" / "1.png")

    found, missing = find_benchmarks(tmp_path, TASKS["derain"])

    assert found == []
    assert missing[0].startswith("Rain100L (Rain100L is laid out in no way")


def test_what_is_missing_is_listed(tmp_path):
    save(tmp_path / "CBSD68" / "0000.png")

    found, missing = find_benchmarks(tmp_path, TASKS["denoise30"])

    assert listed(found, missing) == "CBSD68; not there: Urban100, Kodak24, McMaster"


def test_listing_needs_neither_torch_nor_numpy():
    imported = imported_by("import pipeline.benchmark_folders")

    assert not {"torch", "numpy"} & set(imported)


def test_models_are_measured_at_the_levels_of_the_tables():
    def levels(name: str) -> list[str]:
        return [published_name(each) for each in at_levels(TASKS[name], (10, 70))]

    assert levels("denoise30") == ["denoise10", "denoise30", "denoise70"]
    assert levels("grey_blind") == ["grey10", "grey15", "grey25", "grey50", "grey70"]
    assert levels("jpeg") == ["jpeg10", "jpeg20", "jpeg30", "jpeg40"]
    assert levels("derain") == ["derain"]
    assert at_levels(TASKS["denoise30"])[0] is TASKS["denoise30"]
    # A model of σ 30 meets at σ 50 the noise that a model of σ 50 meets.
    assert at_levels(TASKS["denoise30"], (50,))[1] == TASKS["denoise50"]
    unclipped = task_named("denoise30", clip_noise=False)
    assert not at_levels(unclipped, (70,))[1].corruption.clip


@needs_benchmarks
@pytest.mark.parametrize(
    ("task", "scores"),
    [("sr2", "33.66 / 0.9299"), ("sr3", "30.39 / 0.8682"), ("sr4", "28.42 / 0.8104")],
)
def test_set5_is_verified_by_the_published_bicubic_scores(task, scores):
    number, sizes, bicubic, small = checks("Set5", TASKS[task])

    assert number.state == sizes.state == bicubic.state == small.state == "verified"
    assert bicubic.found == bicubic.expected == scores
    assert small.found == "equal"


@needs_benchmarks
def test_low_resolution_images_of_another_making_are_not_verified(tmp_path):
    for path in (SHARED / "Set5" / "HR").iterdir():
        save_nearest(path, tmp_path / "Set5")

    number, sizes, bicubic, small = checks("Set5", TASKS["sr2"], root=tmp_path)

    assert number.state == sizes.state == "verified"
    assert bicubic.state == small.state == "differs"
    assert bicubic.found == "29.97 / 0.8923"  # of these images, not 33.66 of ours
    assert small.found.startswith("baby 3")
    assert small.found.endswith(" dB and 2 more")


@needs_benchmarks
def test_low_resolution_images_by_an_older_matlab_are_verified(tmp_path):
    shutil.copytree(SHARED / "Set5", tmp_path / "Set5")
    clean = np.asarray(Image.open(tmp_path / "Set5" / "HR" / "baby.png"))
    small = imresize(clean, Fraction(1, 2), border="replicate")
    Image.fromarray(small).save(tmp_path / "Set5" / "LR_bicubic" / "X2" / "babyx2.png")

    *_, bicubic, small = checks("Set5", TASKS["sr2"], root=tmp_path)

    assert bicubic.state == small.state == "verified"
    assert small.found == "73.2 dB or more"


@needs_benchmarks
@pytest.mark.slow
def test_20_pairs_of_rain100l_are_the_part_that_is_known():
    number, sizes, rainy = checks("Rain100L", TASKS["derain"])

    assert number.state == "differs"
    assert number.found == "20, the part that is known too"
    assert sizes.state == rainy.state == "verified"
    assert rainy.found == "26.175 / 0.8136"
    assert differing([vars(each) for each in (number, sizes, rainy)]) == []


@needs_benchmarks
def test_fewer_images_are_no_benchmark_and_nothing_is_said_of_their_score():
    number, sizes, noise = checks("Set12", task_named("grey25", clip_noise=False), of=2)

    assert (number.state, number.expected, number.found) == ("differs", "12", "2")
    assert (sizes.state, noise.state) == ("verified", "not checked")
    assert differing([vars(each) for each in (number, sizes)]) == [
        "number of images: expected 12, found 2"
    ]


@needs_benchmarks
def test_noise_is_verified_by_its_level():
    *_, noise = checks("Set12", task_named("grey25", clip_noise=False))

    assert (noise.state, noise.expected) == ("verified", "20.17")


@needs_benchmarks
@pytest.mark.slow
def test_clipped_noise_of_cbsd68_is_as_strong_as_counted_elsewhere():
    *_, noise = checks("CBSD68", TASKS["denoise50"])

    assert (noise.state, noise.expected) == ("verified", "15.00")


@needs_benchmarks
def test_bsd68_is_cbsd68_in_grey():
    found, missing = find_benchmarks(SHARED, TASKS["grey25"])
    bsd68 = next(each for each in found if each.benchmark.name == "BSD68")

    pair = next(iter(open_benchmark(bsd68, TASKS["grey25"], seed=0)))

    assert missing == []
    assert len(bsd68.clean) == 68
    assert pair.clean.shape == (321, 481, 1)


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


def test_a_file_in_place_of_a_folder_is_no_benchmark(tmp_path: Path):
    (tmp_path / "Set5").write_text("a note")

    found, missing = find_benchmarks(tmp_path, TASKS["sr2"])

    assert found == []
    assert missing == ["Set5", "Set14", "B100", "Urban100"]
