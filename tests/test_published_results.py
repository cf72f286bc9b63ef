import pytest
from data_samples import imported_by

from pipeline.published_results import (
    PublishedTable,
    benchmark_named,
    differences,
    published_tables,
)
from pipeline.tasks import PUBLISHED_ORDER


def value(task: str, method: str, benchmark: str, channel: str) -> list[float]:
    return [
        each.psnr
        for table in published_tables()
        for each in table.results
        if table.channel == channel
        and (each.task, each.method, each.benchmark) == (task, method, benchmark)
    ]


def table_of(task: str, method: str) -> PublishedTable:
    """The first table that has the method at the task."""
    return next(
        table
        for table in published_tables()
        if any((each.task, each.method) == (task, method) for each in table.results)
    )


@pytest.mark.parametrize(
    ("task", "method", "benchmark", "channel", "expected"),
    [
        ("sr2", "IPT", "Set5", "Y", [38.37, 38.33]),
        ("sr4", "IPT", "Urban100", "Y", [27.26, 27.24]),
        ("sr3", "EDSR", "B100", "Y", [29.25]),
        ("derain", "IPT", "Rain100L", "Y", [41.62, 42.08]),
        ("denoise30", "IPT", "CBSD68", "RGB", [30.75]),
        ("denoise50", "IPT", "CBSD68", "RGB", [28.39]),
        ("denoise50", "IPT", "Urban100", "RGB", [29.71]),
        ("denoise50", "IPT", "CBSD68", "Y", [29.93, 29.88]),
        ("denoise30", "DnCNN", "CBSD68", "RGB", [30.40]),
        ("denoise50", "DnCNN", "CBSD68", "RGB", [28.01, 27.95, 27.92]),
    ],
)
def test_published_values_are_as_printed(task, method, benchmark, channel, expected):
    assert value(task, method, benchmark, channel) == expected


def test_every_task_of_the_paper_has_published_rows_of_ipt():
    for task in PUBLISHED_ORDER:
        assert table_of(task, "IPT").results


def test_denoising_of_ipt_on_luma_and_on_rgb_stand_in_tables_of_their_own_with_the_reason():
    tables = [
        table
        for table in published_tables()
        if any(each.method == "IPT" and each.task.startswith("denoise") for each in table.results)
    ]

    assert {(table.channel, table.noise) for table in tables} == {
        ("Y", "clipped"),
        ("RGB", "clipped"),
    }
    for table in tables:
        assert {each.method for each in table.results} == {"IPT"}
    (on_luma,) = (table for table in tables if table.channel == "Y")
    assert "issue #48" in on_luma.explanation


def test_every_row_names_its_source_and_every_table_its_protocol():
    for table in published_tables():
        assert table.results
        assert table.channel in ("RGB", "Y", "grey")
        assert table.border == ("scale" if "Super-resolution" in table.title else "0")
        is_denoising = "denoising" in table.title
        assert table.noise in (("clipped", "unclipped") if is_denoising else (None,))
        for each in table.results:
            assert each.source
            assert benchmark_named(each.benchmark) is not None
            assert 20 < each.psnr < 45
            assert each.ssim is None or 0.6 < each.ssim < 1


def test_no_value_that_could_not_be_read_in_a_source_is_there():
    """What the study has only from memory: SADNet, IPT's 32.32 and 33.75, RCDNet, DSC."""
    methods = {each.method for table in published_tables() for each in table.results}
    values = {
        each.psnr
        for table in published_tables()
        for each in table.results
        if each.task.startswith("denoise")
    }

    assert not methods & {"SADNet", "RCDNet", "DSC", "GMM", "SPANet"}
    assert not values & {32.32, 33.75, 31.12, 32.00, 38.30, 39.07}


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [("Set5", "Set5"), ("set-5", "Set5"), ("BSD100", "B100"), ("cbsd68", "CBSD68"), ("mine", None)],
)
def test_a_test_set_is_known_by_the_names_people_use(name, benchmark):
    found = benchmark_named(name)

    assert (found.name if found else None) == benchmark


def test_scores_are_comparable_only_where_photographs_and_protocol_agree():
    table = table_of("sr2", "RCAN")
    same = {"test_set": "Set5", "images": 5, "border": 2, "noise": None}

    assert differences(table, **same) == []
    assert differences(table, **same | {"test_set": "mine"}) == [
        "other photographs (mine, not Set5 or Set14 or B100 or Urban100)"
    ]
    assert differences(table, **same | {"images": 4}) == ["4 of the 5 images of Set5"]
    assert "border" in differences(table, **same | {"border": 0})[0]


def test_noise_conventions_keep_denoising_apart():
    table = table_of("denoise50", "RNAN")
    same = {"test_set": "CBSD68", "images": 68, "border": 0}

    assert differences(table, **same, noise="unclipped") == []
    assert differences(table, **same, noise="clipped") == ["noise clipped, published: unclipped"]


def test_reading_needs_no_torch():
    imported = imported_by(
        "from pipeline.published_results import published_tables; published_tables()"
    )

    assert "torch" not in imported
