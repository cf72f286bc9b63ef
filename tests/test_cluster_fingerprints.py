"""Nothing of a cluster file decides what is made: two that differ in everything, one content."""

import inspect
import re
import shutil
from pathlib import Path

import yaml
from demo_run import STAGES, Run
from fake_slurm import submit_run

from launch.cluster import Cluster, Resources
from launch.submitted import read_records
from pipeline.config import RunConfig
from pipeline.config_file import load_config
from stages.recipe import build_graph

SMALL: dict[str, object] = {"jobs": {"time": "1:00:00"}, "array": {"parts": 2}}
LARGE: dict[str, object] = {
    "jobs": {
        "partition": "large",
        "account": "other",
        "qos": "high",
        "cpus": 7,
        "memory": "64G",
        "time": "2-12",
        "options": ["--constraint=ssd"],
    },
    "single": {"gpus": 1},
    "array": {"parts": 5, "at_once": 3},
    "distributed": {"nodes": 2, "gpus": "a100:1"},
    "stages": {"report": {"cpus": 1}},
    "setup": ["module load cuda"],
    "container": "apptainer exec image.sif",
    "python": "/opt/python",
    "seconds_before_limit": 60,
    "hung_after_seconds": 99,
    "starts_without_progress": 9,
    "srun_options": ["--container-image=ipt"],
    "gpus_as": "gres",
}


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Of all stages, as if no input had been made yet."""
    found: dict[str, str] = {}
    for stage in build_graph(config).stages:
        inputs = {role: found[parent.name] for role, parent in stage.inputs.items()}
        found[stage.name] = stage.fingerprint(inputs)
    return found


def told(script: str) -> tuple[str, ...]:
    """What a script says of content: the folder of its stage, then the program's arguments."""
    folders = re.findall(r"\(cd (\S+)", script)
    assert folders
    # Array stages are told their part too, beside the command.
    (program,) = re.findall(r"launch/stage\.py (\S+) .*?--stage (\S+) (.*?)\n'", script, re.S)
    return (*folders, *program)


def submitted(run: Run, fake: Path, settings: dict[str, object]) -> dict[str, object]:
    """All that decides content of what is submitted; then as if nothing had been."""
    cluster = run.config.with_name("cluster.yaml")
    cluster.write_text(yaml.safe_dump(settings))
    submit_run(run, cluster)
    (snapshot,) = run.folder.glob("slurm/config-*.yaml")
    scripts = {path.stem: path.read_text() for path in run.folder.glob("slurm/*.sbatch")}
    found = {
        "snapshot": (snapshot.name, snapshot.read_text()),
        "fingerprints": fingerprints(load_config(snapshot)),
        "told": {stage: told(script) for stage, script in scripts.items()},
        "content": {each.content for each in read_records(run.folder / "slurm")},
    }
    (fake / "queue").unlink()
    shutil.rmtree(run.folder)
    return found


def test_these_two_differ_in_everything():
    small, large = Cluster.model_validate(SMALL), Cluster.model_validate(LARGE)

    for name in Cluster.model_fields:
        assert getattr(small, name) != getattr(large, name), name
    for name in Resources.model_fields:
        assert any(
            getattr(getattr(small, section), name) != getattr(getattr(large, section), name)
            for section in ("jobs", "array", "distributed")
        ), name


def test_nothing_of_a_cluster_file_enters_a_fingerprint(tmp_path, fake):
    run = Run(tmp_path)

    small = submitted(run, fake, SMALL)
    large = submitted(run, fake, LARGE)

    assert set(small["told"]) == STAGES
    assert small == large


def test_a_graph_knows_no_cluster():
    assert list(inspect.signature(build_graph).parameters) == ["config"]
