"""How much the tiling of whole images moves PSNR, for trained models, on photographs held out.

    python benchmarks/tilings.py [--weights DIR] [--images FOLDER] [--out FILE]

By default the newest fine-tuned models that `make demo` left, on the demo's held-out photographs.
"""

# H W height and width

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from benchmarks.measuring import circumstances, processor, table
from benchmarks.pages import write_page
from pipeline.config import TestSetConfig
from pipeline.config_file import load_config
from pipeline.corruptions.keyed import generator
from pipeline.corruptions.rain import render_layer
from pipeline.data.testsets import Pair, TestSetError, open_test_set
from pipeline.models.hub import ModelFileError
from pipeline.models.ipt import IPT
from pipeline.restorers import RestorerError, open_restorer
from pipeline.scoring import mean_scores, score_restoration
from pipeline.tasks import TASKS, Task
from pipeline.tiling import Tiling

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ROOT / "pipeline" / "assets" / "photos"
TILINGS: tuple[Tiling, ...] = ("overlap", "official")
SEED = 0
RAIN_LAYERS, LAYER_SIZE = 2, 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, metavar="DIR", help="a model's folder")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="clean photographs")
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    options = parser.parse_args()
    folders = [options.weights] if options.weights else demo_models()
    if not folders:
        print("tilings: no --weights, and runs/demo holds no fine-tuned model: make demo first")
        return 0
    try:
        rows = [row for folder in folders for row in rows_of(folder, options.images)]
    except (ModelFileError, RestorerError, TestSetError) as error:
        print(error, file=sys.stderr)
        return 1
    header = ["model", "task", "images", *TILINGS, "official − overlap"]
    note = "PSNR of RGB, in dB, mean over images.\n\n"
    page = f"# Tilings\n\n{circumstances(processor())}\n{note}{table(header, rows)}"
    write_page(page, options.out)
    return 0


def demo_models() -> list[Path]:
    """The newest model of each fine-tuning stage of the demo."""
    newest: dict[str, Path] = {}
    found = Path("runs/demo").glob("finetune-*/*/model")
    for folder in sorted(found, key=lambda each: each.stat().st_mtime):
        newest[folder.parts[-3]] = folder
    return [newest[stage] for stage in sorted(newest)]


def rows_of(folder: Path, images: Path | None) -> Iterable[list[str]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in IPT.from_pretrained(folder).tasks:
        task = TASKS[name]
        pairs = list(corrupted_pairs(task, images))
        values = []
        for tiling in TILINGS:
            restorer = open_restorer(folder, task=name, tiling=tiling, device=device)
            scores = [
                score_restoration(
                    pair.corrupted,
                    pair.clean,
                    corruption=task.corruption,
                    restore=restorer.restore,
                ).restored
                for pair in pairs
            ]
            psnr = mean_scores(scores)["psnr_rgb"]
            assert psnr is not None, "restored without any difference"
            values.append(psnr)
        overlap, official = values
        cells = [f"{overlap:.3f}", f"{official:.3f}", f"{official - overlap:+.4f}"]
        yield [str(folder), name, str(len(pairs)), *cells]


def corrupted_pairs(task: Task, images: Path | None) -> Iterable[Pair]:
    """Those of a folder, or of the photographs that the demo trains on nowhere."""
    layers = [
        render_layer(generator(SEED, "tilings", number), LAYER_SIZE, "light")
        for number in range(RAIN_LAYERS)
    ]
    test_set = open_test_set(
        TestSetConfig(path=str(images or PHOTOGRAPHS)),
        task,
        seed=SEED,
        sources={},
        rain_layers=np.stack(layers),
    )
    held_out = load_config(ROOT / "configs" / "demo.yaml").sources["photos"].held_out
    stems = {Path(name).stem for name in held_out}
    return [pair for pair in test_set if images is not None or pair.name in stems]


if __name__ == "__main__":
    sys.exit(main())
