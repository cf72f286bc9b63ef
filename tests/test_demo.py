"""The whole graph, at a size that takes seconds: what make demo does."""

import subprocess
import sys

import torch
from demo_run import ROOT, STAGES, Run, stages_made
from safetensors.torch import load_file

from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.ipt import IPT


def test_graph_runs_from_photographs_to_the_report(finished):
    (report,) = finished.folder.glob("report/*/report.html")

    assert stages_made(finished.output) == STAGES
    assert str(report) in finished.output
    assert "smoke test" in report.read_text()
    for words in ("denoise30", "DnCNN", "IPT", "PSNR RGB", "SSIM Y", "launch submit"):
        assert words in finished.output


def test_second_run_makes_nothing(finished):
    assert finished.made() == set()


def test_one_changed_fine_tuning_value_remakes_its_stage_its_scores_and_the_report(finished):
    before = set(finished.folder.glob("*/*"))
    changes = ("pretrained=false", "learning_rate=1e-9", "final_learning_rate=1e-9")
    overrides = (part for each in changes for part in ("--set", f"finetune.sr2.{each}"))

    made = finished.made(*overrides)

    assert made == {"finetune-sr2", "evaluate-finetune-sr2", "report"}
    new = {each.parent.name: each for each in set(finished.folder.glob("*/*")) - before}
    assert "samples in 6 steps" in (page := (new["report"] / "report.html").read_text())
    assert page.count("from random weights") == 1  # denoise30 still begins with the pretrained
    torch.manual_seed(0)
    size = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=4)
    begun = IPT(IPTConfig(size=size, scales={"sr2": 2})).state_dict()
    trained = load_file(new["finetune-sr2"] / "model" / "model.safetensors")
    assert trained.keys() == begun.keys()
    for name, weight in begun.items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-7)


def test_runtime_values_remake_nothing(finished):
    assert (
        finished.made("--set", "runtime.log_every_steps=7", "--set", "runtime.workers=1") == set()
    )


def test_plan_and_status_show_every_stage(finished):
    for command in ("plan", "status"):
        output = finished(command)
        assert all(stage in output for stage in STAGES)
    assert "0 of 16 stages to make" in finished("plan")


def test_plan_of_the_papers_recipe_says_what_it_costs():
    command = [sys.executable, "-m", "launch", "plan", "imagenet"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert "118,892,370 parameters, 384,000,000 samples" in done.stdout
    assert "7.7e+19 FLOP" in done.stdout


def test_output_that_nobody_reads_is_no_traceback():
    command = f"{sys.executable} -m launch plan imagenet | head -1"

    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.stdout.startswith("imagenet")
    assert done.stderr == ""


def test_verify_names_the_file_that_was_altered(finished):
    assert "every file is as it was sealed" in finished("verify")
    shard = next(finished.folder.glob("corrupt-sr2@photos/*/shards/*.tar"))
    content = shard.read_bytes()

    shard.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    try:
        output = finished("verify", code=1)
        assert f"{shard}: altered" in output
        assert "✗ corrupt-sr2@photos" in output
    finally:
        shard.write_bytes(content)


def test_source_that_is_not_there_leaves_what_is_done_as_it_is(finished):
    before = sorted(finished.folder.glob("*/*/manifest.json"))

    refused = finished("run", "--set", "sources.photos.path=/nowhere", code=2)

    assert "sources.photos.path: /nowhere: no such folder" in refused
    assert sorted(finished.folder.glob("*/*/manifest.json")) == before


def test_test_set_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    run = Run(tmp_path)

    refused = run("run", "--set", "evaluate.test_sets.Set5={path: nowhere}", code=2)

    assert "evaluate.test_sets.Set5.path: nowhere: no such folder" in refused
    assert not run.folder.exists()
