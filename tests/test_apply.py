from fractions import Fraction

import numpy as np
import pytest

from pipeline.corruptions.apply import corrupt, corrupt_crop, drawn
from pipeline.corruptions.bicubic import imresize
from pipeline.corruptions.keyed import generator
from pipeline.tasks import TASKS, GaussianNoise, JpegCompression

LAYERS = np.random.default_rng(1).integers(0, 90, (3, 64, 64), dtype=np.uint8)


def photograph(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_corrupts_repeatably(task):
    clean = photograph(48 * task.scale, 60 * task.scale)

    first = corrupt(clean, task.corruption, generator("key", task.name), rain_layers=LAYERS)
    second = corrupt(clean, task.corruption, generator("key", task.name), rain_layers=LAYERS)

    assert first.shape == (48, 60, 3)
    assert first.dtype == (np.uint8 if task.stores_corrupted else np.float32)
    np.testing.assert_array_equal(first, second)
    if task.scale == 1:
        other = corrupt(clean, task.corruption, generator("other"), rain_layers=LAYERS)
        assert (first != other).any()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_crops_of_every_task_lie_where_they_should(task):
    clean = photograph(240, 264)
    top, left = 2 * task.scale, 5 * task.scale

    crop, patch = corrupt_crop(
        clean,
        task.corruption,
        generator("key"),
        top=top,
        left=left,
        patch_size=48,
        rain_layers=LAYERS,
    )

    size = 48 * task.scale
    assert patch.shape == (48, 48, 3)
    np.testing.assert_array_equal(crop, clean[top : top + size, left : left + size])
    if task.scale > 1:
        whole = imresize(clean, Fraction(1, task.scale))
        np.testing.assert_array_equal(patch, whole[2:50, 5:53])


def test_ranges_are_drawn_from_end_to_end_and_fixed_values_are_left():
    rng = generator(0)

    qualities = [drawn(JpegCompression(quality=(10, 13)), rng).quality for _ in range(100)]
    levels = [drawn(GaussianNoise(sigma_255=(0, 55.0)), rng).sigma_255 for _ in range(500)]
    untouched = generator(1)
    for name in ("sr2", "derain", "denoise30"):
        assert drawn(TASKS[name].corruption, untouched) == TASKS[name].corruption

    assert set(qualities) == {10, 11, 12, 13}
    # Of 500 draws, the least is below 0.5 but for one time in a hundred.
    assert 0 <= min(levels) < 0.6
    assert 54.4 < max(levels) <= 55
    assert np.mean(levels) == pytest.approx(27.5, abs=2.2)  # three deviations
    assert untouched.random() == generator(1).random()


def test_clip_of_the_spec_is_respected():
    clean = photograph(64, 64)

    unclipped = corrupt(
        clean, GaussianNoise(sigma_255=50, clip=False), generator(0), rain_layers=None
    )
    clipped = corrupt(clean, GaussianNoise(sigma_255=50, clip=True), generator(0), rain_layers=None)

    assert unclipped.max() > 1
    np.testing.assert_array_equal(clipped, unclipped.clip(0, 1))


def test_rain_from_a_memory_mapped_bank_is_an_array_of_its_own(tmp_path):
    np.save(tmp_path / "layers.npy", LAYERS)
    mapped = np.load(tmp_path / "layers.npy", mmap_mode="r")
    clean = photograph(80, 48)  # higher than a layer

    rainy = corrupt(clean, TASKS["derain"].corruption, generator(0), rain_layers=mapped)

    assert type(rainy) is np.ndarray
    np.testing.assert_array_equal(
        rainy, corrupt(clean, TASKS["derain"].corruption, generator(0), rain_layers=LAYERS)
    )


@pytest.mark.parametrize("layers", [None, LAYERS[:0]])
def test_rain_without_layers_is_refused(layers):
    with pytest.raises(ValueError, match="rain-layers"):
        corrupt(photograph(8, 8), TASKS["derain"].corruption, generator(0), rain_layers=layers)


def test_image_that_was_not_modcropped_is_refused():
    with pytest.raises(ValueError, match="modcrop"):
        corrupt(photograph(9, 8), TASKS["sr2"].corruption, generator(0), rain_layers=None)


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, 20), (17, 0)])
def test_crop_outside_the_image_is_refused(top, left):
    with pytest.raises(ValueError, match="inside"):
        corrupt_crop(
            photograph(64, 64),
            TASKS["denoise30"].corruption,
            generator(0),
            top=top,
            left=left,
            patch_size=48,
            rain_layers=None,
        )
