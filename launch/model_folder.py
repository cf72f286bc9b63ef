"""The model folder that a command makes: a new one, whole or not at all, and what is said of it."""

import errno
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launch.terminal import CommandFailed
from pipeline.artifacts import sync_folder
from pipeline.config_file import ConfigError
from pipeline.model_configs import DnCNNConfig

if TYPE_CHECKING:
    from pipeline.models.hub import HubModel


def check_new(out: Path) -> None:
    """Raise ConfigError unless `out` can be made without overwriting anything."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not an empty folder; choose another --out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which then becomes `out`; after a failure nothing of it is left."""
    final = out.resolve()
    beginning = f".{final.name}.{socket.gethostname()}."
    temporary = final.with_name(f"{beginning}{os.getpid()}.tmp")
    parents = [parent for parent in final.parents if not parent.exists()]
    try:
        _remove_abandoned(final.parent, beginning)
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
        temporary.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if is_full else "choose another --out"
        raise CommandFailed(
            f"{out}: {error.strerror or error}; nothing was written; {remedy}"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {out} was not made") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in parents:
            with suppress(OSError):  # it holds the finished folder
                parent.rmdir()


def _remove_abandoned(folder: Path, beginning: str) -> None:
    """What processes of this machine that were killed left half written."""
    paths = folder.iterdir() if folder.is_dir() else ()
    for path in paths:
        number = path.name.removeprefix(beginning).removesuffix(".tmp")
        if path.name == f"{beginning}{number}.tmp" and number.isdecimal():
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
            except PermissionError:  # alive, and somebody else's
                continue


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def print_model(model: "HubModel", out: Path) -> None:
    config, folder = model.config, shlex.quote(str(out))
    published, task = "", ""
    if isinstance(config, DnCNNConfig):
        architecture = (
            f"DnCNN: depth {config.depth}, {config.features} features, "
            f"{'colour' if config.channels > 1 else 'grey'}"
        )
    else:
        size = config.size
        architecture = (
            f"IPT: {size.encoder_layers} + {size.decoder_layers} layers, {size.features} features, "
            f"{size.attention_heads} attention heads, patches of {size.patch_size}"
        )
        published = f", as published {config.published_parameters:,} with the fixed mean shifts"
        print(f"  tasks         {', '.join(config.scales)}")
        if len(config.scales) > 1:
            task = f" --task {next(iter(config.scales))}"
    print(f"  architecture  {architecture}")
    print(f"  parameters    {config.parameters:,}{published}")
    print(f"  folder        {out}")
    print(f"  next          ipt restore photo.png --weights {folder}{task} --out restored")
