import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.durations import duration
from pipeline.report.comparisons import Comparison, pictures_section
from pipeline.report.facts import POINTS, thinned
from pipeline.report.figures import Node, graph_picture, line_chart
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

    section = pictures_section(comparisons, budget=2_000_000)

    assert len(section) == 9
    assert section[0]["width"] < 200
    assert 1_000_000 < weight(section) <= 2_000_000
    few = pictures_section(comparisons, budget=200_000)
    assert [each["test_set"] for each in few] == list("0123456789")[: len(few)]
    assert few
    assert weight(few) <= 200_000


def weight(section: list[dict]) -> int:
    crops = [crop for each in section for crop in each["crops"]]
    return sum(len(version["uri"]) for crop in crops for version in crop["versions"])


def test_crops_are_the_place_of_the_largest_difference_and_one_by_chance(tmp_path):
    clean = np.arange(300 * 400 * 3, dtype=np.uint32).reshape(300, 400, 3).astype(np.uint8)
    ipt = clean.copy()
    ipt[290, 390] ^= 255
    paths = {}
    for version, pixels in {"corrupted": clean, "ipt": ipt, "clean": clean}.items():
        paths[version] = tmp_path / f"{version}.png"
        Image.fromarray(pixels).save(paths[version])

    def crops_of(image: str) -> list[dict]:
        one = Comparison(task=TASKS["denoise30"], test_set="mine", image=image, paths=paths)
        return pictures_section([one])[0]["crops"]

    most, random = crops_of("a")
    assert most["top"] + 150 > 290 >= most["top"]
    assert most["left"] + 200 > 390 >= most["left"]
    assert (most["chosen"], random["chosen"]) == (
        "where IPT and Clean differ most",
        "at random, with a fixed seed",
    )
    for crop in (most, random):
        for version in crop["versions"]:
            data = base64.b64decode(version["uri"].partition(",")[2])
            with Image.open(io.BytesIO(data)) as image:
                shown = np.asarray(image)
            whole = ipt if version["key"] == "ipt" else clean
            top, left = crop["top"], crop["left"]
            assert np.array_equal(shown, whole[top : top + 150, left : left + 200])
    assert crops_of("a")[1]["top"] == random["top"]
    places = {(crops_of(name)[1]["top"], crops_of(name)[1]["left"]) for name in "abc"}
    assert len(places) == 3


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


def test_ticks_show_the_number_that_they_stand_for():
    picture = line_chart({"": [(0, 0.0), (8, 1.2e-4)]}, title="t", x_label="x")

    assert all(f">{tick}<" in picture for tick in ("0", "2.5e-5", "5e-5", "7.5e-5", "1e-4"))


def test_long_lines_are_drawn_in_means_of_neighbours():
    line = [(float(i), float(i % 2)) for i in range(10_001)]

    thin = thinned(line)

    assert len(thin) <= POINTS
    assert thin[-1] == line[-1]
    assert {y for _, y in thin[:-1]} == {0.5}
    assert thinned(line[:POINTS]) == line[:POINTS]


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
