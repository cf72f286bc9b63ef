"""`ipt`, or `python -m launch` without an install: the command line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.terminal import (
    add_part_arguments,
    exit_code_of,
    set_up_logging,
    terminated_as_interrupted,
)

Command = Callable[[argparse.Namespace], int]
Commands = argparse._SubParsersAction  # which argparse gives no public name


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    set_up_logging()
    with exit_code_of() as outcome:
        outcome.code = parsed.command(parsed)
        sys.stdout.flush()  # here, where a pipe that nobody reads any more is no traceback
    return outcome.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipt",
        description="From a folder of photographs to a pretrained Image Processing Transformer, "
        "fine-tuned models, DnCNN baselines and a report.",
        epilog="Exit codes: 0 done, 1 failed, 2 config or usage, 75 stopped with a checkpoint "
        "(the same command goes on), 130 interrupted (likewise).",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run_commands(commands)
    _add_evaluate(commands)
    _add_restore(commands)
    _add_import_weights(commands)
    _add_export(commands)
    return parser


def _add(commands: Commands, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=command)
    return sub


def _add_run_commands(commands: Commands) -> None:
    """The commands that read one YAML file."""

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = _add(commands, name, command, text)
        sub.add_argument("config", help="a YAML file; configs/ is searched too")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="overrides",
            help="put a value over the config's, as in --set pretrain.batch=64; repeatable",
        )
        return sub

    add("plan", _plan, "Show the graph: what is done, what goes on, what is yet to be made, why.")
    run = add("run", _run, "Make every stage that is not done, on this machine.")
    run.add_argument("--until", metavar="STAGE", help="leave out what this stage does not need")
    run.add_argument("--before", metavar="STAGE", help="only what this stage needs, not itself")
    run.add_argument(
        "--from", metavar="STAGE", dest="start", help="only this stage and what depends on it"
    )
    run.add_argument(
        "--force", action="store_true", help="make them again, setting the old ones aside"
    )
    add_part_arguments(run)
    submit = add("submit", _submit, "Hand every stage that is not done to SLURM, as jobs in order.")
    submit.add_argument(
        "--cluster",
        required=True,
        metavar="YAML",
        help="what jobs ask for, as configs/slurm/*.yaml",
    )
    submit.add_argument(
        "--dry-run", action="store_true", help="print the batch scripts and submit nothing"
    )
    add("cancel", _cancel, "Cancel the jobs of this run, and no others.")
    add(
        "status",
        _status,
        "Show how far each stage is, which job has it, why it waits and where its log is.",
    )
    add("verify", _verify, "Hash every file of every finished stage and name what was altered.")


def _add_evaluate(commands: Commands) -> None:
    from launch.model_arguments import add_evaluate_arguments

    text = "Score any weights on every benchmark of a folder, with what they cost."
    add_evaluate_arguments(_add(commands, "evaluate", _evaluate, text))


def _add_restore(commands: Commands) -> None:
    from launch.model_arguments import add_restore_arguments

    text = "Restore photographs of any size with a trained model."
    add_restore_arguments(_add(commands, "restore", _restore, text))


def _add_import_weights(commands: Commands) -> None:
    weights = _add(
        commands,
        "import-weights",
        _import_weights,
        "Turn published weights, of IPT or DnCNN, into a model folder.",
    )
    weights.add_argument("file", type=Path, help="as published: .pt, .pth, .safetensors or .mat")
    weights.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new or an empty folder"
    )
    weights.add_argument(
        "--tasks",
        metavar="TASK,...",
        help="what each head of an IPT is for, in order (default: the published order)",
    )
    weights.add_argument("--task", help="keep this task's head, tail and query alone")
    weights.add_argument(
        "--attention-heads",
        type=int,
        metavar="N",
        help="which no shape tells (default: the published 12)",
    )


def _add_export(commands: Commands) -> None:
    export = _add(commands, "export", _export, "Turn a training's checkpoint into a model folder.")
    export.add_argument(
        "checkpoint",
        type=Path,
        help="a folder step-00001000; or a training's folder: its newest checkpoint that verifies",
    )
    export.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new or an empty folder"
    )
    export.add_argument(
        "--raw",
        action="store_true",
        help="the weights as they were trained, where there is an exponential average of them",
    )


def resolve_config_path(given: str) -> Path:
    """A file as given, else by name in ./configs, the checkout's configs, the package's."""
    package = Path(__file__).resolve().parents[1]
    folders = (Path(), Path("configs"), package / "configs", package / "pipeline" / "_configs")
    for folder in folders:
        for name in (given, f"{given}.yaml"):
            if (folder / name).is_file():
                return folder / name
    return Path(given)  # reading it says what is wrong


def _plan(parsed: argparse.Namespace) -> int:
    from launch.inspect_run import plan

    return plan(resolve_config_path(parsed.config), tuple(parsed.overrides))


def _status(parsed: argparse.Namespace) -> int:
    from launch.status import status

    return status(resolve_config_path(parsed.config), tuple(parsed.overrides))


def _submit(parsed: argparse.Namespace) -> int:
    from launch.submit import submit

    return submit(
        resolve_config_path(parsed.config),
        tuple(parsed.overrides),
        resolve_config_path(parsed.cluster),
        dry_run=parsed.dry_run,
    )


def _cancel(parsed: argparse.Namespace) -> int:
    from launch.submit import cancel

    return cancel(resolve_config_path(parsed.config), tuple(parsed.overrides))


def _verify(parsed: argparse.Namespace) -> int:
    from launch.inspect_run import verify_run

    return verify_run(resolve_config_path(parsed.config), tuple(parsed.overrides))


def _evaluate(parsed: argparse.Namespace) -> int:
    from launch.model_arguments import evaluate

    with terminated_as_interrupted():
        return evaluate(parsed)


def _restore(parsed: argparse.Namespace) -> int:
    from launch.restore_images import restore_images

    with terminated_as_interrupted():
        return restore_images(
            parsed.images,
            weights=parsed.weights,
            out=parsed.out,
            task=parsed.task,
            tiling=parsed.tiling,
            tile_overlap=parsed.tile_overlap,
            ensemble=parsed.self_ensemble,
            batch=parsed.batch,
            device=parsed.device,
            force=parsed.force,
        )


def _names(listed: str | None) -> tuple[str, ...] | None:
    """`a, b` as ("a", "b")."""
    return None if listed is None else tuple(name.strip() for name in listed.split(","))


def _import_weights(parsed: argparse.Namespace) -> int:
    from launch.import_weights import import_weights

    with terminated_as_interrupted():
        return import_weights(
            parsed.file,
            out=parsed.out,
            tasks=_names(parsed.tasks),
            only=parsed.task,
            attention_heads=parsed.attention_heads,
        )


def _export(parsed: argparse.Namespace) -> int:
    from launch.export import export

    with terminated_as_interrupted():
        return export(parsed.checkpoint, out=parsed.out, raw=parsed.raw)


def _run(parsed: argparse.Namespace) -> int:
    from launch.inspect_run import print_faults, print_outcome
    from launch.local import run_graph
    from launch.stage import checked_part, config_arguments
    from pipeline.config_file import load_config
    from stages.recipe import build_graph

    path = resolve_config_path(parsed.config)
    config = load_config(path, tuple(parsed.overrides))
    artifacts = run_graph(
        build_graph(config),
        config,
        config_arguments=config_arguments(path, parsed.overrides),
        until=parsed.until,
        before=parsed.before,
        start=parsed.start,
        force=parsed.force,
        part=checked_part(parsed.part, parsed.parts),
    )
    print_outcome(artifacts)
    return print_faults(artifacts)


if __name__ == "__main__":
    sys.exit(main())
