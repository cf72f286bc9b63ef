"""Kills runs of the corrupt stages with SIGKILL at random moments, and compares what they end with.

    python -m benchmarks.kill_corrupt [--kills 50] [--out kill_corrupt.md]

Each start is of one process with two workers, or of two or three that share a run out in parts; a
kill hits some of them or all. A run that comes to its end is compared with one that was never
disturbed, and another begins. Exit code 1 where a hash differs, or a finished shard was made again.
"""

import argparse
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pages import write_page
from pipeline.artifacts import open_artifact, verify

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ROOT / "pipeline" / "assets" / "photos"
COPIES = 6  # of each photograph, under another name
PARTS = (1, 1, 2, 3)  # of a start
WORKERS = 2
Process = subprocess.Popen[bytes]
LONGEST_SECONDS = 6.0  # from the start of a run to its end by SIGKILL
CONFIG = """
name: killed
sources: {{photos: {{path: "{photographs}", validation_images: 1}}}}
corrupt: {{crops_per_image: 96, samples_per_shard: 192}}
rain_layers: {{layers: 4, size: 128}}
pretrain: {{tasks: [sr2, sr4, derain], samples: 256}}
runtime: {{runs: "{runs}", workers: {workers}}}
"""


class KillFailure(Exception):  # noqa: N818
    """What was made is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    after_seconds: float
    parts: int
    killed: int  # of the parts
    stage: str  # that was being made
    finished: int  # shards, of all stages
    in_flight: int  # shards that were begun and must be made again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="that hit a shard in the making")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipt-kill-") as folder:
        try:
            kills, ends, shards = kill_and_compare(Path(folder), options.kills, options.seed)
        except KillFailure as failure:
            print(failure, file=sys.stderr)
            return 1
    page = page_of(kills, ends, shards)
    write_page(page, options.out)
    return 0


def kill_and_compare(folder: Path, count: int, seed: int) -> tuple[list[Kill], int, int]:
    """The kills, how often a run came to its end, and how many shards each has.

    Raises KillFailure where they differ, or a shard that was finished has been made again.
    """
    photographs = write_photographs(folder / "photographs")
    expected = undisturbed(folder / "undisturbed", photographs)
    moments = random.Random(seed)
    runs = folder / "killed"
    kills: list[Kill] = []
    ends = 0
    kept: dict[Path, int] = {}
    while (is_killing := sum(each.in_flight > 0 for each in kills) < count) or kept or not ends:
        before = unfinished(runs)
        seconds = moments.uniform(0.2, LONGEST_SECONDS) if is_killing else None
        processes = start(runs, photographs, moments.choice(PARTS))
        victims = moments.sample(processes, moments.randint(1, len(processes)))
        ended = wait_or_kill(processes, seconds, victims)
        check_untouched(kept)
        if ended:
            compare(runs, expected)
            shutil.rmtree(runs)
            ends, kept = ends + 1, {}
            continue
        assert seconds is not None
        kept = finished_shards(runs)
        kills.append(
            Kill(
                after_seconds=seconds,
                parts=len(processes),
                killed=len(victims),
                stage=stage_in_the_making(runs),
                finished=len(kept),
                in_flight=len(unfinished(runs) - before),
            )
        )
    return kills, ends, len(expected)


def write_photographs(folder: Path) -> Path:
    folder.mkdir()
    for path in PHOTOGRAPHS.iterdir():
        if path.suffix in (".png", ".jpg"):
            for number in range(COPIES):
                shutil.copy(path, folder / f"{number}-{path.name}")
    return folder


def start(runs: Path, photographs: Path, parts: int = 1) -> list[Process]:
    runs.mkdir(exist_ok=True)
    config = runs / "config.yaml"
    config.write_text(CONFIG.format(photographs=photographs, runs=runs, workers=WORKERS))
    command = [sys.executable, "-m", "launch", "run", str(config), "--before", "pretrain"]
    # Groups of their own, so that workers are killed at the same moment.
    return [
        subprocess.Popen(
            [*command, "--part", str(part), "--parts", str(parts)],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        for part in range(parts)
    ]


def wait_or_kill(
    processes: Sequence[Process], seconds: float | None, victims: Sequence[Process] = ()
) -> bool:
    """Whether all came to their end first. Those that are not killed come to it later."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    while time.monotonic() < until and any(each.poll() is None for each in processes):
        time.sleep(0.02)
    killed = [each for each in victims if each.poll() is None]
    for each in killed:
        os.killpg(each.pid, signal.SIGKILL)
    codes = {each.wait() for each in processes if each not in killed}
    if codes - {0}:
        raise KillFailure(f"a run that was killed before ended with exit codes {codes}")
    return not killed


def undisturbed(runs: Path, photographs: Path) -> dict[str, str]:
    wait_or_kill(start(runs, photographs), None)
    return hashes(runs)


def hashes(runs: Path) -> dict[str, str]:
    """SHA-256 of every file that was sealed, by its place, and a check that it is as sealed."""
    found = {}
    for manifest in sorted(runs.glob("*/*/*/manifest.json")):
        artifact = open_artifact(manifest.parent)
        assert artifact is not None
        if problems := verify(artifact):
            raise KillFailure("\n".join(problems))
        for file in artifact.manifest.files:
            # Records have the seconds that a shard took.
            if not file.path.startswith("shards/") or file.path.endswith(".tar"):
                found[str(manifest.parent.relative_to(runs) / file.path)] = file.sha256
    return found


def compare(runs: Path, expected: dict[str, str]) -> None:
    found = hashes(runs)
    differing = sorted(
        {path for path, _ in set(found.items()).symmetric_difference(expected.items())}
    )
    if differing:
        raise KillFailure(f"{len(differing)} files differ from the undisturbed run: {differing[0]}")
    if left := unfinished(runs):
        raise KillFailure(f"{len(left)} files are left behind: {left.pop()}")


def finished_shards(runs: Path) -> dict[Path, int]:
    """When each shard was written that has its record."""
    records = runs.glob("*/*/*/shards/*.json")
    tars = [path.with_suffix(".tar") for path in records if not path.name.startswith(".")]
    return {tar: tar.stat().st_mtime_ns for tar in tars}


def unfinished(runs: Path) -> set[Path]:
    return set(runs.glob("*/*/*/shards/.*.tmp"))


def check_untouched(kept: dict[Path, int]) -> None:
    for tar, written in kept.items():
        if tar.stat().st_mtime_ns != written:
            raise KillFailure(f"{tar}: was finished before the kill, and made again after it")


def stage_in_the_making(runs: Path) -> str:
    unsealed = [
        path.parent
        for path in sorted(runs.glob("*/*/*/.lock"), key=lambda each: each.stat().st_mtime)
        if not (path.parent / "manifest.json").exists()
    ]
    return unsealed[-1].parent.name if unsealed else "none"


def page_of(kills: Sequence[Kill], ends: int, shards: int) -> str:
    return "\n".join(lines_of(kills, ends, shards)) + "\n"


def lines_of(kills: Sequence[Kill], ends: int, shards: int) -> Iterator[str]:
    hits = sum(each.in_flight > 0 for each in kills)
    yield "# Corrupting, killed\n"
    yield f"`python -m benchmarks.kill_corrupt --kills {hits}`\n"
    yield f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {WORKERS} workers a part\n"
    yield (
        f"{len(kills)} times SIGKILL, {hits} of them while shards were made. {ends} runs came to "
        f"their end, each with the same SHA-256 for its {shards} files as a run that was never "
        "disturbed, and with nothing left behind; "
        "no shard that was finished was made again, and at most "
        f"{max(each.in_flight for each in kills)} at a time were in flight.\n"
    )
    yield "| kill | after s | parts killed | stage | shards finished | in flight |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for number, kill in enumerate(kills, 1):
        yield (
            f"| {number} | {kill.after_seconds:.2f} | {kill.killed} of {kill.parts} | {kill.stage} "
            f"| {kill.finished} | {kill.in_flight} |"
        )


if __name__ == "__main__":
    sys.exit(main())
