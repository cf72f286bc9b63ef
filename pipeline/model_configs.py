"""What a model is made of, without torch, so that a plan can be costed on a login node."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class IPTSize:
    """The shape of the shared transformer; the defaults are the paper's."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    features: Count = 64  # channels between head, body and tail
    encoder_layers: Count = 12
    decoder_layers: Count = 12
    attention_heads: Count = 12
    patch_size: Count = 48  # pixels per side of the model's input
    token_size: Count = 3  # pixels per side of the feature patch that becomes a token
    mlp_ratio: Count = 4  # hidden width of the feed-forward layers, in embedding widths

    @property
    def embedding(self) -> int:
        return self.features * self.token_size**2

    @property
    def tokens(self) -> int:
        return (self.patch_size // self.token_size) ** 2


@dataclass(frozen=True, kw_only=True)
class IPTConfig:
    """One IPT: its size, and per task name the scale of its tail, in order."""

    size: IPTSize = field(default_factory=IPTSize)
    scales: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DnCNNConfig:
    """DnCNN (Zhang et al., TIP 2017): depth 17 for one noise level, 20 for blind denoising."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: Annotated[int, Field(ge=3)] = 17
    features: Count = 64
    channels: Count = 3
