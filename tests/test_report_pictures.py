import numpy as np
import pytest
from PIL import Image

from pipeline.report.comparisons import PICTURE_BUDGET, Comparison, pictures_section
from pipeline.report.figures import Node, duration, graph_picture, line_chart
from pipeline.report.pictures import contact_sheet, most_different
from pipeline.tasks import TASKS


def test_the_most_different_window_is_found():
    one = np.zeros((40, 60, 3), np.uint8)
    other = one.copy()
    other[25, 47] = 255

    top, left = most_different(one, other, size=(10, 12))

    assert top <= 25 < top + 10
    assert left <= 47 < left + 12
    assert most_different(one, other, size=(100, 100)) == (0, 0)


def test_a_contact_sheet_shows_small_inputs_in_blocks():
    clean = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    corrupted = np.full((8, 8, 3), 7, np.uint8)

    sheet = contact_sheet([(corrupted, clean), (corrupted, clean)])

    assert sheet.shape == (16 + 4 + 16, 16 + 4 + 16, 4)
    assert np.array_equal(sheet[:16, :16, :3], clean)
    assert (sheet[20:, :16, :3] == 7).all()
    assert (sheet[16:20, :, 3] == 0).all()


def test_pictures_shrink_until_the_page_can_bear_them(tmp_path):
    rng = np.random.default_rng(0)
    paths = {}
    for version in ("corrupted", "ipt", "clean"):
        paths[version] = tmp_path / f"{version}.png"
        pixels = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[version])
    comparisons = [
        Comparison(task=TASKS["denoise30"], test_set=str(i), image=image, paths=paths)
        for i in range(9)
        for image in "ab"
    ]

    section = pictures_section(comparisons)

    assert len(section) == 9
    assert section[0]["width"] < 320
    weight = sum(len(version["uri"]) for each in section for version in each["versions"])
    assert weight <= PICTURE_BUDGET


def test_a_chart_survives_one_point_zeros_and_gaps():
    assert line_chart({}, title="t", x_label="x") == ""
    nothing = {"a": [(0, float("nan"))]}
    assert line_chart(nothing, title="t", x_label="x", log=True) == ""
    for log in (False, True):
        for points in ([(8, 1.0)], [(8, 1.0), (16, 1.0)], [(8, 0.0), (16, 3e-7)], [(0, 5e9)]):
            picture = line_chart({"<a>": points}, title="t", x_label="x", log=log)
            assert "nan" not in picture.lower()
            assert "<a>" not in picture


def test_the_graph_draws_no_line_that_another_path_implies():
    nodes = [
        Node(name="source", kind="source", seconds=1.0, inputs=()),
        Node(name="corrupt", kind="corrupt", seconds=1.0, inputs=("source",)),
        Node(name="train", kind="finetune", seconds=9.0, inputs=("corrupt",)),
        Node(name="evaluate", kind="evaluate", seconds=1.0, inputs=("train", "source")),
    ]

    picture = graph_picture(nodes)

    assert picture.count('class="edge"') == 3
    assert picture.count('class="box"') == 4


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.99, "10.0 s"),
        (59.7, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_are_readable(seconds, expected):
    assert duration(seconds) == expected
