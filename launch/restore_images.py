"""`ipt restore`: photographs of any size, each restored into a new PNG file."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launch.terminal import CommandFailed, progress_line
from pipeline.config_file import ConfigError

if TYPE_CHECKING:
    import torch

    from pipeline.restorers import Restorer
    from pipeline.tiling import Tiling

NAMED = 3  # files, in a sentence about many


def restore_images(
    images: Sequence[Path],
    *,
    weights: Path,
    out: Path,
    task: str | None,
    tiling: "Tiling",
    tile_overlap: int | None,
    ensemble: bool,
    batch: int | None,
    device: str | None,
    force: bool,
) -> int:
    """Restore every image, or every one in a folder, into `out`/<its name>.png.

    PNG whatever the input was: it loses nothing, and has the input's channels and depth. What can
    be known to fail fails before the first is restored.
    """
    if batch is not None and batch < 1:
        raise ConfigError(f"--batch {batch}: at least 1")
    if tiling == "official" and tile_overlap is not None:
        raise ConfigError("--tile-overlap: the official tiling has its own; leave one of them out")
    targets = _targets(_listed(images), out, force=force)

    from pipeline.data.photograph_file import PhotographFileError
    from pipeline.models.hub import ModelFileError
    from pipeline.restorers import RestorerError, open_restorer

    _check_headers(targets.values())
    try:
        restorer = open_restorer(
            weights,
            task=task,
            tiling=tiling,
            overlap=tile_overlap,
            ensemble=ensemble,
            batch=batch,
            device=open_device(device),
        )
    except ModelFileError as error:
        raise CommandFailed(f"--weights: {error}") from error
    except RestorerError as error:
        raise ConfigError(str(error)) from error
    make_folder(out)
    damaged: list[str] = []
    for number, (target, image) in enumerate(targets.items(), start=1):
        with _explained(image, target, done=number - 1 - len(damaged)):
            try:
                name = f"{image.name} ({number}/{len(targets)})"
                _restore(restorer, image, target, name=name, overwrite=force)
            except PhotographFileError as error:
                damaged.append(str(error))
    if damaged:
        raise CommandFailed(
            f"{len(damaged)} of {len(targets)} could not be restored: {'; '.join(damaged)}"
        )
    return 0


def _listed(images: Sequence[Path]) -> list[Path]:
    """The images themselves, and for a folder those directly inside, sorted."""
    from pipeline.data.file_names import is_photograph_file

    listed: list[Path] = []
    for image in images:
        if not image.exists():
            raise ConfigError(f"{image}: no such file or folder")
        if not image.is_dir():
            listed.append(image)
            continue
        inside = sorted(
            each for each in image.iterdir() if is_photograph_file(each) and each.is_file()
        )
        if not inside:
            raise ConfigError(f"{image}: no image directly inside this folder")
        listed += inside
    return list(dict.fromkeys(listed))


def _targets(images: Sequence[Path], out: Path, *, force: bool) -> dict[Path, Path]:
    """Which image becomes which file of `out`; ConfigError where one would be lost by that."""
    targets: dict[Path, Path] = {}
    for image in images:
        target = out / f"{image.stem}.png"
        if target in targets:
            raise ConfigError(
                f"{targets[target]} and {image} would both become {target}; restore one of them "
                "into another --out"
            )
        targets[target] = image
    present = [target for target in targets if os.path.lexists(target)]
    for target in present:
        if any(_is_same_file(target, image) for image in images):
            raise ConfigError(f"{target} is one of the images to restore; choose another --out")
        if target.is_dir():
            raise ConfigError(f"{target}: a folder is in the way; choose another --out")
    if present and not force:
        raise ConfigError(
            f"{_named(present)} exists; choose another --out, or overwrite with --force"
        )
    return targets


def _is_same_file(target: Path, image: Path) -> bool:
    return target.exists() and os.path.samefile(target, image)


def _check_headers(images: Iterable[Path]) -> None:
    from pipeline.data.photograph_file import PhotographFileError, check_photograph_file

    faults = []
    for image in images:
        try:
            check_photograph_file(image)
        except PhotographFileError as error:
            faults.append(str(error))
    if faults:
        raise CommandFailed(f"{'; '.join(faults)}; nothing was restored")


def open_device(name: str | None) -> "torch.device":
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--device {name}: can't be used here ({reason})") from error
    return device


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"--out {out}: can't be made ({error.strerror})") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise CommandFailed(f"--out {out}: can't be written to; choose another folder")


def _restore(
    restorer: "Restorer", image: Path, target: Path, *, name: str, overwrite: bool
) -> None:
    from pipeline.data.photograph_file import read_photograph_file
    from pipeline.data.png_writer import new_png

    began = time.monotonic()
    photograph = read_photograph_file(image)
    height, width, channels = photograph.pixels.shape
    height, width = height * restorer.scale, width * restorer.scale
    with (
        new_png(
            target,
            height=height,
            width=width,
            channels=channels + (photograph.alpha is not None),
            dtype=photograph.pixels.dtype,
            profile=photograph.profile,
            overwrite=overwrite,
        ) as writer,
        progress_line(name) as progress,
    ):
        rows = 0
        progress(rows, height, "rows")
        for band in restorer.restore_photograph(photograph):
            writer.write(band)
            rows += len(band)
            if rows < height:  # the line that follows says that it is finished
                progress(rows, height, "rows")
    seconds = time.monotonic() - began
    print(f"  {target}  {width}×{height}  {seconds:.1f} s", flush=True)


@contextmanager
def _explained(image: Path, target: Path, *, done: int) -> Iterator[None]:
    """Say which image was not restored, where all the rest must stop with it."""
    import torch

    from pipeline.scoring import RestorationError

    finished = "1 image is" if done == 1 else f"{done} images are"
    stopped = f"nothing of {target.name} was written; {finished} finished"
    try:
        yield
    except RestorationError as error:
        raise CommandFailed(f"{image}: {error}; {stopped}") from error
    except torch.OutOfMemoryError as error:
        raise CommandFailed(
            f"{image}: out of memory; lower --batch, or use --device cpu; {stopped}"
        ) from error
    except OSError as error:
        raise CommandFailed(f"{target}: {error.strerror or error}; {stopped}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{image}: stopped; {stopped}") from None


def _named(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(map(str, paths[:NAMED])) + more
