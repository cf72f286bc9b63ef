import tracemalloc

import numpy as np
import pytest
from PIL import Image
from shared_data import DATA, needs_data

from pipeline.corruptions.grey import with_channels


@needs_data
@pytest.mark.parametrize(
    ("crop", "photograph", "top", "left"),
    [
        ("test_001", "100075", 80, 247),
        ("test_100", "231015", 135, 144),
        ("test_200", "97017", 125, 49),
        ("test_400", "97010", 104, 192),
    ],
)
def test_grey_equals_the_files_that_matlab_made_of_colour_photographs(crop, photograph, top, left):
    """DnCNN's Train400: crops of BSDS500 through rgb2gray. BSD68 equals CBSD68 likewise, all 68."""
    made_by_matlab = np.asarray(Image.open(DATA / "train" / "Train400" / f"{crop}.png"))

    grey = with_channels(np.asarray(Image.open(DATA / "train/BSD400" / f"{photograph}.jpg")), 1)

    np.testing.assert_array_equal(grey[top : top + 180, left : left + 180, 0], made_by_matlab)


def test_grey_photographs_keep_their_values():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)

    np.testing.assert_array_equal(with_channels(levels.repeat(3, axis=2), 1), levels)


def test_a_large_photograph_takes_hardly_more_memory_than_its_grey():
    """ImageNet's largest has 61 million pixels, and a worker of each task keeps below 400 MiB."""
    photograph = np.full((2000, 3001, 3), 200, np.uint8)
    tracemalloc.start()

    grey = with_channels(photograph, 1)

    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grey.shape == (2000, 3001, 1)
    assert (grey == 200).all()
    assert most < grey.nbytes + 2**21


def test_colour_tasks_get_the_photograph_itself():
    photograph = np.zeros((4, 4, 3), np.uint8)

    assert with_channels(photograph, 3) is photograph
