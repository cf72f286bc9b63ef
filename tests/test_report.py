import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config
from pipeline.artifacts import Artifact, seal
from pipeline.data.shards import shard_name, writing_shard
from pipeline.graph import Job, Stage, StageError
from pipeline.report.comparisons import PICTURE_BUDGET, Comparison, pictures_section
from pipeline.report.facts import trained_on
from pipeline.report.figures import Node, duration, graph_picture, line_chart
from pipeline.report.pictures import contact_sheet, most_different
from pipeline.report.verdict import VerdictRow, headline, sentence, smoke_test, verdict_rows
from pipeline.tasks import TASKS
from stages.report import report_stage

NASTY = '<script>alert("x")</script> & "quoted".png'


def scores(psnr: float, ssim: float = 0.5) -> dict[str, float]:
    return {"psnr_rgb": psnr, "psnr_y": psnr + 2, "ssim_rgb": ssim, "ssim_y": ssim + 0.1}


def row(**models: float) -> VerdictRow:
    means = {name: scores(value) for name, value in models.items()}
    return VerdictRow(task="denoise30", test_set="mine", images=1, **means)


def write_scores(folder: Path, *, model: str, task: str, psnr: float, image: str) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = {}
    for version in ("corrupted", "restored", "clean"):
        pictures[version] = f"images/{version}.png"
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / pictures[version])
    entry = {
        "name": image,
        "height": 60,
        "width": 80,
        "corrupted": scores(18.5),
        "restored": scores(psnr),
        "pictures": pictures,
    }
    record = {
        "model": model,
        "model_name": "DnCNN" if model == "dncnn" else "IPT",
        "task": task,
        "protocol": {
            "channels": ["RGB", "Y"],
            "border": 2 if task == "sr2" else 0,
            "rounding": "uint8",
            "corrupted_rounding": "none, as drawn",
            "luma": "unrounded",
            "ssim": "Gaussian",
            "mean": "of per-image scores",
            "noise": "clipped" if task == "denoise30" else None,
            "seed": 0,
            "tiling": None if model == "dncnn" else "overlap",
            "self_ensemble": False,
            "precision": "float32",
            "corrupted_shown": "as given",
        },
        "test_sets": {
            "mine": {
                "images": [entry],
                "mean": {"corrupted": scores(18.5), "restored": scores(psnr)},
                "skipped": [{"path": "/x/thin.png", "reason": "9×40 pixels are too few"}],
            }
        },
    }
    (folder / "scores.json").write_text(json.dumps(record))


class Run:
    """Small artifacts of a run, made by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: dict[str, Stage] = {}
        self.artifacts: dict[str, Artifact] = {}

    def folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, name: str, kind: str, inputs: tuple[str, ...] = (), **sealed) -> None:
        parents = {each: self.stages[each] for each in inputs}
        self.stages[name] = Stage(
            name=name,
            kind=kind,
            version=1,
            config=config.Section(),
            run=lambda job: {},
            inputs=parents,
        )
        self.artifacts[name] = seal(
            self.folder(name),
            stage=name,
            version=1,
            fingerprint="f" * 64,
            config=sealed.get("config", {"seed": 0}),
            inputs={},
            summary=sealed.get("summary", {}),
            seconds=12.5,
        )

    def report(self) -> tuple[str, dict]:
        stage = report_stage("my <run>", self.stages)
        folder = self.folder("report")
        job = Job(
            config=stage.config,
            fingerprint="0" * 64,
            folder=folder,
            inputs=self.artifacts,
            runtime=config.Runtime(),
        )
        summary = stage.run(job)
        return (folder / "report.html").read_text(encoding="utf-8"), summary


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    unreadable = [{"path": NASTY, "reason": "truncated"}]
    source = {
        "root": "/x",
        "images": 4,
        "validation": 1,
        "bytes": 5000,
        "unreadable": [{"path": "locked.png", "reason": "permission denied"}],
        "unreadable_found": 1,
        "other_files": 2,
    }
    run.add("source@photos", "source", summary=source)
    shards = run.folder("corrupt-denoise30@photos") / "shards"
    shards.mkdir()
    rng = np.random.default_rng(0)
    skipped = [each | {"kind": "truncated"} for each in unreadable]
    for split in ("train", "validation"):
        with writing_shard(shards, shard_name(split, 0), image_format="npy") as writer:
            for number in range(3):
                clean = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                writer.add(f"{number:016x}-0", {"clean": clean}, {"task": "denoise30"})
            writer.finish(skipped if split == "train" else ())
    run.add(
        "corrupt-denoise30@photos",
        "corrupt",
        ("source@photos",),
        config={"task": {"name": "denoise30", "corruption": "GaussianNoise", "sigma_255": 30}},
        summary={
            "task": "denoise30",
            "format": "npy",
            "train_samples": 24,
            "validation_samples": 3,
            "skipped_images": 1,
            "skipped": unreadable,
            "skipped_by_reason": {"truncated": 1},
            "bytes": 123456,
            "clip": True,
        },
    )
    training = {"samples": 64, "steps": 8, "parameters": 9, "world_size": 2, "seconds": 3.0}
    for kind, loss in (("finetune", "l1/denoise30"), ("dncnn", "l2/denoise30")):
        name = f"{kind}-denoise30"
        rows = [
            {
                "step": i,
                "samples": i * 8,
                "loss": 9 / i,
                loss: 9 / i,
                "learning_rate": 1e-4,
                "data_wait": 0.01,
                "samples_per_second": 80.0,
            }
            for i in range(1, 9)
        ]
        text = "".join(json.dumps(each) + "\n" for each in rows)
        (run.folder(name) / "metrics.jsonl").write_text(text)
        run.add(
            name,
            kind,
            ("corrupt-denoise30@photos",),
            summary=training | {"skipped_steps": 1 if kind == "dncnn" else 0},
        )
        psnr = 27.25 if kind == "finetune" else 28.5
        folder = run.folder(f"evaluate-{name}")
        write_scores(folder, model=kind, task="denoise30", psnr=psnr, image=NASTY)
        run.add(
            f"evaluate-{name}",
            "evaluate",
            (name, "source@photos"),
            config={"test_sets": {"mine": {"source": "photos", "path": None}}},
        )
    return run


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


def test_our_scores_stand_in_a_published_table_only_under_its_protocol(small_run):
    for name in ("finetune-denoise30", "dncnn-denoise30"):
        path = small_run.root / f"evaluate-{name}" / "scores.json"
        record = json.loads(path.read_text())
        mine = record["test_sets"].pop("mine")
        record["test_sets"]["CBSD68"] = mine | {"images": mine["images"] * 68}
        path.write_text(json.dumps(record))

    text, _ = small_run.report()

    tables = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL)
    with_ours = [title for title, body in tables if "IPT, this run" in body]
    assert len(with_ours) == 2
    assert all("clipped noise" in title and "unclipped" not in title for title in with_ours)
    assert "noise clipped, published: unclipped" in text


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
    path = small_run.root / "evaluate-finetune-denoise30" / "scores.json"
    record = json.loads(path.read_text())
    equal = {"psnr_rgb": None, "psnr_y": None, "ssim_rgb": 1.0, "ssim_y": 1.0}
    record["test_sets"]["mine"]["mean"]["restored"] = equal
    path.write_text(json.dumps(record))

    text, _ = small_run.report()

    assert "IPT beats DnCNN by ∞ dB" in text
    assert "∞</td>" in text


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(corrupted=18, ipt=27, dncnn=26)], "IPT is ahead of DnCNN in 1 of 1 comparison"),
        (
            [row(corrupted=18, ipt=27, dncnn=26), row(corrupted=15, ipt=25, dncnn=25.12)],
            "IPT is ahead of DnCNN in 1, behind in 1 of 2 comparisons",
        ),
        ([row(corrupted=18, ipt=26, dncnn=26.001)], "IPT and DnCNN are level over 1 comparison"),
        ([row(corrupted=18, ipt=27)], "IPT improves on its input in 1 of 1 comparison"),
        ([row(corrupted=18, ipt=17)], "IPT improves on its input in 0 of 1 comparison"),
        ([], "Nothing was evaluated"),
    ],
)
def test_the_headline_says_what_the_scores_say(rows, expected):
    assert headline(rows) == expected


def test_a_loss_is_called_a_loss():
    assert sentence(row(corrupted=18, ipt=17.5)) == "IPT loses 0.50 dB against the noisy input."
    assert sentence(row(corrupted=18, ipt=27, dncnn=28.25)) == (
        "DnCNN beats IPT by 1.25 dB; IPT gains 9.00 dB; DnCNN gains 10.25 dB against the noisy "
        "input."
    )


def test_a_large_run_is_no_smoke_test():
    assert smoke_test(1_281_167, 50) is None
    assert smoke_test(3, 2) == (
        "3 photographs trained on, 2 photographs scored on: a smoke test of the pipeline, not a "
        "measurement of the method."
    )


def test_rows_follow_the_order_of_the_tasks():
    def record(task: str, model: str) -> dict:
        means = {"corrupted": scores(18), "restored": scores(20)}
        test_set = {"mean": means, "images": [1], "skipped": []}
        return {"task": task, "model": model, "test_sets": {"b": test_set}}

    rows = verdict_rows([record("denoise50", "dncnn"), record("sr2", "finetune")])

    assert [each.task for each in rows] == ["sr2", "denoise50"]


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


def test_importing_the_stages_imports_neither_torch_nor_numpy():
    program = (
        "import sys; import stages.evaluate, stages.report; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'jinja2')))"
    )

    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
