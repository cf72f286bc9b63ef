"""The checkpoints of a training as a login node sees them: names and folders, without torch."""

import re
from pathlib import Path

CHECKPOINTS = "checkpoints"  # in a training's folder
NAME = re.compile(r"step-(\d{8,})")


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint's folder names; None for any other folder."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a training's `checkpoints`, also damaged ones; none where it isn't."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = {path: step for path in paths if (step := step_of(path)) is not None}
    return sorted(found, key=lambda path: found[path], reverse=True)
