import json

import pytest
from report_samples import scores, small_run

from pipeline.report.verdict import VerdictRow, headline, sentence, smoke_test, verdict_rows


def row(**models: float) -> VerdictRow:
    means = {name: scores(value) for name, value in models.items()}
    return VerdictRow(task="denoise30", test_set="mine", images=1, **means)


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
        test_set = {"mean": means, "images": [{"name": "a"}], "skipped": [], "incomplete": False}
        test_set["corrupted_is_given"] = False
        return {"task": task, "model": model, "test_sets": {"b": test_set}}

    rows = verdict_rows([record("denoise50", "dncnn"), record("sr2", "finetune")])

    assert [each.task for each in rows] == ["sr2", "denoise50"]


def test_what_gave_no_score_is_named_with_the_reason(tmp_path):
    run = small_run(tmp_path)
    for model, missing in (("finetune", ["Urban100"]), ("dncnn", ["Urban100", "McMaster"])):
        with run.changing_scores(model) as record:
            record["missing_benchmarks"] = missing
            record["failed"] = {"Kodak24": "no image <could> be used"} if model == "dncnn" else {}

    text, _ = run.report()

    assert "Kodak24: incomplete, DnCNN has no score: no image &lt;could&gt; be used" in text
    assert "Incomplete: some test sets gave no score" in text
    assert "not there: Urban100, McMaster" in text
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["unscored"] == {
        "denoise30": {
            "failed": [
                {"test_set": "Kodak24", "model": "DnCNN", "reason": "no image <could> be used"}
            ],
            "missing": ["Urban100", "McMaster"],
        }
    }


def test_models_that_met_other_images_are_compared_on_those_that_both_met():
    def record(model: str, **psnrs: float) -> dict:
        images = [
            {"name": name, "corrupted": scores(psnr - 10), "restored": scores(psnr)}
            for name, psnr in psnrs.items()
        ]
        mean = sum(psnrs.values()) / len(psnrs)
        scored = {
            "images": images,
            "mean": {"corrupted": scores(mean - 10), "restored": scores(mean)},
            "skipped": [],
            "corrupted_is_given": False,
            "incomplete": False,
        }
        return {"task": "denoise30", "model": model, "test_sets": {"mine": scored}}

    (some,) = verdict_rows([record("finetune", a=30), record("dncnn", a=28, b=20, c=20)])
    (none,) = verdict_rows([record("finetune", a=30), record("dncnn", b=20)])
    (all_,) = verdict_rows([record("finetune", a=30, b=20), record("dncnn", a=28, b=20)])

    assert (some.images, some.incomplete) == (1, True)
    assert some.corrupted == scores(20)  # as IPT's record has it: the first
    assert (some.ipt, some.dncnn) == (scores(30), scores(28))
    assert (none.images, none.incomplete, none.dncnn) == (1, True, None)
    assert (all_.images, all_.incomplete, all_.dncnn) == (2, False, scores(24))
