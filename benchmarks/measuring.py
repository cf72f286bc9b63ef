"""What the benchmarks share: time, memory and the machine that they were measured on."""

import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import partial
from importlib import metadata
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

MEBIBYTE = 2**20


def saved_bytes(forward: Callable[[], object], parameters: Iterable[nn.Parameter]) -> int:
    """What a forward pass keeps for the backward pass: unique storages, parameters left out."""
    held = {each.untyped_storage().data_ptr() for each in parameters}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in saved.items()
        if pointer not in held
    )


def saved_bytes_per_patch(
    model: nn.Module, forward: Callable[[Tensor], object], patch_size: int
) -> int:
    """What one patch more makes a forward pass keep: casts of weights, kept once, are left out."""
    two, one = (
        saved_bytes(partial(forward, patches(count, patch_size)), model.parameters())
        for count in (2, 1)
    )
    return two - one


def peak_bytes(action: Callable[[], object]) -> int:
    """The most memory that tensors of an action take on the CPU at a time, above what is there."""
    action()  # makes what stays, as Adam's moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    assert profiled.profiler is not None
    events = [
        each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"
    ]
    events.sort(key=lambda each: each.start_ns())
    return max(accumulate(each.nbytes() for each in events))


def patches(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def inference(model: nn.Module, x: Tensor, task: str) -> Callable[[], None]:
    """What restores a batch of patches."""
    model.eval()

    def action() -> None:
        with torch.no_grad():
            model(x, task)

    return action


def training_step(model: nn.Module, x: Tensor, task: str) -> Callable[[], None]:
    """What takes one step of Adam on L1, forward, backward and update."""
    model.train()
    adam = torch.optim.Adam(each for each in model.parameters() if each.requires_grad)
    with torch.no_grad():
        clean = torch.zeros_like(model(x, task))

    def action() -> None:
        nn.functional.l1_loss(model(x, task), clean).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    return action


ACTIONS = {"inference": inference, "training": training_step}


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def circumstances(device: str) -> str:
    """When, how and on what a benchmark ran, in Markdown."""
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return f"`{command}`\n\n{date.today()}, {device}, {versions}\n"


def processor() -> str:
    """The CPU's name and how many threads torch uses."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    name = lines[0] if lines else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
