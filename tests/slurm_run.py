"""Runs of the graph on the SLURM of the tests, and the same runs without it."""

import json
import os
import sys
from pathlib import Path

from demo_run import ROOT, TINY, Run
from slurm_cluster import SlurmCluster, wait_until

from pipeline.training.checkpoint_names import step_of

# Two tasks, no fine-tuning: what faults are tried on. Some seconds of steps.
SHORT = """
sources:
  photos: {path: "package:assets/photos", held_out: [chelsea.png]}
corrupt: {crops_per_image: 8, samples_per_shard: 8}
rain_layers: {layers: 2, size: 128}
ipt: {features: 4, encoder_layers: 1, decoder_layers: 1, attention_heads: 4}
pretrain:
  tasks: [derain, denoise30]
  tasks_per_step: all
  samples: 1600
  batch: 8
  precision: float32
  contrastive: {images: 2}
evaluate:
  test_sets: {held-out: {source: photos}}
runtime:
  workers: 0
  processes: PROCESSES
  engine: ENGINE
  log_every_steps: 10
  checkpoint_every_steps: 20
  images_every_steps: 1000
"""
CLUSTER = """
jobs: {cpus: 1, memory: 1G, time: "0:30:00"}
array: {parts: 2}
distributed: {nodes: NODES}
"""


def short_config(*, processes: int, engine: str = "zero1") -> str:
    return SHORT.replace("PROCESSES", str(processes)).replace("ENGINE", engine)


class SlurmRun(Run):
    """A run that SLURM carries; `config` says how many processes a node has."""

    def __init__(
        self,
        folder: Path,
        slurm: SlurmCluster,
        *,
        config: str = TINY,
        nodes: int = 2,
        settings: str = "",
    ) -> None:
        super().__init__(folder)
        self.config.write_text(config)
        self.slurm = slurm
        self.environment = slurm.environment
        self.cluster_file = folder / "cluster.yaml"
        self.cluster_file.write_text(CLUSTER.replace("NODES", str(nodes)) + settings)

    def submit(self, *arguments: str, code: int = 0) -> str:
        return self("submit", "--cluster", str(self.cluster_file), *arguments, code=code)

    def jobs(self) -> dict[str, str]:
        """The last job of each stage."""
        lines = (self.folder / "slurm" / "jobs.jsonl").read_text().splitlines()
        return {each["stage"]: each["job"] for each in map(json.loads, lines)}

    def events(self, stage: str) -> str:
        """What the last job of a stage says of itself; of an array, all its tasks."""
        files = sorted((self.folder / "slurm" / "jobs").glob(f"{self.jobs()[stage]}[._]*events"))
        return "".join(path.read_text() for path in files)

    def log(self, stage: str) -> str:
        files = sorted((self.folder / "slurm" / "logs").glob(f"{stage}-*.log"))
        return "".join(path.read_text() for path in files)

    def step(self, stage: str = "pretrain") -> int:
        """Of the newest sealed checkpoint; 0 where there is none."""
        found = self.folder.glob(f"{stage}/*/checkpoints/step-*/manifest.json")
        return max((step_of(path.parent) or 0 for path in found), default=0)

    def training_processes(self) -> list[int]:
        """Launchers left out, as this side numbers them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            is_stage = str(ROOT / "launch" / "stage.py") in words and words[1] != "-m"
            if is_stage and str(self.folder) in " ".join(words):
                found.append(int(path.parent.name))
        return found

    def wait(self, condition, timeout: float) -> None:
        wait_until(condition, timeout, self.everything)

    def wait_for_end(self, timeout: float = 600) -> None:
        """Until SLURM has nothing of this run any more."""
        names = f"--name={','.join(f'tiny:{stage}' for stage in self.jobs())}"

        def is_empty() -> bool:
            lines = self.slurm.sh("squeue", names, check=False).splitlines()
            # No line at all is no answer, from a controller that restarts.
            return len(lines) == 1 and lines[0].split()[0] == "JOBID"

        self.wait(is_empty, timeout)

    def everything(self) -> str:
        """All that may say why a test fails."""
        texts = [self.slurm.sh("squeue", check=False), str(self.slurm.node_states())]
        folder = self.folder / "slurm"
        for path in [*sorted(folder.glob("jobs/*.events")), *sorted(folder.glob("logs/*.log"))]:
            texts.append(f"--- {path}\n{path.read_text()[-2500:]}")
        return "\n".join(texts)


def run_without_slurm(folder: Path, config: str, *arguments: str) -> Run:
    """The same run on this machine, with as many processes."""
    run = Run(folder)
    run.config.write_text(config)
    run("run", *arguments)
    return run


def equal_weights(one: Run, other: Run, stage: str) -> bool:
    """Bit for bit."""
    weights, expected = one.weights(stage), other.weights(stage)
    assert weights.keys() == expected.keys()
    return all(weights[name].tobytes() == expected[name].tobytes() for name in expected)


def python_without_torch(folder: Path) -> tuple[list[str], dict[str, str]]:
    """A Python as of a login node, which has what reads configs and nothing more."""
    needed = ("pydantic", "pydantic_core", "yaml", "_yaml", "jinja2", "markupsafe", "braceexpand")
    needed += ("annotated_types", "typing_inspection", "typing_extensions.py")
    folder.mkdir()
    for name in needed:
        for place in map(Path, sys.path):
            if place.name == "site-packages" and (place / name).exists():
                (folder / name).symlink_to(place / name)
                break
    base = os.path.realpath(sys.executable)
    return [base, "-S"], {"PYTHONPATH": str(folder)}


def started(run: SlurmRun, *arguments: str) -> str:
    """Submit a run and wait for the first checkpoint of its pretraining; that job."""
    run.submit(*arguments)
    run.wait(lambda: run.step() > 0, 400)
    return run.jobs()["pretrain"]


def nodes_of(slurm: SlurmCluster, job: str) -> list[str]:
    return slurm.sh("scontrol", "show", "hostnames", slurm.job(job, "NodeList")).split()


def lasting(seconds: float, at_speed_of: Run) -> tuple[str, ...]:
    """A training of so many steps that it takes about so long, at the speed of another run."""
    (metrics,) = at_speed_of.folder.glob("pretrain/*/metrics.jsonl")
    rates = [json.loads(row)["samples_per_second"] for row in metrics.read_text().splitlines()]
    batches = max(200, round(seconds * sorted(rates)[len(rates) // 2] / 8))
    return ("--set", f"pretrain.samples={8 * batches}")


def python_that(folder: Path, body: str) -> str:
    """A Python that does something else first, as a cluster file names it."""
    path = folder / "python"
    path.write_text(f'#!/bin/bash\n{body}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return f"python: {path}\n"


def cut_off_until(run: SlurmRun, nodes: list[str], event: str) -> None:
    """Nodes that can't reach each other until the pretraining's job has said something."""
    for node in nodes:
        run.slurm.isolate(node)
    run.wait(lambda: event in run.events("pretrain"), 180)
    for node in nodes:
        run.slurm.isolate(node, False)
