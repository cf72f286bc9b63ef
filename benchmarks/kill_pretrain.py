"""Kills pretraining in two processes with SIGKILL, at random moments and in the middle of what
writes, under every engine, and compares what the same command then ends with.

    python -m benchmarks.kill_pretrain [--kills 8] [--out kill_pretrain.md]

A run that comes to its end is compared with one that was never disturbed, bit by bit, and another
begins. Exit code 1 where a bit differs, or a run ends with an error.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pages import write_page
from benchmarks.process_tree import kill_tree
from pipeline.artifacts import open_artifact, verify
from pipeline.training.checkpoint_names import checkpoint_name, step_of

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")
STEPS = 40
CONFIG = f"""
name: killed
sources: {{photos: {{path: "package:assets/photos", held_out: [chelsea.png]}}}}
corrupt: {{crops_per_image: 8, samples_per_shard: 8}}
rain_layers: {{layers: 2, size: 128}}
ipt: {{features: 8, encoder_layers: 1, decoder_layers: 1, attention_heads: 4}}
pretrain:
  tasks_per_step: all
  samples: {STEPS * 24}
  batch: 24
  precision: float32
  contrastive: {{images: 2}}
  ema_decay: 0.9
runtime:
  processes: 2
  workers: 1
  log_every_steps: 1
  checkpoint_every_steps: 1
  keep_checkpoints: 2
  images_every_steps: 20
"""
CHECKPOINTS = "killed/pretrain/*/checkpoints/step-*"  # of a run
# What is seen in the training's folder while it is at that.
MOMENTS = {
    "save": "checkpoints/.unfinished-*",
    "rename": "checkpoints/step-*",  # a new one
    "rotation": "checkpoints/.trash-*",
    "export": ".model",
}
LONGEST_SECONDS = 300.0  # that a run may take to its end


class KillFailure(Exception):  # noqa: N818
    """What a killed run has made is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    engine: str
    moment: str
    after_seconds: float
    step: int  # of the newest checkpoint that was there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=8, help="of each engine (default: 8)")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    options = parser.parse_args()
    kills: list[Kill] = []
    ends = 0
    with tempfile.TemporaryDirectory(prefix="ipt-kill-") as folder:
        try:
            prepared = prepare(Path(folder) / "prepared")
            for engine in options.engines.split(","):
                place = Path(folder) / engine
                found, ended = kill_and_compare(
                    place, prepared, engine, options.kills, options.seed
                )
                kills, ends = kills + found, ends + ended
                shutil.rmtree(place)
        except KillFailure as failure:
            print(failure, file=sys.stderr)
            return 1
    page = page_of(kills, ends)
    write_page(page, options.out)
    return 0


def prepare(runs: Path) -> Path:
    """Make what pretraining reads; every run begins with a copy of it."""
    runs.mkdir(parents=True)
    (runs / "config.yaml").write_text(CONFIG)
    run(start(runs, "ddp", "--before", "pretrain"))
    return runs


def kill_and_compare(
    folder: Path,
    prepared: Path,
    engine: str,
    count: int,
    seed: int,
    *,
    moments: Sequence[str] = (),
    steps: int = STEPS,
) -> tuple[list[Kill], int]:
    """The kills, and how often a run came to its end; KillFailure where one ends otherwise.

    The moments come in turn: a random one, then each of `MOMENTS`, unless others are given.
    """
    folder.mkdir(parents=True)
    expected, seconds = undisturbed(folder / "undisturbed", prepared, engine, steps)
    draw = random.Random(seed)
    turns = cycle(moments or ("random", *MOMENTS, "random"))
    kills: list[Kill] = []
    ends = 0
    runs = folder / "killed"
    while len(kills) < count or runs.exists():
        if not runs.exists():
            shutil.copytree(prepared, runs)
        process = pretrain(runs, engine, steps)
        moment = next(turns) if len(kills) < count else "none"
        began = time.monotonic()
        if not came(moment, runs, process, draw.uniform(1.0, seconds)):
            run(process)
            compare(made(runs, steps), expected, f"{engine}, after {len(kills)} kills")
            shutil.rmtree(runs)
            ends += 1
            continue
        kill_tree(process.pid)
        process.communicate()
        after = time.monotonic() - began
        step = max((step_of(each) or 0 for each in runs.glob(CHECKPOINTS)), default=0)
        kills.append(Kill(engine=engine, moment=moment, after_seconds=after, step=step))
    return kills, ends


def came(moment: str, runs: Path, process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Wait for a moment; False where the process ends first."""
    began = time.monotonic()
    shown = f"killed/pretrain/*/{MOMENTS.get(moment, '.nothing')}"
    before = set(runs.glob(shown))  # what a kill before this one has left there
    while process.poll() is None:
        if time.monotonic() - began > LONGEST_SECONDS:
            kill_tree(process.pid)
            raise KillFailure(f"a run did not end in {LONGEST_SECONDS:.0f} s")
        if moment == "random" and time.monotonic() - began > seconds:
            return True
        if moment in MOMENTS and set(runs.glob(shown)) - before:
            return True
        time.sleep(0.0005 if moment in MOMENTS else 0.01)
    return False


def pretrain(runs: Path, engine: str, steps: int) -> "subprocess.Popen[str]":
    return start(runs, engine, "--until", "pretrain", "--set", f"pretrain.samples={24 * steps}")


def start(runs: Path, engine: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launch", "run", str(runs / "config.yaml"), *options]
    command += ["--set", f"runtime.runs={runs}", "--set", f"runtime.engine={engine}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate(timeout=LONGEST_SECONDS)
    if process.returncode != 0:
        raise KillFailure(f"a run ended with exit code {process.returncode}:\n{output[-3000:]}")


def undisturbed(
    runs: Path, prepared: Path, engine: str, steps: int
) -> tuple[dict[str, str], float]:
    """What a run ends with, and the seconds that it took."""
    shutil.copytree(prepared, runs)
    began = time.monotonic()
    run(pretrain(runs, engine, steps))
    return made(runs, steps), time.monotonic() - began


def made(runs: Path, steps: int) -> dict[str, str]:
    """SHA-256 of the model, of all that the last checkpoint holds, and the losses of every step."""
    (folder,) = (runs / "killed" / "pretrain").iterdir()
    found: dict[str, str] = {}
    for sealed in (folder, folder / "checkpoints" / checkpoint_name(steps)):
        artifact = open_artifact(sealed)
        if artifact is None:
            raise KillFailure(f"{sealed}: not sealed")
        if problems := verify(artifact):
            raise KillFailure("\n".join(problems))
        for file in artifact.manifest.files:
            if file.path.endswith((".safetensors", ".png")):
                found[f"{sealed.name}/{file.path}"] = file.sha256
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["losses"] = json.dumps([(row["step"], row["loss"], row["l1/sr2"]) for row in rows])
    return found


def compare(found: dict[str, str], expected: dict[str, str], where: str) -> None:
    differing = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if differing:
        raise KillFailure(f"{where}: other bits than undisturbed: {', '.join(differing)}")


def page_of(kills: Sequence[Kill], ends: int) -> str:
    return "\n".join(lines_of(kills, ends)) + "\n"


def lines_of(kills: Sequence[Kill], ends: int) -> Iterator[str]:
    engines = list(dict.fromkeys(kill.engine for kill in kills))
    yield "# Pretraining, killed\n"
    yield f"`python -m benchmarks.kill_pretrain --kills {len(kills) // len(engines)}`\n"
    yield f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, 2 processes of each engine\n"
    yield (
        f"{len(kills)} times SIGKILL to every process, then the same command again. {ends} runs "
        "came to their end, each with the same bits as a run under the same engine that was never "
        "disturbed: the model, its weights, both of Adam's moments, the average of the weights, "
        f"and the losses of all {STEPS} steps.\n"
    )
    yield "| kill | engine | moment | after s | newest checkpoint |"
    yield "| --- | --- | --- | --- | --- |"
    for count, kill in enumerate(kills, 1):
        yield (
            f"| {count} | {kill.engine} | {kill.moment} | {kill.after_seconds:.2f} "
            f"| step {kill.step} |"
        )


if __name__ == "__main__":
    sys.exit(main())
