"""What pretraining, the contrastive loss and the order of tasks give a small IPT.

    python -m benchmarks.ablation [--seeds 0,1] [--data FOLDER] [--runs FOLDER] [--set KEY=VALUE]
        [--out benchmarks/ablation.md]

Each arm is configs/small.yaml at a size that a CPU trains in minutes, with one thing changed. A
seed decides the weights, the photographs held out, crops, noise and order. Two arms train at a
time, each by one thread.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measuring import circumstances, processor, table
from benchmarks.pages import write_page
from benchmarks.runs import ROOT, RunError
from benchmarks.small import add_options, places, run_recipe
from pipeline.config_file import load_config
from pipeline.tasks import TASKS

TUNED = ("sr2", "derain", "denoise30")
PRETRAINED, FINETUNED = 7_200, 1_200  # samples: of six tasks, of one
MORE = FINETUNED + PRETRAINED // 6
SMALL = load_config(ROOT / "configs" / "small.yaml")
RATE = SMALL.pretrain.learning_rate


def tuning(**changes: object) -> str:
    """The fine-tuning of SMALL for TUNED alone, shorter and by smaller batches, with changes."""
    trainings = {
        task: SMALL.finetune[task].model_dump(exclude_unset=True)
        | {"samples": FINETUNED, "batch": 24, **changes}
        for task in TUNED
    }
    return f"finetune={json.dumps(trainings)}"


# Random weights are trained at the rate of pretraining.
SCRATCH = {"pretrained": False, "learning_rate": RATE}
COMMON = (
    *("ipt.features=8", "ipt.encoder_layers=3", "ipt.decoder_layers=3"),
    *(f"pretrain.samples={PRETRAINED}", "pretrain.batch=24", "pretrain.warmup_samples=1200"),
    *("pretrain.contrastive.images=4", tuning()),
    *("dncnn={}", "evaluate.benchmarks=null", "evaluate.sigmas=[]"),
    *("runtime.checkpoint_every_steps=100", "runtime.workers=1", "runtime.threads_per_process=1"),
)
BASE = "pretrained, λ 0.1, all tasks in a step"
ARMS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "not pretrained": (tuning(**SCRATCH),),
    "not pretrained, as many samples of its task": (tuning(samples=MORE, **SCRATCH),),
    "λ 0": ("pretrain.contrastive.weight=0",),
    "one task in a step": ("pretrain.tasks_per_step=one",),
}
Scores = Mapping[str, float]  # PSNR by task and test set


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--seeds", default="0,1", help="two or more, with commas")
    options = parser.parse_args()
    seeds = [int(each) for each in options.seeds.split(",")]
    if len(seeds) < 2:
        print(f"--seeds {options.seeds}: one has no spread; name two or more", file=sys.stderr)
        return 1

    def run(arm: str, seed: int) -> dict[str, Any]:
        return run_recipe([*overrides_of(arm, seed, options.data), *options.set], options.runs)

    try:
        with ThreadPoolExecutor(2) as pool:
            futures = [(arm, pool.submit(run, arm, seed)) for seed in seeds for arm in ARMS]
            records = [(arm, future.result()) for arm, future in futures]
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    by_arm = {arm: [record for of, record in records if of == arm] for arm in ARMS}
    write_page(page_of(by_arm, seeds, options.set), options.out)
    return 0


def overrides_of(arm: str, seed: int, data: Path) -> list[str]:
    return [*places(data), *COMMON, *tested_on(data / "benchmarks"), *ARMS[arm], f"seed={seed}"]


def tested_on(benchmarks: Path) -> list[str]:
    """The same few images for every seed: all of CBSD68 takes as long as training."""
    set5, rain = benchmarks / "Set5" / "HR", benchmarks / "Rain100L"
    return [
        f"evaluate.test_sets.Set5={{path: {set5}, tasks: [sr2, denoise30]}}",
        "evaluate.test_sets.Rain100L="
        f"{{path: {rain / 'clean'}, corrupted: {rain / 'rainy'}, tasks: [derain]}}",
    ]


def page_of(
    by_arm: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int], changes: Sequence[str]
) -> str:
    scores = {arm: [scores_of(record) for record in records] for arm, records in by_arm.items()}
    sets = list(scores[BASE][0])
    rows = [
        [arm, minutes(by_arm[arm]), *(cell(scores[arm], each) for each in sets)] for arm in ARMS
    ]
    verdicts = [
        [arm, *(verdict(of_set(scores[arm], each), of_set(scores[BASE], each)) for each in sets)]
        for arm in ARMS
        if arm != BASE
    ]
    values = ", ".join(f"`{each}`" for each in (*COMMON, *changes))
    arms = "".join(
        f"- {arm}: {', '.join(f'`{each}`' for each in overrides)}\n"
        for arm, overrides in ARMS.items()
        if overrides
    )
    return (
        f"# Ablation of a small IPT\n\n{circumstances(processor())}\n"
        f"`configs/small.yaml` with {values}, and by arm:\n\n{arms}\n"
        f"PSNR in dB, the mean of seeds {', '.join(map(str, seeds))}, in brackets each.\n\n"
        f"{table(('arm', 'minutes', *sets), rows)}\n"
        f"Less “{BASE}”, or no conclusion where that is within the spread of the seeds of either:"
        f"\n\n{table(('arm', *sets), verdicts)}\n"
        "That rule is weak: of two equal arms of two seeds, one in five would show a gap by "
        "chance, so one that stands alone in its row is a hint, no more. What isn't pretrained is "
        f"trained at the rate of pretraining, {RATE:g}, instead of fine-tuning's. The minutes "
        "are those of an arm's trainings and scores, two arms at a time. So short a training says "
        "nothing about a long one.\n"
    )


def scores_of(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{TASKS[line['task']].title}, {line['test_set']}": line["ipt"][line["compared_by"]]
        for line in record["verdict"]
    }


def minutes(records: Sequence[Mapping[str, Any]]) -> str:
    kinds = ("pretrain", "finetune", "evaluate")
    times = [
        sum(stage["seconds"] for stage in record["stages"] if stage["kind"] in kinds) / 60
        for record in records
    ]
    return f"{mean(times):.1f}"


def of_set(scores: Sequence[Scores], test_set: str) -> list[float]:
    return [each[test_set] for each in scores]


def cell(scores: Sequence[Scores], test_set: str) -> str:
    values = of_set(scores, test_set)
    return f"{mean(values):.2f} ({', '.join(f'{each:.2f}' for each in values)})"


def verdict(values: Sequence[float], base: Sequence[float]) -> str:
    """The gap of the means, where no spread of either's seeds is as large."""
    gap = mean(values) - mean(base)
    spread = max(max(each) - min(each) for each in (values, base))
    return f"{gap:+.2f}" if abs(gap) > spread else f"no conclusion ({gap:+.2f})"


if __name__ == "__main__":
    sys.exit(main())
