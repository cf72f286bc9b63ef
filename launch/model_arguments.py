"""The options of the commands that use a trained model. Imports nothing heavy."""

import argparse
from pathlib import Path

from pipeline.config_file import ConfigError


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="DIR", help="a model folder, IPT or DnCNN"
    )
    parser.add_argument(
        "--benchmarks",
        required=True,
        type=Path,
        metavar="DIR",
        help="a folder that holds Set5/, CBSD68/, Rain100L/ and so on; what is missing is listed",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="gets scores.json and some pictures"
    )
    parser.add_argument("--task", help="one task alone (default: every task of an IPT, denoising)")
    parser.add_argument(
        "--sigma",
        metavar="S,...",
        help="of a denoiser: the noise levels to measure at (default: its own and 10,30,50,70; "
        "grey ones also 15,25,50)",
    )
    parser.add_argument(
        "--noise",
        choices=("clipped", "unclipped"),
        help="whether noisy images are clipped to [0, 255] (default: as the models were published: "
        "IPT clipped, DnCNN unclipped)",
    )
    parser.add_argument(
        "--tiling",
        choices=("overlap", "official"),
        default="overlap",
        help="of an IPT, as for ipt restore (default: overlap)",
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="average over eight orientations"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="of an IPT: tiles at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--force", action="store_true", help="overwrite the scores in --out")


def evaluate(parsed: argparse.Namespace) -> int:
    from launch.evaluate_weights import Options, evaluate_weights

    if parsed.batch is not None and parsed.batch < 1:
        raise ConfigError(f"--batch {parsed.batch}: at least 1")
    return evaluate_weights(
        parsed.weights,
        benchmarks=parsed.benchmarks,
        out=parsed.out,
        task=parsed.task,
        options=Options(
            sigmas=_sigmas(parsed.sigma),
            clip_noise=None if parsed.noise is None else parsed.noise == "clipped",
            tiling=parsed.tiling,
            self_ensemble=parsed.self_ensemble,
            batch=parsed.batch,
            device=parsed.device,
            seed=parsed.seed,
        ),
        force=parsed.force,
    )


def _sigmas(listed: str | None) -> tuple[float, ...] | None:
    if listed is None:
        return None
    try:
        sigmas = tuple(float(text) for text in listed.split(","))
    except ValueError:
        raise ConfigError(f"--sigma {listed}: write numbers, as in --sigma 10,70") from None
    for sigma in sigmas:
        if not 0 < sigma <= 255:
            raise ConfigError(f"--sigma {sigma:g}: above 0 and at most 255")
    return sigmas


def add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file or a folder")
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="DIR", help="a model folder, IPT or DnCNN"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="gets <name>.png for every image"
    )
    parser.add_argument("--task", help="of an IPT: needed where it has several")
    parser.add_argument(
        "--tiling",
        choices=("overlap", "official"),
        default="overlap",
        help="of an IPT: how its tiles are put together, blended over --tile-overlap pixels, or as "
        "the published evaluation does, at five to ten times the cost (default: overlap)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=int,
        metavar="PIXELS",
        help="of an IPT: what neighbouring tiles share (default: 10)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over the eight rotations and reflections of every tile, at eight times the "
        "cost",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="of an IPT: tiles at a time; fewer take less memory (default: 32)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--force", action="store_true", help="overwrite images of the same names in --out"
    )
