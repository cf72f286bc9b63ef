"""What the training loop is told of a model and can't see in it, and what a device can do."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from pipeline.model_configs import Precision
from pipeline.training.placement import Place

# FLOP/s of dense products, by the makers' data sheets: bfloat16, TF32, float32. First match counts.
PEAKS = {
    "H100 PCIe": (756e12, 378e12, 51.2e12),
    "H100 NVL": (835e12, 417.5e12, 60e12),
    "H200 NVL": (835e12, 417.5e12, 60e12),
    "H100": (989e12, 494.5e12, 66.9e12),
    "H200": (989e12, 494.5e12, 66.9e12),
    "A100": (312e12, 156e12, 19.5e12),
}
TRAINING_PASSES = 3  # the backward pass counts twice; what is computed again doesn't count


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The costs are of one image, by task, and empty where nobody knows them."""

    config: str = ""  # the config.json of the model's folder
    forward_flops: Mapping[str, int] = field(default_factory=dict)
    activation_bytes: Mapping[str, int] = field(default_factory=dict)  # kept for the backward pass

    def training_flops(self, samples: Mapping[str, int]) -> float | None:
        """Of forward and backward passes of so many images of each task; None if unknown."""
        if not samples.keys() <= self.forward_flops.keys():
            return None
        forward = sum(self.forward_flops[task] * count for task, count in samples.items())
        return float(TRAINING_PASSES * forward)

    def bytes_per_sample(self, tasks: Collection[str], *, at_once: int) -> float | None:
        """Of a micro-batch that holds equal parts of `at_once` of the tasks, the largest ones."""
        if not set(tasks) <= self.activation_bytes.keys():
            return None
        largest = sorted(self.activation_bytes[task] for task in tasks)[-at_once:]
        return sum(largest) / len(largest)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def peak_flops(device: str, precision: Precision, *, tf32: bool = False) -> float | None:
    """FLOP/s that a device of that name can do at most; None where no data sheet is known here."""
    for name, (bfloat16, with_tf32, float32) in PEAKS.items():
        if name in device:
            full = with_tf32 if tf32 else float32
            return bfloat16 if precision == "bfloat16" else full
    return None


def what_runs(engine: str, place: Place, device: torch.device, precision: Precision) -> str:
    """One line for the log: how a batch is shared out, and of what utilisation is counted."""
    name = device_name(device)
    peak = peak_flops(name, precision)
    utilisation = f"MFU is of {peak / 1e12:.0f} TFLOP/s" if peak else "its peak is not known here"
    processes = f"{place.world_size} process{'es' * (place.world_size > 1)}"
    return (
        f"{engine}: {processes} × {place.accumulation} micro-batches × {place.micro_batch} samples "
        f"in {precision} on {name}, {utilisation}"
    )
