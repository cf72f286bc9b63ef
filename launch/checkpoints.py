"""The checkpoints of a training as a login node sees them: names and manifests, without torch."""

from collections.abc import Iterator
from pathlib import Path

CHECKPOINTS = "checkpoints"


def step_of(folder: Path) -> int | None:
    """That a checkpoint's folder names; None for any other folder."""
    number = folder.name.removeprefix("step-")
    return int(number) if number != folder.name and number.isdecimal() else None


def newest_first(folder: Path) -> Iterator[Path]:
    """The checkpoints in a training's `checkpoints`, also damaged ones; none where it isn't."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in paths if step_of(path) is not None]
    yield from sorted(found, key=lambda path: step_of(path) or 0, reverse=True)
