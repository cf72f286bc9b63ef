"""The rows of benchmarks, and the layouts that they are found in."""

from pathlib import Path

import numpy as np
import pytest
from benchmark_samples import save
from data_samples import imported_by
from PIL import Image
from shared_data import BENCHMARKS as SHARED
from shared_data import needs_data

from pipeline.benchmark_folders import find_benchmarks, listed
from pipeline.benchmarks import BENCHMARKS, benchmark_named, benchmarks_for
from pipeline.data.testsets import open_benchmark
from pipeline.tasks import TASKS, at_levels, published_name, task_named


def names_for(task: str) -> set[str]:
    return {each.name for each in benchmarks_for(TASKS[task])}


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


@pytest.mark.parametrize(
    ("task", "stray", "whole", "images"),
    [
        ("sr2", "Set5/thumb.png", "Set5/HR", 5),
        ("denoise30", "CBSD68/preview.png", "CBSD68/original_png", 68),
        ("sr2", "B100/HR/0.png", "BSD100", 100),
        ("grey25", "BSD68/test001.png", "CBSD68", 68),
        ("sr2", "Set5/1.png", "Set5/HR", 3),
    ],
)
def test_a_stray_image_hides_no_benchmark(tmp_path, task, stray, whole, images):
    save(tmp_path / stray)
    for number in range(images):
        save(tmp_path / whole / f"{number}.png")

    found, _ = find_benchmarks(tmp_path, TASKS[task])

    (clean,) = {each.parent for each in found[0].clean}
    assert clean == tmp_path / whole
    assert len(found[0].clean) == images


def test_pairs_go_before_as_many_clean_images(tmp_path):
    for folder in (".", "HR", "LR_bicubic/X2"):
        save(tmp_path / "Set5" / folder / "baby.png")

    (found,), _ = find_benchmarks(tmp_path, TASKS["sr2"])

    assert found.layout_text == "Set5: HR/* with LR_bicubic/X2/*"


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


@needs_data
def test_bsd68_is_cbsd68_in_grey():
    found, missing = find_benchmarks(SHARED, TASKS["grey25"])
    bsd68 = next(each for each in found if each.benchmark.name == "BSD68")

    pair = next(iter(open_benchmark(bsd68, TASKS["grey25"], seed=0)))

    assert missing == []
    assert len(bsd68.clean) == 68
    assert pair.clean.shape == (321, 481, 1)


def test_a_file_in_place_of_a_folder_is_no_benchmark(tmp_path: Path):
    (tmp_path / "Set5").write_text("a note")

    found, missing = find_benchmarks(tmp_path, TASKS["sr2"])

    assert found == []
    assert missing == ["Set5", "Set14", "B100", "Urban100"]
