"""What clusters differ in beyond numbers: how GPUs are asked for, what srun is told."""

import re

import pytest
from batch_runs import script_of
from fake_slurm import submit_run


@pytest.mark.parametrize(
    ("how", "lines"), [("gres", ["--gres=gpu:a100:2", "--gres=gpu:1"]), ("none", [])]
)
def test_gpus_are_asked_for_as_the_cluster_file_says(run, capsys, tmp_path, how, lines):
    cluster = tmp_path / "cluster.yaml"
    values = "distributed: {gpus: a100:2}\nstages: {dncnn: {gpus: 1}}\n"
    cluster.write_text(f"{values}gpus_as: {how}")

    submit_run(run, cluster, dry_run=True)

    text = capsys.readouterr().out
    scripts = [
        script_of(stage, text) for stage in ("pretrain", "dncnn-denoise30", "evaluate-finetune-sr2")
    ]
    assert re.findall(r"#SBATCH (--g.*)", "".join(scripts)) == lines
    assert "--num_machines 1 --num_processes 2" in scripts[0]
    assert ["CUDA_VISIBLE_DEVICES" in script for script in scripts] == [False, False, True]


def test_options_of_srun_reach_it_as_they_are(run, capsys, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("srun_options: [-v, --container-image=nvcr.io#a, '--container-name=$a b']")

    submit_run(run, cluster, dry_run=True)

    text = capsys.readouterr().out
    options = "--kill-on-bad-exit=1 -v '--container-image=nvcr.io#a' '--container-name=$a b'"
    for stage in ("pretrain", "corrupt-sr2@photos"):
        assert f"\nsrun {options} bash -c " in script_of(stage, text)
