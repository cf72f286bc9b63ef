"""The scripts that train small IPTs: what they run, and what they conclude."""

import subprocess
import sys
from pathlib import Path

import pytest
from demo_run import ROOT

from benchmarks import ablation, small
from pipeline.config import RunConfig
from pipeline.config_file import load_config

SMALL = ROOT / "configs" / "small.yaml"


def configured(*overrides: str) -> RunConfig:
    return load_config(SMALL, overrides)


def arm(name: str) -> RunConfig:
    return configured(*ablation.overrides_of(name, 0, small.DATA))


def test_cuts_change_how_long_the_small_ipt_is_trained_and_not_what_it_is() -> None:
    whole, cut = configured(), configured(*small.CUTS)

    assert cut.ipt == whole.ipt
    assert cut.corrupt == whole.corrupt
    for name in ("learning_rate", "schedule", "clip_norm", "tasks", "precision", "data"):
        assert getattr(cut.pretrain, name) == getattr(whole.pretrain, name)
    assert {each.samples for each in cut.finetune.values()} == {1200}


def test_each_arm_differs_from_the_first_in_what_it_is_named_by() -> None:
    arms = {name: arm(name) for name in ablation.ARMS}
    first, scratch, longer, no_contrast, one = arms.values()

    assert {name: each for name, each in first.finetune.items()} == {
        name: each.model_copy(update={"pretrained": True, "learning_rate": 1e-4})
        for name, each in scratch.finetune.items()
    }
    assert {each.samples for each in longer.finetune.values()} == {1200 + 7200 // 6}
    assert not any(each.pretrained for each in longer.finetune.values())
    assert (no_contrast.pretrain.contrastive.weight, one.pretrain.tasks_per_step) == (0, "one")
    for other in (no_contrast, one):
        assert other.finetune == first.finetune
        assert other.pretrain != first.pretrain
    assert (
        len({each.model_dump_json(exclude={"pretrain", "finetune"}) for each in arms.values()}) == 1
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((31.0, 31.2), "+1.10"),
        ((29.0, 29.1), "-0.95"),
        ((29.0, 30.4), "no conclusion (-0.30)"),  # a spread of 1.4
        ((30.02, 30.14), "no conclusion (+0.08)"),  # as large as the first arm's 0.1, or less
    ],
)
def test_a_gap_within_the_spread_of_the_seeds_is_no_conclusion(
    values: tuple[float, float], said: str
) -> None:
    base = (29.95, 30.05)

    assert ablation.verdict(values, base) == said


def record(psnr: float) -> dict:
    line = {
        "task": "sr2",
        "test_set": "Set5",
        "images": 5,
        "compared_by": "psnr_y",
        "corrupted": {"psnr_y": 33.66},
        "ipt": {"psnr_y": psnr},
        "published": [{"method": "IPT", "psnr": 38.37}, {"method": "EDSR", "psnr": 38.11}],
        "why_nothing_published": None,
    }
    accounts = [
        f"{name}: 48 samples in 2 steps, 9 parameters" for name in ("pretrain", "finetune-sr2")
    ]
    stages = {"corrupt-sr2": "corrupt", "pretrain": "pretrain", "finetune-sr2": "finetune"}
    return {
        "trained_on": 384,
        "seconds": 1234.0,
        "sources": {"imagenet": {}},
        "verdict": [line, line | {"test_set": "imagenet"}],
        "trainings": [{"stages": accounts[:1]}, {"stages": accounts[1:]}],
        "stages": [{"name": each, "kind": kind, "seconds": 60.0} for each, kind in stages.items()],
    }


def test_pages_hold_every_score_beside_the_first_arms_and_the_published() -> None:
    arms = {name: [record(30 + i), record(30.1 + i)] for i, name in enumerate(ablation.ARMS)}

    page = ablation.page_of(arms, [0, 1], [])
    alone = small.page_of(record(34.5), [])

    assert "| arm | minutes | Super-resolution ×2, Set5 |" in page
    assert f"| {ablation.BASE} | 2.0 | 30.05 (30.00, 30.10) |" in page
    assert "| one task in a step | +4.00 |" in page
    assert "| Super-resolution ×2 | Set5 | 5 | Y | 33.66 | 34.50 | +0.84 | 38.37 |" in alone
    assert "| pretrain | 1.0 | 48 samples in 2 steps, 9 parameters |" in alone
    assert "| corrupt | 1.0 |  |" in alone
    assert alone.startswith("# An IPT of 9 parameters, trained on 384 photographs")


@pytest.mark.slow
def test_the_small_recipe_runs_to_its_page(tmp_path: Path) -> None:
    if not small.DATA.is_dir():
        pytest.skip(f"{small.DATA}: no such folder")
    photographs = tmp_path / "imagenet" / "train"
    photographs.mkdir(parents=True)
    for folder in sorted((small.DATA / "imagenet" / "train").iterdir())[:4]:
        (photographs / folder.name).symlink_to(folder)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "Set5").symlink_to(small.DATA / "benchmarks" / "Set5")
    values = (
        *("sources.imagenet.validation_images=1", "corrupt.crops_per_image=4"),
        *("ipt.features=4", "ipt.encoder_layers=1", "ipt.decoder_layers=1"),
        *("ipt.attention_heads=4", "pretrain.tasks=[sr2]", "pretrain.samples=24"),
        "finetune={sr2: {samples: 8, batch: 8}}",
    )
    overrides = [part for each in values for part in ("--set", each)]
    places = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "benchmarks.small", *places, *overrides]

    done = subprocess.run(
        [*command, "--out", str(tmp_path / "small.md")], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    page = (tmp_path / "small.md").read_text()
    assert "| Super-resolution ×2 | Set5 | 5 | Y | 33.67 |" in page
    assert "| pretrain | " in page
