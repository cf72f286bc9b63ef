"""A tiny IPT of four tasks, and images for it."""

import torch
from torch import Tensor

from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.ipt import IPT

SIZE = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=12)
# Not in alphabetical order, which files sorted by key would bring them into.
CONFIG = IPTConfig(size=SIZE, scales={"sr3": 3, "sr2": 2, "denoise50": 1, "denoise30": 1})


def small_ipt() -> IPT:
    torch.manual_seed(0)
    return IPT(CONFIG)


def patches(count: int) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))
