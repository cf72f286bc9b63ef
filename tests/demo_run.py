"""A run of the whole graph at a size that takes seconds, driven by the command line."""

import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from safetensors.numpy import load_file

from launch.__main__ import main

ROOT = Path(__file__).parents[1]
TINY = """
sources:
  photos: {path: "package:assets/photos", held_out: [chelsea.png]}
corrupt: {crops_per_image: 8, samples_per_shard: 8}
rain_layers: {layers: 2, size: 128}
ipt: {features: 4, encoder_layers: 1, decoder_layers: 1, attention_heads: 4}
pretrain:
  tasks_per_step: all
  samples: 144
  batch: 24
  precision: float32
  contrastive: {images: 2}
finetune:
  denoise30: {samples: 24, batch: 4, precision: float32}
  sr2: {samples: 24, batch: 4, precision: float32}
dncnn:
  denoise30: {model: {depth: 3, features: 4}, samples: 80, batch: 8, statistics_batch: 4}
evaluate:
  test_sets: {held-out: {source: photos}}
runtime: {workers: 0, log_every_steps: 1, checkpoint_every_steps: 2, images_every_steps: 3}
"""
STAGES = {
    "source@photos",
    "rain-layers",
    *(
        f"corrupt-{task}@photos"
        for task in ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")
    ),
    "pretrain",
    "finetune-denoise30",
    "finetune-sr2",
    "dncnn-denoise30",
    "evaluate-finetune-denoise30",
    "evaluate-finetune-sr2",
    "evaluate-dncnn-denoise30",
    "report",
}


def stages_made(output: str) -> set[str]:
    return {line.split()[1] for line in output.splitlines() if " made in " in line}


class Run:
    """A run in a folder of its own, driven as a person drives it: by the command line."""

    environment: dict[str, str] | None = None  # None: as this process's

    def __init__(self, folder: Path) -> None:
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY)
        self.folder = folder / "runs" / "tiny"

    def command(self, command: str, *arguments: str) -> list[str]:
        runs = f"runtime.runs={self.folder.parent}"
        return [
            sys.executable,
            "-m",
            "launch",
            command,
            str(self.config),
            "--set",
            runs,
            *arguments,
        ]

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(command, *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        with self.start(command, *arguments) as process:
            output, _ = process.communicate(timeout=240)
        assert process.returncode == code, output
        return output

    def here(self, command: str, *arguments: str) -> str:
        """The same in this process, without the half second in which Python starts."""
        with redirect_stdout(StringIO()) as output:
            assert main(self.command(command, *arguments)[3:]) == 0
        return output.getvalue()

    def made(self, *arguments: str) -> set[str]:
        return stages_made(self("run", *arguments))

    def weights(self, stage: str) -> dict:
        (path,) = self.folder.glob(f"{stage}/*/model/model.safetensors")
        return load_file(path)


def wait_for(run: Run, pattern: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not list(run.folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)
