"""The whole recipe on 400 photographs: configs/small.yaml, cut to what a CPU does in an hour.

    python -m benchmarks.small [--data FOLDER] [--runs FOLDER] [--set KEY=VALUE]
        [--out benchmarks/small.md]

It goes on where it stopped, as any run. `--set` comes after the cuts, and may undo them.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import circumstances, processor, table
from benchmarks.pages import write_page
from benchmarks.runs import DATA, ROOT, RunError, run_pipeline
from pipeline.tasks import PUBLISHED_ORDER, TASKS

# Steps of half the batch: in an hour, their number counts for more than their quiet.
CUTS = (
    *("pretrain.samples=18000", "pretrain.warmup_samples=1200", "pretrain.batch=24"),
    "pretrain.contrastive.images=4",
    *(f"finetune.{task}.{cut}" for task in PUBLISHED_ORDER for cut in ("samples=1200", "batch=24")),
    *("dncnn={}", "evaluate.sigmas=[]"),
    *("runtime.checkpoint_every_steps=100", "runtime.threads_per_process=2"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    options = parser.parse_args()
    try:
        record = run_recipe([*places(options.data), *CUTS, *options.set], options.runs)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    write_page(page_of(record, options.set), options.out)
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=DATA, help="with imagenet/ and benchmarks/")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")


def places(data: Path) -> list[str]:
    """Where the photographs and the benchmarks of configs/small.yaml are."""
    return [
        f"sources.imagenet.path={data / 'imagenet' / 'train'}",
        f"evaluate.benchmarks={data / 'benchmarks'}",
    ]


def run_recipe(overrides: Sequence[str], runs: Path) -> dict[str, Any]:
    """The report's numbers of configs/small.yaml with `overrides`; what is done isn't done again.

    Raises RunError where the run fails.
    """
    printed = run_pipeline("small", [*overrides, f"runtime.runs={runs}"])
    page = re.search(r"^report +(\S.*report\.html)$", printed, re.MULTILINE)
    assert page is not None, printed
    record: dict[str, Any] = json.loads((ROOT / page[1]).with_suffix(".json").read_text())
    return record


def page_of(record: Mapping[str, Any], changes: Sequence[str]) -> str:
    cuts = ", ".join(f"`{each}`" for each in (*CUTS, *changes))
    lines = [line for training in record["trainings"] for line in training["stages"]]
    trained = {line.partition(":")[0]: line for line in lines}
    parameters = trained["pretrain"].rpartition(" parameters")[0].rpartition(", ")[2]
    header = ("task", "set", "images", "compared by", "input", "IPT", "gain", "published IPT")
    return (
        f"# An IPT of {parameters} parameters, trained on {record['trained_on']} photographs\n\n"
        f"{circumstances(processor())}\n"
        f"`configs/small.yaml` with {cuts}.\n\n"
        f"{table(header, map(score_row, record['verdict']))}\n"
        "PSNR in dB, the mean over the images, on Y or RGB as the literature compares the task. "
        "Noise is clipped, as IPT's authors have it. Their IPT stands beside where its figure is "
        "of the same photographs, channel, border and noise; their tiles are joined as the "
        "official code does, ours overlap. It has 28 times as many parameters, and saw thousands "
        "of times as many patches and photographs. This run shows that the recipe trains, not "
        "what it reaches.\n\n"
        f"{table(('stage', 'minutes', 'what it did'), cost_rows(record, trained))}\n"
        f"In all {record['seconds'] / 60:.0f} minutes.\n"
    )


def score_row(line: Mapping[str, Any]) -> list[str]:
    score = line["compared_by"]
    before, after = line["corrupted"][score], line["ipt"][score]
    theirs = [f"{each['psnr']:.2f}" for each in line["published"] if each["method"] == "IPT"]
    return [
        *(TASKS[line["task"]].title, line["test_set"], str(line["images"])),
        "Y" if score == "psnr_y" else "RGB",
        *(f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"),
        ", ".join(theirs) or line["why_nothing_published"] or "none",
    ]


def cost_rows(record: Mapping[str, Any], trained: Mapping[str, str]) -> Iterable[list[str]]:
    """A row for each training, and one for all stages of every other kind."""
    others: dict[str, float] = {}
    for stage in record["stages"]:
        if stage["name"] in trained:
            did = trained[stage["name"]].partition(": ")[2]
            yield [stage["name"], f"{stage['seconds'] / 60:.1f}", did]
        else:
            others[stage["kind"]] = others.get(stage["kind"], 0) + stage["seconds"]
    for kind, seconds in others.items():
        yield [kind, f"{seconds / 60:.1f}", ""]


if __name__ == "__main__":
    sys.exit(main())
