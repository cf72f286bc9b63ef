import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_samples
from data_samples import imported_by
from report_samples import Run, cbsd68, scores

from pipeline.graph import StageError
from pipeline.report.facts import trained_on


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    return report_samples.small_run(tmp_path)


class Page(HTMLParser):
    """The addresses that a page would load, its ids and links, and whether its tags are closed."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.images_without_alt = 0
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[key] for key in ("src", "href", "data") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        self.images_without_alt += tag == "img" and not values.get("alt")
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(small_run):
    text, summary = small_run.report()

    page = Page(text)
    assert page.open == []
    assert page.images_without_alt == 0
    assert page.scripts == 1
    for address in page.addresses:
        if address.startswith("#"):
            assert address[1:] in page.ids
        else:
            assert address.startswith("data:")
    assert not re.search(r"@import|url\((?!data:)", text)
    assert summary["bytes"] == len(text.encode()) < 6_000_000


def test_the_record_has_the_same_numbers_and_no_pictures(small_run):
    text, summary = small_run.report()

    content = (small_run.root / "report" / "report.json").read_text()
    record = json.loads(content, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    (row,) = record["verdict"]
    assert {key: row[key] for key in summary["rows"][0]} == summary["rows"][0]
    assert (row["compared_by"], row["input"]) == ("psnr_rgb", "noisy input")
    assert (row["published"], row["why_nothing_published"]) == ([], "other photographs")
    assert record["headline"] in text
    assert record["protocols"]["denoise30"]["noise"] == "clipped"
    assert len(record["skipped"]) == 3
    assert {each["name"] for each in record["stages"]} == set(small_run.stages)
    assert {each["fingerprint"] for each in record["stages"]} == {"f" * 64}
    curves = {each["title"]: each["curves"] for each in record["trainings"]}
    assert curves["DnCNN"]["L2 loss"]["denoise30"][-1] == [64, 9 / 8]
    (picture,) = record["pictures"]
    assert picture["psnr"] == {"corrupted": 18.5, "dncnn": 28.5, "ipt": 27.25}
    assert picture["crops"] == [{"chosen": "the whole image", "top": 0, "left": 0}]
    assert "data:image" not in content
    assert "<svg" not in content


def test_names_are_escaped(small_run):
    text, _ = small_run.report()

    assert "alert(" in text
    assert "<script>alert" not in text
    assert "my &lt;run&gt;" in text
    assert "my <run>" not in text


def test_every_row_every_stage_and_every_section_is_there(small_run):
    text, summary = small_run.report()

    assert [(each["task"], each["test_set"]) for each in summary["rows"]] == [("denoise30", "mine")]
    assert summary["rows"][0]["dncnn"] == scores(28.5)
    assert summary["rows"][0]["ipt"] == scores(27.25)
    for expected in ("18.50", "28.50", "27.25", "29.25", "+10.00", "+8.75", *small_run.stages):
        assert expected in text
    assert "DnCNN is ahead of IPT in 1 of 1 comparison" in text
    assert "2 photographs trained on, 1 photograph scored on: a smoke test" in text
    assert "other photographs (mine, not CBSD68 or Urban100)" in text
    assert "PSNR on Y, while the rows of its rivals" in text
    assert "64 samples in 8 steps (1 skipped), 9 parameters, 2 processes, 3.0 s" in text
    assert text.count('<svg class="graph"') == 1


def test_every_file_that_could_not_be_used_is_named_with_its_reason(small_run):
    text, _ = small_run.report()

    (listed,) = re.findall(r"<details open><summary>Files that.*?</details>", text, re.DOTALL)
    assert "3 listed" in listed
    assert "<code>locked.png</code>: permission denied" in listed
    assert "&amp; &#34;quoted&#34;.png</code>: truncated" in listed
    assert "<code>/x/thin.png</code>: 9×40 pixels are too few" in listed
    assert "evaluate-finetune-denoise30, mine" in listed


def test_only_photographs_of_sources_are_said_to_be_held_out(small_run):
    text, _ = small_run.report()
    assert "Scored on 1 photograph that no stage trained on" in text

    small_run.add(
        "evaluate-dncnn-denoise30",
        "evaluate",
        ("dncnn-denoise30",),
        config={"test_sets": {"mine": {"source": None, "path": "anywhere"}}},
    )
    text, _ = small_run.report()
    assert "Scored on 1 photograph;" in text


def test_curves_are_losses_and_rates_and_no_bookkeeping(small_run):
    text, _ = small_run.report()

    titles = re.findall(r'<svg class="chart".*?<title>(.*?)</title>', text)
    assert titles == ["L1 loss", "Learning rate", "L2 loss", "Learning rate"]


def test_photographs_trained_on_are_those_in_training_shards(small_run):
    artifact = small_run.artifacts["corrupt-denoise30@photos"]
    source = {"images": 4, "validation": 1}

    assert trained_on([artifact], source) == 2
    record = artifact.folder / "shards" / "validation-00000.json"
    unusable = {"path": "v.png", "kind": "damaged", "reason": "cut short"}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"skipped": [unusable]}))
    assert trained_on([artifact], source) == 2
    assert trained_on([], source) == 0


def become_cbsd68(record: dict) -> None:
    """The test set of its own becomes the benchmark, whole."""
    mine = record["test_sets"].pop("mine")
    images = mine["images"] * 68
    record["test_sets"]["CBSD68"] = mine | {"images": images, "benchmark": cbsd68()}


@pytest.mark.parametrize("is_given", [False, True])
def test_our_scores_stand_in_a_published_table_only_under_its_protocol(small_run, is_given):
    for name in ("finetune", "dncnn"):
        with small_run.changing_scores(name) as record:
            become_cbsd68(record)
            record["test_sets"]["CBSD68"] |= {
                "corrupted_is_given": is_given,
                "noise": "of given files" if is_given else "clipped",
            }

    text, _ = small_run.report()

    (row,) = json.loads((small_run.root / "report" / "report.json").read_text())["verdict"]
    beside = [(each["method"], each["psnr"], each["other_tiling"]) for each in row["published"]]
    # The Y numbers have another channel.
    assert beside == ([] if is_given else [("IPT", 30.75, "official")])
    why = row["why_nothing_published"]
    assert why is None if beside else why.startswith("noise of given files")
    tables = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL)
    with_ours = [title for title, body in tables if "IPT, this run" in body]
    if is_given:  # then nobody knows how the noise was made
        assert not with_ours
        assert "noise of given files, published: clipped" in text
        return
    assert len(with_ours) == 2
    assert all("clipped noise" in title and "unclipped" not in title for title in with_ours)
    assert "noise clipped, published: unclipped" in text
    assert "same protocol" not in text
    assert "IPT 30.75<small>, official tiling</small>" in text
    assert 'title="Source: huawei-noah/Pretrained-IPT, issue #48"' in text


def test_tiles_joined_alike_are_no_difference(small_run):
    for name in ("finetune", "dncnn"):
        with small_run.changing_scores(name) as record:
            become_cbsd68(record)
            if name == "finetune":
                record["protocol"]["tiling"] = "official"

    text, _ = small_run.report()

    assert ">IPT 30.75</span>" in text


def test_a_photograph_counts_once_at_however_many_levels_it_is_scored(small_run):
    names = ("CBSD68", "CBSD68-sigma10", "CBSD68-sigma70")
    with small_run.changing_scores("finetune") as record:
        scored = record["test_sets"].pop("mine") | {"benchmark": cbsd68()}
        record["test_sets"] = dict.fromkeys(names, scored)

    text, _ = small_run.report()

    # One of the benchmark by IPT, one of "mine" by DnCNN.
    assert "Scored on 2 photographs" in text


def test_unreadable_scores_say_how_to_make_them_again(small_run):
    (small_run.root / "evaluate-dncnn-denoise30" / "scores.json").write_text("{")

    with pytest.raises(StageError, match="--from evaluate-dncnn-denoise30 --force"):
        small_run.report()


def test_a_run_without_evaluations_still_has_a_page(tmp_path):
    run = Run(tmp_path)
    source = {"root": "/x", "images": 2000, "validation": 64, "bytes": 1, "unreadable": []}
    source |= {"unreadable_found": 0, "other_files": 0}
    run.add("source@photos", "source", summary=source)

    text, summary = run.report()

    assert summary["rows"] == []
    assert "Nothing was evaluated" in text
    assert "smoke test" not in text
    Page(text)


def test_infinite_psnr_is_shown_as_such(small_run):
    equal = {"psnr_rgb": None, "psnr_y": None, "ssim_rgb": 1.0, "ssim_y": 1.0}
    with small_run.changing_scores("finetune") as record:
        record["test_sets"]["mine"]["mean"]["restored"] = equal

    text, _ = small_run.report()

    assert "IPT beats DnCNN by ∞ dB" in text
    assert "∞</td>" in text


def test_importing_the_stages_imports_neither_torch_nor_numpy():
    imported = imported_by("import stages.evaluate, stages.report")

    assert not {"torch", "numpy", "jinja2"} & imported


@pytest.mark.parametrize(
    ("states", "mark"),
    [
        ({"sizes": "verified", "input on RGB": "verified"}, "; verified<"),
        ({"sizes": "verified", "input": "not checked"}, "; verified: sizes<"),
        ({"sizes": "differs", "input": "not checked"}, ", incomplete; differs: sizes<"),
    ],
)
def test_what_was_verified_of_a_benchmark_stands_beside_its_name(small_run, states, mark):
    checks = [
        {"what": what, "state": state, "expected": "1", "found": "2"}
        for what, state in states.items()
    ]
    is_incomplete = "differs" in states.values()
    for name in ("finetune", "dncnn"):
        with small_run.changing_scores(name) as record:
            record["test_sets"]["mine"] |= {
                "benchmark": cbsd68(checks),
                "incomplete": is_incomplete,
            }

    text, _ = small_run.report()

    assert mark in text
    (row,) = json.loads((small_run.root / "report" / "report.json").read_text())["verdict"]
    assert row["checks"] == checks
