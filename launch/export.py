"""`ipt export`: a model folder from any checkpoint of a training, under way or finished."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from launch.model_folder import check_new, new_folder, print_model
from launch.terminal import CommandFailed
from pipeline.artifacts import Artifact, ArtifactError, open_artifact, verify
from pipeline.config_file import ConfigError
from pipeline.training.checkpoint_names import CHECKPOINTS, newest_first, step_of

if TYPE_CHECKING:
    from pipeline.models.hub import HubModel
    from pipeline.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

KIND = "checkpoint"  # what its manifest says it is


def export(path: Path, *, out: Path, raw: bool) -> int:
    """Write the folder `out`, whole or not at all.

    `path` is a checkpoint, or a training's folder or its `checkpoints`: then the newest that
    verifies. `raw` takes the weights as they were trained where there is an average of them.
    """
    check_new(out)
    artifact = _chosen(path)
    # Before the seconds that importing torch takes, what only needs looking.
    if not (artifact.folder / "config.json").is_file():
        raise ConfigError(
            f"{artifact.folder}: has no config.json, as checkpoints of earlier versions; run the "
            "training on for one more checkpoint and export that"
        )
    from pipeline.training.checkpoint import AVERAGE, opened

    averaged = (artifact.folder / AVERAGE).is_file() and not raw
    try:
        checkpoint = opened(artifact)
    except TypeError as error:
        raise CommandFailed(f"{artifact.folder}: damaged (its state: {error})") from error
    model = _model(checkpoint, averaged=averaged)
    state = checkpoint.state
    card = {
        "fingerprint": artifact.manifest.fingerprint,
        "checkpoint": f"step {state.step:,}, {state.samples:,} samples"
        + (", exponential average of the weights" if averaged else ""),
        "tasks": tuple(getattr(model.config, "scales", None) or state.samples_by_task),
    }
    with new_folder(out) as folder:
        model.save_pretrained(folder, model_card_kwargs=card)
    print(f"  checkpoint    {artifact.folder}: {card['checkpoint']}")
    print_model(model, out)
    return 0


def _model(checkpoint: "Checkpoint", *, averaged: bool) -> "HubModel":
    from pipeline.models.hub import ModelFileError, model_of_config
    from pipeline.training.checkpoint import CONFIG, CheckpointError

    try:
        model = model_of_config(checkpoint.folder / CONFIG)
        if averaged:
            checkpoint.load_result(model)
        else:
            checkpoint.load_weights(model)
    except (ModelFileError, CheckpointError) as error:
        raise CommandFailed(str(error)) from error
    return model


def _chosen(path: Path) -> Artifact:
    """The checkpoint that `path` is or has, verified."""
    if not path.is_dir():
        what = "is a file, not the folder of a checkpoint" if path.exists() else "no such folder"
        raise ConfigError(f"{path}: {what}")
    if _is_checkpoint(path):
        artifact, problem = _verified(path)
        if artifact is None:
            others = newest_first(path.parent)
            more = f"; {path.parent} has {len(others) - 1} more" if len(others) > 1 else ""
            raise CommandFailed(f"{path}: damaged ({problem}){more}")
        return artifact
    folder = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    checkpoints = newest_first(folder)
    if not checkpoints:
        raise ConfigError(f"{path}: {_why_none(path)}")
    for each in checkpoints:
        artifact, problem = _verified(each)
        if artifact is not None:
            return artifact
        logger.warning("%s: damaged (%s); using the checkpoint before it", each, problem)
    raise CommandFailed(f"{folder}: all {len(checkpoints)} checkpoints are damaged")


def _is_checkpoint(folder: Path) -> bool:
    """By its name; or, where somebody copied it under another one, by its manifest."""
    if step_of(folder) is not None:
        return True
    try:
        artifact = open_artifact(folder)
    except ArtifactError:
        return False
    return artifact is not None and artifact.manifest.stage == KIND


def _verified(folder: Path) -> tuple[Artifact | None, str]:
    """A checkpoint whose every file has the hash that was sealed, or else what is wrong with it."""
    try:
        artifact = open_artifact(folder)
        problems = verify(artifact) if artifact else ["it has no manifest"]
    except (ArtifactError, OSError) as error:
        return None, str(error)
    if artifact is not None and artifact.manifest.stage != KIND:
        problems = [f"its manifest is of {artifact.manifest.stage}"]
    return (None, "; ".join(problems)) if problems else (artifact, "")


def _why_none(folder: Path) -> str:
    below = sorted(path.parent for path in folder.glob(f"*/{CHECKPOINTS}"))
    if below:
        return f"is not the folder of one training; give {' or '.join(map(str, below[:3]))}"
    if (folder / "model.safetensors").is_file():
        return "is a model folder already, as an export would be"
    return (
        "no checkpoint is there; give a folder such as runs/NAME/pretrain/FINGERPRINT or one of "
        "its checkpoints/step-00001000"
    )
