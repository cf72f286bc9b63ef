"""Our scores stand beside published ones only where photographs and protocol are the same."""

import json

import pytest
from data_samples import imported_by

from pipeline.benchmarks import BENCHMARKS
from pipeline.protocol import border_of, noise_of, protocol
from pipeline.published_comparison import ComparedTable, compared_tables, comparison_data
from pipeline.tasks import TASKS, Task, at_levels, published_name, task_named


def record(
    task: Task,
    name: str,
    *,
    psnr: float = 30.0,
    images: int | None = None,
    size: tuple[int, int] = (481, 321),
    model: str = "IPT",
    trained_for: str | None = None,
    self_ensemble: bool = False,
    **changed,
) -> dict:
    """A scores.json of one test set."""
    scores = {"psnr_rgb": psnr, "psnr_y": psnr + 2, "ssim_rgb": 0.9, "ssim_y": 0.91}
    if task.name == "derain":
        scores |= {"psnr_y_rounded": psnr + 1.97, "ssim_y_rounded": 0.909}
    count = BENCHMARKS[name].images if images is None else images
    tiling = None if model == "DnCNN" else "overlap"
    test_set = {
        "images": [{"width": size[0], "height": size[1]}] * count,
        "mean": {"restored": scores},
        "task": published_name(task),
        "title": task.title,
        "noise": noise_of(task),
        "border": border_of(task),
        "faults": [],
        "benchmark": {"name": name, "checks": []},
    }
    return {
        "model_name": model,
        "task": trained_for or task.name,
        "protocol": protocol(task, tiling=tiling, self_ensemble=self_ensemble, seed=0),
        "test_sets": {name: test_set | changed},
    }


def places(*records: dict) -> dict[str, ComparedTable]:
    """The tables, by title, that our scores stand in."""
    return {each.table.title: each for each in compared_tables(records) if each.ours}


def reasons(*records: dict) -> dict[str, tuple[str, ...]]:
    return {each.table.title: why for each in compared_tables(records) for _, why in each.apart}


def test_super_resolution_stands_in_the_table_of_the_release_on_luma():
    ours = record(TASKS["sr2"], "Set5", psnr=36.0)

    (table,) = places(ours).values()

    assert table.ours[0].psnr_in(table.table) == 38.0
    ipt = [each.psnr for each in table.published if each.method == "IPT"]
    assert {38.37, 33.76, 38.33} <= set(ipt)
    assert table.notes == ("ours by the tiling overlap, IPT's: official",)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (
            True,
            {
                "Colour denoising of IPT, scored on RGB",
                "Colour denoising of IPT, scored on luma (Y)",
            },
        ),
        (
            False,
            {
                "Colour denoising, scored on RGB",
                "Colour denoising, the other set of DnCNN numbers in circulation",
                "Colour denoising, scored on luma (Y), for comparison with IPT's",
            },
        ),
    ],
)
def test_denoising_stands_only_among_its_own_noise(clip, expected):
    ours = record(task_named("denoise50", clip_noise=clip), "CBSD68")

    assert set(places(ours)) == expected
    for title, why in reasons(ours).items():
        assert title not in expected
        assert len(why) == 1
        assert why[0].startswith("noise ")


def test_luma_and_rgb_of_one_output_stand_in_different_tables():
    tables = places(record(TASKS["denoise50"], "CBSD68", psnr=28.0))

    values = {table.table.channel: table.ours[0].psnr_in(table.table) for table in tables.values()}

    assert values == {"RGB": 28.0, "Y": 30.0}


def test_deraining_is_compared_on_the_luma_that_each_table_is_of():
    tables = places(record(TASKS["derain"], "Rain100L", psnr=35.0))

    values = {table.table.luma: table.ours[0].psnr_in(table.table) for table in tables.values()}

    assert values == {"as it is": 37.0, "rounded": pytest.approx(36.97)}
    (ipt,) = (table for table in tables.values() if table.table.luma == "as it is")
    differing = {each.psnr: each.differs for each in ipt.published}
    assert differing[41.62] is None
    assert "10 of the 100 images" in differing[42.08]


def test_a_part_of_a_benchmark_is_not_the_benchmark():
    ours = record(TASKS["derain"], "Rain100L", images=20)

    assert places(ours) == {}
    assert set(reasons(ours).values()) == {("20 of the 100 images of Rain100L",)}


def test_an_image_that_failed_keeps_a_score_out():
    ours = record(TASKS["sr2"], "Set5", faults=[{"path": "x", "reason": "y"}])

    assert places(ours) == {}
    assert set(reasons(ours).values()) == {("1 of its images could not be used",)}


def test_what_only_has_the_name_of_a_benchmark_keeps_out():
    ours = record(TASKS["sr2"], "Set5", benchmark=None)

    assert places(ours) == {}
    why = "a test set of that name, not checked as a benchmark is"
    assert set(reasons(ours).values()) == {(why,)}


@pytest.mark.parametrize("what", ["sizes", "input on Y, rounded to 8 bits"])
def test_a_check_that_differs_keeps_out_and_is_said(what):
    check = {"what": what, "state": "differs", "expected": "26.90", "found": "25.52"}
    whole = {"what": "number of images", "state": "verified", "expected": "100", "found": "100"}
    benchmark = {"name": "Rain100L", "checks": [whole, check]}
    ours = record(TASKS["derain"], "Rain100L", benchmark=benchmark)

    assert places(ours) == {}
    assert set(reasons(ours).values()) == {(f"{what}: expected 26.90, found 25.52",)}
    (table, *_) = comparison_data([ours])
    assert table["not_comparable"][0]["differs"] == [f"{what}: expected 26.90, found 25.52"]


def test_kodak24_in_whole_is_not_kodak24_in_squares():
    task = task_named("denoise50", clip_noise=False)
    title = "Colour denoising, the other set of DnCNN numbers in circulation"

    whole = record(task, "Kodak24", size=(768, 512))
    squares = record(task, "Kodak24", size=(500, 500))

    assert reasons(whole)[title] == ("Kodak24 of 768×512 pixels, published: 500×500",)
    assert title in places(squares)


def test_a_self_ensemble_is_not_what_was_published():
    ours = record(TASKS["sr2"], "Set5", self_ensemble=True)

    assert places(ours) == {}
    assert set(reasons(ours).values()) == {("with self-ensemble, published: without",)}


def test_what_is_not_rounded_and_what_is_grey_stands_apart():
    grey = record(task_named("grey25", clip_noise=False), "Set12", model="DnCNN", size=(256, 256))
    jpeg = record(at_levels(TASKS["jpeg"])[0], "LIVE1", size=(768, 512))

    assert set(places(grey)) == {"Grey denoising, DnCNN"}
    assert "published: not rounded" in reasons(grey)["Grey denoising, DnCNN in PyTorch"][0]
    assert reasons(jpeg) == {"JPEG artefacts, DnCNN-3": ("colour images, published: on grey",)}


def test_a_model_measured_at_another_level_stands_in_the_table_of_that_level():
    task = task_named("denoise50", clip_noise=False)
    ours = record(task, "CBSD68", trained_for="denoise30", model="DnCNN")

    table = places(ours)["Colour denoising, scored on RGB"]

    assert {each.task for each in table.published} == {"denoise50"}
    assert (table.ours[0].trained_for, table.ours[0].task) == ("denoise30", "denoise50")
    assert table.notes == ("the noise is another draw: seeds can't be shared between generators",)


def test_the_same_is_there_for_machines():
    ours = record(TASKS["sr2"], "Set5", psnr=36.0)

    data = json.loads(json.dumps(comparison_data([ours])))

    (table,) = (each for each in data if each["ours"])
    assert table["ours"][0]["psnr"] == 38.0
    assert table["protocol"]["channel"] == "Y"
    assert table["source"].startswith("huawei-noah/Pretrained-IPT")
    assert table["not_comparable"] == []


def test_comparing_needs_no_torch():
    assert "torch" not in imported_by("import pipeline.published_comparison")
