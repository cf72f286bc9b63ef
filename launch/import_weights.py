"""`ipt import-weights`: a model folder of ours from a checkpoint that someone published."""

from pathlib import Path
from typing import TYPE_CHECKING

from launch.model_folder import check_new, new_folder, print_model
from launch.terminal import CommandFailed
from pipeline.artifacts import file_digest
from pipeline.config_file import ConfigError
from pipeline.tasks import IPT_TASKS, PUBLISHED_ORDER, TASKS

if TYPE_CHECKING:
    from pipeline.models.hub import HubModel


def import_weights(
    file: Path,
    *,
    out: Path,
    tasks: tuple[str, ...] | None,
    only: str | None,
    attention_heads: int | None,
) -> int:
    """Write the folder `out`, whole or not at all.

    `tasks` names the heads of an IPT in their order, `only` keeps one of them.
    """
    from pipeline.models.hub import ModelFileError

    _check_tasks(tasks, only)
    check_new(out)
    if file.is_dir():
        raise CommandFailed(f"{file}: is a folder; give the file of the weights")
    try:
        model = _read(file, tasks=tasks, only=only, attention_heads=attention_heads)
    except ModelFileError as error:
        raise CommandFailed(str(error)) from error
    card = {"published_file": file.name, "sha256": file_digest(file)}
    with new_folder(out) as folder:
        model.save_pretrained(folder, model_card_kwargs=card)
    print_model(model, out)
    return 0


def _check_tasks(tasks: tuple[str, ...] | None, only: str | None) -> None:
    for option, names in (("--tasks", tasks or ()), ("--task", (only,) if only else ())):
        for name in names:
            if name not in IPT_TASKS:
                raise ConfigError(f"{option}: unknown task {name!r}; known: {', '.join(IPT_TASKS)}")
    if tasks and only and only not in tasks:
        raise ConfigError(f"--task {only} is not among --tasks {','.join(tasks)}")


def _read(
    file: Path, *, tasks: tuple[str, ...] | None, only: str | None, attention_heads: int | None
) -> "HubModel":
    from pipeline.models.hub import ModelFileError
    from pipeline.models.matconvnet import is_matconvnet
    from pipeline.models.published import (
        PUBLISHED_ATTENTION_HEADS,
        from_published,
        read_published,
    )
    from pipeline.models.published_dncnn import (
        from_published_dncnn,
        is_dncnn,
        read_published_dncnn,
    )
    from pipeline.models.published_layout import ContradictionError, tail_scales

    options = {"--tasks": tasks, "--task": only, "--attention-heads": attention_heads}
    given = [name for name, value in options.items() if value is not None]
    state = None if is_matconvnet(file) else read_published(file)
    if state is None or is_dncnn(state):
        if given:
            raise ConfigError(f"{file}: is a DnCNN, which has one task; leave out {given[0]}")
        if state is None:
            return read_published_dncnn(file)
        return from_published_dncnn(state, origin=str(file))
    if attention_heads is None:
        attention_heads = PUBLISHED_ATTENTION_HEADS
    try:
        scales = tail_scales(state)
    except ValueError as error:
        raise ModelFileError(f"{file}: {error}") from error
    try:
        model = from_published(
            state,
            tasks or _tasks_of(scales, only, file),
            attention_heads=attention_heads,
            origin=str(file),
        )
    except ContradictionError as error:
        if given:
            raise ConfigError(str(error)) from error
        raise
    return model if only is None else model.task_subset([only])


def _tasks_of(scales: tuple[int, ...], only: str | None, file: Path) -> tuple[str, ...]:
    """The tasks of the heads, where their number or the scale of the one tail leaves no choice."""
    if len(scales) == len(PUBLISHED_ORDER):
        return PUBLISHED_ORDER
    if len(scales) != 1:
        raise ConfigError(
            f"{file}: has {len(scales)} heads; name the task of each, in order, as in "
            f"--tasks {','.join(PUBLISHED_ORDER[: len(scales)])}"
        )
    if only:
        return (only,)
    choices = tuple(name for name in IPT_TASKS if TASKS[name].scale == scales[0])
    if len(choices) == 1:
        return choices
    raise ConfigError(
        f"{file}: has one head, of scale {scales[0]}, which doesn't tell its task; add "
        f"--tasks with one of {', '.join(choices or IPT_TASKS)}"
    )
