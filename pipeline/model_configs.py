"""What a model is made of and what it costs, without torch: a plan is made on a login node.

A multiply-add counts as two FLOPs, as `torch.utils.flop_counter` counts them; biases, activations
and normalisation are left out.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=1)]

COLOURS = 3
Precision = Literal["float32", "bfloat16"]
PRODUCT_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
# The published models also count their two frozen mean shifts: 3×3 weights and 3 biases each.
PUBLISHED_MEAN_SHIFT_PARAMETERS = 24


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """FLOPs of the parts that an image passes."""

    head: int
    body: int
    tail: int

    @property
    def total(self) -> int:
        return self.head + self.body + self.tail


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

    def check(self) -> None:
        """Raise ValueError, the field's name first, for a size that no IPT can have."""
        if self.patch_size % self.token_size:
            raise ValueError(
                f"token_size: {self.token_size} does not divide patch_size {self.patch_size}"
            )
        if self.embedding % self.attention_heads:
            raise ValueError(
                f"attention_heads: {self.attention_heads} does not divide the embedding of "
                f"{self.embedding} (features × token_size²)"
            )

    @property
    def embedding(self) -> int:
        return self.features * self.token_size**2

    @property
    def tokens(self) -> int:
        return (self.patch_size // self.token_size) ** 2

    @property
    def hidden(self) -> int:
        return self.mlp_ratio * self.embedding

    @property
    def head_parameters(self) -> int:
        first = _convolution(COLOURS, self.features, 3)
        return first + 4 * _convolution(self.features, self.features, 5)  # two residual blocks

    def tail_parameters(self, scale: int) -> int:
        last = _convolution(self.features, COLOURS, 3)
        return last + sum(
            _convolution(self.features, self.features * step**2, 3) for step in upsampling(scale)
        )

    @property
    def query_parameters(self) -> int:
        return self.tokens * self.embedding

    @property
    def shared_parameters(self) -> int:
        """Of the body without its queries."""
        width = self.embedding
        attention = 4 * width**2  # query, key, value and output; no biases
        feed_forward = 2 * width * self.hidden + self.hidden + width
        normalisation = 2 * width
        return (
            width**2  # linear encoding
            + width
            + self.tokens * width  # position table
            + self.encoder_layers * (attention + feed_forward + 2 * normalisation)
            + self.decoder_layers * (2 * attention + feed_forward + 3 * normalisation)
            + feed_forward  # mlp head
        )

    @property
    def head_flops(self) -> int:
        weights = 9 * COLOURS * self.features + 4 * 25 * self.features**2
        return 2 * self.patch_size**2 * weights

    @property
    def body_flops(self) -> int:
        width = self.embedding
        projections = 4 * width**2
        products = 2 * self.tokens * width  # query by key, attention by value; per query token
        feed_forward = 2 * width * self.hidden
        per_token = (
            width**2
            + self.encoder_layers * (projections + products + feed_forward)
            + self.decoder_layers * (2 * (projections + products) + feed_forward)
            + feed_forward
        )
        return 2 * self.tokens * per_token

    def tail_flops(self, scale: int) -> int:
        multiply_adds, side = 0, self.patch_size
        for step in upsampling(scale):
            multiply_adds += side**2 * 9 * self.features**2 * step**2
            side *= step
        return 2 * (multiply_adds + side**2 * 9 * self.features * COLOURS)


@dataclass(frozen=True, kw_only=True)
class IPTConfig:
    """One IPT: its size, and per task name the scale of its tail, in order."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: IPTSize = field(default_factory=IPTSize)
    scales: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Everything that trains, of all tasks."""
        size = self.size
        per_task = size.head_parameters + size.query_parameters
        tails = sum(size.tail_parameters(scale) for scale in self.scales.values())
        return size.shared_parameters + per_task * len(self.scales) + tails

    @property
    def published_parameters(self) -> int:
        """As the official models count: with the frozen mean shifts, which hold no parameters
        here; without the integer buffer of positions."""
        return self.parameters + PUBLISHED_MEAN_SHIFT_PARAMETERS

    def flops(self, task: str) -> PartCost:
        """Of the forward pass of one image.

        The published sum is slightly higher: its mean shifts are 1×1 convolutions.
        """
        size = self.size
        return PartCost(
            head=size.head_flops, body=size.body_flops, tail=size.tail_flops(self.scales[task])
        )

    def activation_bytes(self, task: str, *, precision: Precision = "float32") -> int:
        """What the forward pass of one image saves for the backward pass.

        Without activation checkpointing, with attention that keeps no table of probabilities.
        """
        size = self.size
        encoder, decoder = size.encoder_layers, size.decoder_layers
        normalised = 2 * encoder + 3 * decoder  # inputs of normalisation, always float32
        attention = 4  # query, key, value and result
        inputs = 2  # of the attention and of the feed-forward products
        # A decoder layer's queries and keys come from another tensor than its values; under
        # autocast it keeps its own cast of the encoder's result.
        decoder_inputs = 4 if precision == "float32" else 5
        products = (
            encoder * (inputs + attention + size.mlp_ratio)
            + decoder * (decoder_inputs + 2 * attention + size.mlp_ratio)
            + 2  # linear encoding, mlp head
            + size.mlp_ratio
        )
        log_sums = size.attention_heads * (encoder + 2 * decoder)
        full = size.tokens * (normalised * size.embedding + 2 * normalised + log_sums)
        reduced = size.tokens * products * size.embedding
        reduced += size.patch_size**2 * (COLOURS + 4 * size.features)  # head
        side = size.patch_size
        for step in upsampling(self.scales[task]):
            reduced += side**2 * size.features
            side *= step
        full += side**2 * size.features  # the last convolution's input
        return PRODUCT_BYTES["float32"] * full + PRODUCT_BYTES[precision] * reduced


@dataclass(frozen=True, kw_only=True)
class DnCNNConfig:
    """DnCNN (Zhang et al., TIP 2017): depth 17 for one noise level, 20 for blind denoising."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    depth: Annotated[int, Field(ge=3)] = 17
    features: Count = 64
    channels: Count = 3
    # Without: what batch normalisation folds into, and the form of the published models. Every
    # convolution has a bias.
    batch_norm: bool = True

    @property
    def parameters(self) -> int:
        """With batch normalisation the inner convolutions have no bias, as it shifts them, nor has
        the last, as it predicts noise, whose mean is zero."""
        ends = 2 * 9 * self.channels * self.features + self.features
        inner = 9 * self.features**2
        if self.batch_norm:
            return ends + (self.depth - 2) * (inner + 2 * self.features)
        return ends + self.channels + (self.depth - 2) * (inner + self.features)

    def flops(self, *, height: int, width: int) -> int:
        """Of the forward pass of one image."""
        weights = 9 * (2 * self.channels * self.features + (self.depth - 2) * self.features**2)
        return 2 * height * width * weights


def upsampling(scale: int) -> tuple[int, ...]:
    """The steps by which a tail reaches `scale`: one of 2 or 3, or two of 2."""
    steps: dict[int, tuple[int, ...]] = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}
    if scale not in steps:
        raise ValueError(f"scale {scale}: a tail upsamples by 1, 2, 3 or 4")
    return steps[scale]


def _convolution(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a square convolution with a bias."""
    return kernel**2 * inputs * outputs + outputs
