"""Which samples were behind a loss that is no number."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.training.placement import Place

NAMED = 8  # keys in a message
# The keys of the samples in a process's micro-batch of that number, counted from the first step.
Keys = Callable[[Place, int], Sequence[str]]


def suspects(losses: Sequence[Tensor], keys: Keys | None, *, step: int, place: Place) -> str:
    """The samples of step `step` (from 0) whose micro-batch had a loss that is not finite, on any
    rank; of all of them where only the gradient was not. Every rank must ask."""
    if keys is None:
        return ""
    numbers = range(step * place.accumulation, (step + 1) * place.accumulation)
    pairs = zip(numbers, losses, strict=True)
    found = [key for number, loss in pairs if not loss.isfinite() for key in keys(place, number)]
    found = [key for of_rank in _of_all_ranks(found, place) for key in of_rank]
    if found:
        return f"In micro-batches with such a loss: {_listed(found)}. "
    return f"The samples of the first micro-batch: {_listed(keys(place, numbers[0]))}. "


def _of_all_ranks(found: list[str], place: Place) -> list[list[str]]:
    if place.world_size == 1:
        return [found]
    everybodys: list[list[str]] = [[] for _ in range(place.world_size)]
    torch.distributed.all_gather_object(everybodys, found)
    return everybodys


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more
