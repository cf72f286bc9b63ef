import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared_data import BENCHMARKS, needs_data

from pipeline import config
from pipeline.data import testsets
from pipeline.data.source_index import SourceIndex
from pipeline.graph import Job
from pipeline.tasks import TASKS, task_named
from stages.source import source_stage


def photograph(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def open_folder(task: str, clean: Path, corrupted: Path | None = None, **options):
    test_set = config.TestSetConfig(
        path=str(clean), corrupted=corrupted and str(corrupted), tasks=(task,)
    )
    return testsets.open_test_set(test_set, TASKS[task], seed=0, sources={}, **options)


def test_noise_is_one_fixed_draw_per_seed_task_and_name(tmp_path):
    save(tmp_path / "a.png", photograph(0))
    save(tmp_path / "b.png", photograph(0))

    first = {pair.name: pair.corrupted for pair in open_folder("denoise30", tmp_path)}
    again = {pair.name: pair.corrupted for pair in open_folder("denoise30", tmp_path)}
    (tmp_path / "a.png").unlink()
    alone = {pair.name: pair.corrupted for pair in open_folder("denoise30", tmp_path)}
    other = {pair.name: pair.corrupted for pair in open_folder("denoise50", tmp_path)}

    assert first["b"].tobytes() == again["b"].tobytes() == alone["b"].tobytes()
    assert first["a"].tobytes() != first["b"].tobytes()
    assert other["b"].tobytes() != first["b"].tobytes()


def test_noise_keeps_its_float_values_and_its_convention(tmp_path):
    save(tmp_path / "dark.png", np.zeros((40, 40, 3), np.uint8))
    test_set = config.TestSetConfig(path=str(tmp_path))

    (clipped,) = testsets.open_test_set(test_set, task_named("denoise50"), seed=0, sources={})
    unclipped_task = task_named("denoise50", clip_noise=False)
    (unclipped,) = testsets.open_test_set(test_set, unclipped_task, seed=0, sources={})

    assert clipped.corrupted.dtype == np.float32
    assert clipped.corrupted.min() == 0
    assert unclipped.corrupted.min() < -0.3
    assert np.array_equal(np.clip(unclipped.corrupted, 0, 1), clipped.corrupted)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_super_resolution_is_modcropped(tmp_path, scale):
    save(tmp_path / "a.png", photograph(0, 41, 55))

    (pair,) = open_folder(f"sr{scale}", tmp_path)

    assert pair.clean.shape == (41 // scale * scale, 55 // scale * scale, 3)
    assert pair.corrupted.shape == (41 // scale, 55 // scale, 3)
    assert np.array_equal(pair.clean, photograph(0, 41, 55)[: 41 - 41 % scale, : 55 - 55 % scale])


def test_rain_covers_a_photograph_larger_than_the_layers(tmp_path):
    save(tmp_path / "a.png", np.full((100, 150, 3), 50, np.uint8))
    layers = np.full((2, 64, 64), 20, np.uint8)

    (pair,) = open_folder("derain", tmp_path, rain_layers=layers)

    assert np.array_equal(pair.corrupted, np.full((100, 150, 3), 70, np.uint8))


def test_rain_without_layers_says_so(tmp_path):
    save(tmp_path / "a.png", photograph(0))

    with pytest.raises(testsets.TestSetError, match="rain-layers"):
        open_folder("derain", tmp_path)


@pytest.mark.parametrize(
    ("task", "clean", "corrupted"),
    [
        ("derain", "1.png", "1.png"),
        ("derain", "norain-001.png", "rain-001.png"),
        ("derain", "1_GT.png", "1_in.png"),
        ("sr2", "baby.png", "babyx2.png"),
        ("sr4", "img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png"),
        ("sr3", "rain-forest.png", "rain-forest.png"),
    ],
)
def test_pairs_are_found_under_the_names_of_published_benchmarks(tmp_path, task, clean, corrupted):
    scale = TASKS[task].scale
    save(tmp_path / "clean" / clean, photograph(0, 12 * scale, 12 * scale))
    save(tmp_path / "corrupted" / corrupted, photograph(1, 12, 12))

    (pair,) = open_folder(task, tmp_path / "clean", tmp_path / "corrupted")

    assert np.array_equal(pair.clean, photograph(0, 12 * scale, 12 * scale))
    assert np.array_equal(pair.corrupted, photograph(1, 12, 12))


def test_the_folder_of_a_scale_is_found(tmp_path):
    save(tmp_path / "HR" / "baby.png", photograph(0, 48, 48))
    save(tmp_path / "LR" / "X2" / "babyx2.png", photograph(2, 24, 24))
    save(tmp_path / "LR" / "X3" / "babyx3.png", photograph(3, 16, 16))

    (pair,) = open_folder("sr2", tmp_path / "HR", tmp_path / "LR")

    assert np.array_equal(pair.corrupted, photograph(2, 24, 24))


def test_a_folder_below_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "set" / "a.png", photograph(0))

    (pair,) = open_folder("derain", Path("~/set"), Path("~/set"))

    assert np.array_equal(pair.clean, photograph(0))


def test_unmatched_images_are_named_and_the_rest_is_used(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "clean" / f"{name}.png", photograph(0))
    save(tmp_path / "corrupted" / "a.png", photograph(0))
    save(tmp_path / "corrupted" / "c.png", photograph(0))

    test_set = open_folder("derain", tmp_path / "clean", tmp_path / "corrupted")

    assert [pair.name for pair in test_set] == ["a"]
    assert [Path(fault["path"]).name for fault in test_set.faults] == ["c.png", "b.png"]
    assert "no clean image for it" in test_set.faults[0]["reason"]
    assert "no corrupted image for it" in test_set.faults[1]["reason"]


def test_folders_that_share_no_name_are_no_test_set(tmp_path):
    save(tmp_path / "clean" / "a.png", photograph(0))
    save(tmp_path / "corrupted" / "c.png", photograph(0))

    with pytest.raises(testsets.TestSetError, match=r"none of its 1 images has a corrupted"):
        open_folder("derain", tmp_path / "clean", tmp_path / "corrupted")


def test_names_that_mean_the_same_are_refused(tmp_path):
    for name in ("rain-1.png", "norain-1.png"):
        save(tmp_path / "clean" / name, photograph(0))
    save(tmp_path / "corrupted" / "1.png", photograph(0))

    with pytest.raises(testsets.TestSetError, match=r"norain-1\.png and rain-1\.png both read"):
        open_folder("derain", tmp_path / "clean", tmp_path / "corrupted")


def test_a_pair_of_wrong_sizes_names_both_files(tmp_path):
    save(tmp_path / "clean" / "a.png", photograph(0, 40, 40))
    save(tmp_path / "corrupted" / "a.png", photograph(0, 30, 40))

    save(tmp_path / "clean" / "b.png", photograph(0, 40, 40))
    save(tmp_path / "corrupted" / "b.png", photograph(0, 40, 40))

    test_set = open_folder("derain", tmp_path / "clean", tmp_path / "corrupted")

    assert [pair.name for pair in test_set] == ["b"]
    (fault,) = test_set.faults
    assert fault["path"].endswith("corrupted/a.png")
    assert "40×30 pixels" in fault["reason"]
    assert "clean/a.png 40×40" in fault["reason"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "no image lies directly in it"),
        (lambda folder: save(folder / "HR" / "a.png", photograph(0)), "there are some in .*HR"),
        (
            lambda folder: [save(folder / f"a.{end}", photograph(0)) for end in ("png", "bmp")],
            "have the same name",
        ),
    ],
)
def test_a_folder_that_is_no_test_set_is_explained(tmp_path, make, message):
    make(tmp_path / "set")

    with pytest.raises(testsets.TestSetError, match=message):
        open_folder("derain", tmp_path / "set", tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_a_damaged_benchmark_image_is_a_fault_and_not_silently_skipped(tmp_path, content):
    save(tmp_path / "a.png", photograph(0))
    (tmp_path / "b.png").write_bytes(content)

    test_set = open_folder("denoise30", tmp_path)

    assert [pair.name for pair in test_set] == ["a"]
    assert [Path(fault["path"]).name for fault in test_set.faults] == ["b.png"]
    assert test_set.skipped == []


def test_an_image_that_there_is_no_memory_for_is_a_fault(tmp_path, monkeypatch):
    for name in "abc":
        save(tmp_path / f"{name}.png", photograph(0))
    made = []

    def full(*given, **named):
        made.append(None)
        if len(made) == 2:
            raise MemoryError
        return corrupt(*given, **named)

    corrupt = testsets.corrupt
    monkeypatch.setattr(testsets, "corrupt", full)
    test_set = open_folder("denoise30", tmp_path)

    assert [pair.name for pair in test_set] == ["a", "c"]
    assert test_set.faults == [
        {"path": str(tmp_path / "b.png"), "reason": "not enough memory for it"}
    ]


def test_a_benchmark_image_too_small_for_ssim_is_a_fault(tmp_path):
    save(tmp_path / "a.png", photograph(0, 14, 40))

    assert len(list(open_folder("denoise30", tmp_path))) == 1
    test_set = open_folder("sr2", tmp_path)
    assert list(test_set) == []
    assert "too few for sr2" in test_set.faults[0]["reason"]


def source_index(photographs: Path, folder: Path) -> SourceIndex:
    stage = source_stage(
        "photos",
        config.SourceConfig(path=str(photographs), held_out=("held/*",)),
        seed=0,
        largest_crop=1,
    )
    folder.mkdir()
    job = Job(
        config=stage.config,
        fingerprint="0" * 64,
        folder=folder,
        inputs={},
        runtime=config.Runtime(),
    )
    stage.run(job)
    return SourceIndex(folder, photographs)


def test_a_source_gives_its_validation_images_and_lists_what_it_skips(tmp_path):
    for name in ("held/a.png", "held/b/x.png", "held/c/x.png", "train/d.png", "train/e.png"):
        save(tmp_path / "photos" / name, photograph(len(name)))
    save(tmp_path / "photos" / "held" / "tiny.png", photograph(0, 9, 9))
    index = source_index(tmp_path / "photos", tmp_path / "index")
    test_set = testsets.open_test_set(
        config.TestSetConfig(source="photos"), TASKS["sr4"], seed=0, sources={"photos": index}
    )

    names = [pair.name for pair in test_set]

    assert names == ["a", "held/b/x.png", "held/c/x.png"]
    assert [Path(each["path"]).name for each in test_set.skipped] == ["tiny.png"]
    assert "too few" in test_set.skipped[0]["reason"]


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_as_people_have_it_equals_what_is_made_here(scale):
    folder = BENCHMARKS / "Set5"

    given = list(open_folder(f"sr{scale}", folder / "HR", folder / "LR_bicubic"))
    made = list(open_folder(f"sr{scale}", folder / "HR"))

    assert [pair.name for pair in given] == ["baby", "bird", "butterfly", "head", "woman"]
    for ours, matlab in zip(made, given, strict=True):
        assert np.array_equal(ours.corrupted, matlab.corrupted)
        assert np.array_equal(ours.clean, matlab.clean)


def test_a_name_that_is_not_utf8_is_read_as_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "plain.png", photograph(0))
    (tmp_path / "plain.png").rename(tmp_path / name)

    (pair,) = open_folder("denoise30", tmp_path)

    assert pair.name == "caf\\xe9"
