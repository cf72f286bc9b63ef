"""The ways in which a GPU computes the model, and how far their results lie apart."""

# N batch

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring import patches
from benchmarks.official_code import OfficialIPT
from pipeline.model_configs import IPTConfig, Precision
from pipeline.models.ipt import IPT
from pipeline.training.model_facts import peak_flops


@dataclass(frozen=True, kw_only=True)
class Mode:
    precision: Precision = "float32"
    tf32: bool = False
    compiled: bool = False
    official: bool = False

    @property
    def name(self) -> str:
        words = ["official"] if self.official else []
        words.append("TF32" if self.tf32 else self.precision)
        return " ".join([*words, "compiled"] if self.compiled else words)

    def peak(self, device: str) -> float | None:
        return peak_flops(device, self.precision, tf32=self.tf32)


MODES = {
    "float32": Mode(),
    "tf32": Mode(tf32=True),
    "bfloat16": Mode(precision="bfloat16"),
    "compiled": Mode(precision="bfloat16", compiled=True),
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Relative differences ‖a − b‖ / ‖b‖, and how large they may be."""

    what: str
    output: float
    gradient: float
    output_limit: float
    gradient_limit: float | None  # None: at random weights, rounding decides these gradients

    @property
    def holds(self) -> bool:
        limit = float("inf") if self.gradient_limit is None else self.gradient_limit
        return self.output <= self.output_limit and self.gradient <= limit


def compare(
    config: IPTConfig, task: str, modes: Sequence[Mode], device: torch.device
) -> Iterator[Agreement]:
    """float32 on the device with the CPU, and every other mode with float32 on the device."""
    x = patches(2, config.size.patch_size)
    of_cpu = result(built(Mode(), config, None), x, task)
    model = built(Mode(), config, None).to(device)
    set_tf32(False)
    exact = result(model, x.to(device), task)
    yield agreement("float32 with that of the CPU", exact, of_cpu, 1e-4, 0.05)
    others = [each for each in modes if each != Mode()]
    if any(each.compiled for each in modes):
        others.append(Mode(compiled=True))
    for mode in others:
        set_tf32(mode.tf32)
        found = result(built(mode, config, None).to(device), x.to(device), task)
        is_exact = mode.precision == "float32" and not mode.tf32
        limits = (1e-4, 0.05) if is_exact else (0.1, None)
        yield agreement(f"{mode.name} with float32", found, exact, *limits)


def built(mode: Mode, config: IPTConfig, checkout: Path | None) -> nn.Module:
    """The same random weights each time, for a mode."""
    torch.manual_seed(0)
    if mode.official:
        assert checkout is not None
        return OfficialIPT(checkout, config.size)
    model = IPT(config, precision=mode.precision)
    if mode.compiled:
        model.compile_parts()
    return model


def set_tf32(enabled: bool) -> None:
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


def result(model: nn.Module, x: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """The output and the whole gradient of its mean square, on the CPU."""
    torch.compiler.reset()
    output = model(x, task)
    output.square().mean().backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return output.detach().cpu(), torch.cat(gradients).cpu()


def agreement(
    what: str,
    found: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    output_limit: float,
    gradient_limit: float | None,
) -> Agreement:
    output, gradient = (
        ((one - other).norm() / other.norm()).item()
        for one, other in zip(found, expected, strict=True)
    )
    return Agreement(
        what=what,
        output=output,
        gradient=gradient,
        output_limit=output_limit,
        gradient_limit=gradient_limit,
    )
