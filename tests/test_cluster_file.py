"""Cluster files, and the batch scripts that they and a run's config become."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from demo_run import ROOT, STAGES, Run
from fake_slurm import CPU, GPU, submit_run

from launch import submit as submitting
from launch.cluster import ARRAYS, DISTRIBUTED, Cluster
from launch.sbatch import check_processes
from launch.submit import submit
from pipeline.config_file import ConfigError, load_config, load_settings
from stages.recipe import build_graph

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def dry_run(run: Run, capsys, cluster: Path = CPU, *overrides: str) -> str:
    submit_run(run, cluster, *overrides, dry_run=True)
    return capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "slurm").glob("*.yaml")), ids=str)
def test_example_clusters_are_valid_and_carry_a_run(path, tmp_path):
    cluster = load_settings(path, Cluster)
    name = "imagenet" if path.stem == "gpu" else "demo"
    config = load_config(ROOT / "configs" / f"{name}.yaml")

    check_processes(config, cluster, build_graph(config).stages)


def test_every_stage_has_its_section(run):
    for path in CONFIGS:
        for stage in build_graph(load_config(path)).stages:
            assert (stage.launch == "array") == (stage.kind in ARRAYS), stage.name
            assert (stage.launch == "distributed") == (stage.kind in DISTRIBUTED), stage.name
            Cluster.model_validate({"stages": {stage.kind: {"cpus": 2}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: {time: 24:00:00}", 'jobs.time: 86400: write it in quotes, as in "24:00:00"'),
        ("jobs: {time: '30'}", "jobs.time: '30'"),
        ("jobs: {memory: 64}", "jobs.memory: 64"),
        ("jobs: {partitoin: gpu}", "did you mean 'partition'"),
        ("stages: {pretrian: {cpus: 1}}", "'pretrain', 'finetune'"),
        ("single: {nodes: 2}", "single.nodes: 2, but only distributed stages"),
        ("stages: {evaluate: {nodes: 2}}", "stages.evaluate.nodes: 2"),
        ("array: {nodes: 2}", "use more parts"),
        ("stages: {pretrain: {parts: 2}}", "stages.pretrain: parts and at_once belong under array"),
        ("jobs: {partition: 'a b'}", "jobs.partition: 'a b'"),
        ("jobs: {cpus: true}", "jobs.cpus: True: a number is needed"),
        ("gpus_as: gpu", "gpus_as: 'gpu': Input should be 'gpus-per-node', 'gres' or 'none'"),
        ("srun_options: [--a=b, --a b]", "srun_options.1: '--a b': write each as one word"),
        ("srun_options: [image.sqsh]", "srun_options.0: 'image.sqsh': write each as one word"),
        ("jobs: {gpus: true}", "jobs.gpus: True: a number is needed"),
    ],
)
def test_mistakes_in_a_cluster_file_are_named(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError) as error:
        load_settings(path, Cluster)

    assert message in str(error.value)


@pytest.mark.parametrize(
    "value", ["a100", "a100:0", "'8:a100'", "'a100: 8'", "a100:4,v100:4", "-1", "8.5", "3090:4"]
)
def test_gpus_that_are_no_number_of_one_type_are_refused(tmp_path, value):
    path = tmp_path / "cluster.yaml"
    path.write_text(f"distributed:\n  gpus: {value}")

    with pytest.raises(ConfigError, match=r"distributed\.gpus: .*, such as 8, .*\"a100:8\""):
        load_settings(path, Cluster)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[("0", 0), ("8", 8), ("'8'", 8), ("a100:8", 8), ("nvidia_a100-sxm4-80gb:16", 16)],
        *[("1g.10gb:7", 7), ("'3090:4'", 4)],
    ],
)
def test_gpus_are_a_number_or_a_type_and_a_number(tmp_path, value, number):
    path = tmp_path / "cluster.yaml"
    path.write_text(f"distributed:\n  gpus: {value}")

    resources = load_settings(path, Cluster).distributed

    assert resources.gpu_count == number
    assert str(resources.gpus) == value.strip("'")


def test_gpus_of_a_type_are_asked_for_by_it_and_get_a_process_each(run, capsys, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("distributed: {gpus: a100:2}\nsingle: {gpus: 0}")

    text = dry_run(run, capsys, cluster)

    pretrain, report = script_of(text, "pretrain"), script_of(text, "report")
    assert "\n#SBATCH --gpus-per-node=a100:2\n" in pretrain
    assert "--multi_gpu" in pretrain
    assert "--num_machines 1 --num_processes 2" in pretrain
    assert '"2×0 ")' in pretrain
    assert "CUDA_VISIBLE_DEVICES" not in pretrain
    assert "--gpus" not in report
    assert "export CUDA_VISIBLE_DEVICES=\n" in report


@pytest.mark.parametrize(
    ("text", "limits", "least"),
    [
        ("jobs: {time: '0:04:00'}", "jobs.time: '0:04:00'", 355),
        ("jobs: {time: '9:00:00'}\nsingle: {time: '5:54'}", "single.time: '5:54'", 355),
        ("stages: {dncnn: {time: '0:05:00'}}", "stages.dncnn.time: '0:05:00'", 355),
        ("array: {time: '0:59'}\nseconds_before_limit: 5", "array.time: '0:59'", 60),
        ("distributed: {time: '0-1'}\nseconds_before_limit: 3600", "distributed.time: '0-1'", 3655),
        ("jobs: {time: '0-18:13'}\nseconds_before_limit: 65535", "jobs.time: '0-18:13'", 65590),
        (
            "jobs: {time: '1:00'}\nstages: {corrupt: {time: '2:00'}}",
            "jobs.time: '1:00', stages.corrupt.time: '2:00'",
            355,
        ),
    ],
)
def test_limits_that_leave_no_time_before_their_signal_are_refused(tmp_path, text, limits, least):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError) as error:
        load_settings(path, Cluster)

    assert f": {limits}: too short for seconds_before_limit: {least - 55}," in str(error.value)
    assert f"allow at least {least} s, or lower seconds_before_limit" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "jobs: {time: '5:55'}",
        "jobs: {time: 1-1:00:54}\nseconds_before_limit: 65535",
        "stages: {pretrain: {time: '0:01:00'}}\nseconds_before_limit: 5",
        "jobs: {time: '0:00:00'}",  # SLURM's way to say no limit
        # In force for no kind of stage.
        "{jobs: {time: '1:00'}, single: {time: '1:00:00'}, array: {time: 1-0},"
        " distributed: {time: 0-0:06:00}}",
    ],
)
def test_limits_that_leave_time_before_their_signal_are_taken(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)

    assert load_settings(path, Cluster)


def test_resources_come_from_the_nearest_section(tmp_path):
    graph = build_graph(load_config(ROOT / "configs" / "imagenet.yaml"))
    cluster = load_settings(GPU, Cluster)
    stages = {stage.kind: cluster.resources(stage) for stage in graph.stages}

    assert (stages["source"].partition, stages["source"].account) == ("cpu", "my-project")
    assert (stages["pretrain"].nodes, stages["pretrain"].gpus) == (4, 8)
    assert (stages["corrupt"].parts, stages["corrupt"].time) == (64, "8:00:00")
    assert (stages["evaluate"].partition, stages["evaluate"].time) == ("gpu", "4:00:00")


def test_processes_that_a_batch_does_not_divide_over_are_refused(run, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("distributed: {nodes: 5}")

    with pytest.raises(ConfigError, match="pretrain on 5 nodes with 1 processes each: batch: 24"):
        submit_run(run, cluster)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_snapshot_of_a_config_is_that_config(path, tmp_path):
    config = load_config(path, ("pretrain.learning_rate=5e-5", "runtime.shards_at=s3://a/b"))
    snapshot = tmp_path / "config-1.yaml"
    snapshot.write_text(yaml.safe_dump(submitting._values(config)))

    assert load_config(snapshot) == config


def test_a_dry_run_prints_the_script_of_every_stage_and_writes_nothing(run, capsys):
    text = dry_run(run, capsys)

    assert set(re.findall(r"^# (\S+) of the run tiny;", text, re.M)) == STAGES
    assert "# sbatch --dependency=afterok:source@photos:rain-layers --array=0-3 " in text
    assert not run.folder.exists()


def script_of(text: str, stage: str) -> str:
    (found,) = re.findall(rf"^#!/bin/bash\n# {stage} of .*?(?=^\n# sbatch|\Z)", text, re.M | re.S)
    return found


@pytest.mark.parametrize(
    ("stage", "cluster", "overrides"),
    [
        ("pretrain", CPU, ("runtime.engine=zero1",)),
        ("corrupt-sr2@photos", CPU, ()),
    ],
    ids=["pretrain", "corrupt"],
)
def test_batch_scripts_read_as_they_did(run, capsys, stage, cluster, overrides):
    text = dry_run(run, capsys, cluster, *overrides)
    found = script_of(text, stage)
    for place, name in (
        (str(run.folder.parent), "/data/runs"),
        (sys.executable, "/checkout/.venv/bin/python"),
        (str(ROOT), "/checkout"),
        (str(Path.cwd()), "/checkout"),
    ):
        found = found.replace(place, name)
    found = re.sub(r"config-[0-9a-f]{12}", "config-0123456789ab", found)
    golden = Path(__file__).parent / "golden" / f"{stage.partition('-')[0]}.sbatch"

    assert found == golden.read_text()


def test_batch_scripts_are_good_bash(run, capsys, tmp_path):
    text = dry_run(run, capsys)
    for stage in STAGES:
        script = tmp_path / "script"
        script.write_text(script_of(text, stage))
        subprocess.run(["bash", "-n", script], check=True)


def test_a_node_of_gpus_gets_a_process_for_each(tmp_path, capsys):
    # As much of ImageNet as a plan needs.
    folder = tmp_path / "imagenet"
    folder.mkdir()
    values = (f"sources.imagenet.path={folder}", f"runtime.runs={tmp_path}")

    submit(ROOT / "configs" / "imagenet.yaml", values, GPU, dry_run=True)

    script = script_of(capsys.readouterr().out, "pretrain")
    for line in (
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=gpu",
        "module load cuda/12.8",
        "-m accelerate.commands.launch --multi_gpu",
        "--num_machines 4 --num_processes 32",
        '--machine_rank "$SLURM_NODEID"',
    ):
        assert line in script
    assert "CUDA_VISIBLE_DEVICES" not in script


def test_everything_of_a_cluster_file_reaches_the_scripts(run, capsys, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("""
jobs: {account: a, qos: low, memory: 3G, options: ["--constraint=ssd", "--exclude=n[7-9]"]}
single: {partition: cpu, time: "1-12"}
distributed: {partition: gpu, nodes: 2}
stages: {report: {cpus: 5}, pretrain: {time: "2:00:00"}}
setup: ["module load python", 'export A="b c"']
container: apptainer exec --bind /data image.sif
python: /opt/python
seconds_before_limit: 77
""")

    text = dry_run(run, capsys, cluster, "runtime.threads_per_process=3")

    report, pretrain = script_of(text, "report"), script_of(text, "pretrain")
    for line in (
        *("#SBATCH --partition=cpu", "#SBATCH --account=a", "#SBATCH --qos=low"),
        *("#SBATCH --mem=3G", "#SBATCH --time=1-12", "#SBATCH --cpus-per-task=5"),
        *("#SBATCH --constraint=ssd", "#SBATCH --exclude=n[7-9]", "#SBATCH --signal=USR2@77"),
        *("module load python", 'export A="b c"', "export OMP_NUM_THREADS=3 "),
        f"exec apptainer exec --bind /data image.sif /opt/python {ROOT}/launch/stage.py ",
    ):
        assert f"\n{line}" in report.replace("\n  exec", "\nexec")
    assert "#SBATCH --partition=gpu" in pretrain
    assert "#SBATCH --time=2:00:00" in pretrain
    assert "/opt/python -m torch.distributed.run --nnodes 2 --nproc_per_node 1 " in pretrain
