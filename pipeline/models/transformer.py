"""IPT's body (arXiv 2012.00364, section 3.1), as the published models compute it.

It differs from `nn.Transformer`: no biases in the attention projections, no normalisation after
the last layer, and cross-attention that reads the encoder's result as it is.
"""
# N batch, L tokens, D embedding, T tasks

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model_configs import IPTSize


class Attention(nn.Module):
    """Multi-head attention without biases; queries, keys and values are (N, L, D)."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Rows: query, key, value. One table, so that what shares an input shares a product.
        self.projection = nn.Parameter(torch.empty(3 * embedding, embedding))
        self.output = nn.Linear(embedding, embedding, bias=False)
        nn.init.kaiming_uniform_(self.projection, a=5**0.5)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None
    ) -> Tensor:
        """Keys are made of `query`, or of `key`; values of what keys are, or of `value`.

        The caller leaves out what is one tensor with another: under ZeRO-3 `is` would not find it.
        """
        width = self.projection.shape[1]
        if key is not None:
            assert value is None, "values come from the keys' tensor or from one of their own"
            q = F.linear(query, self.projection[:width])
            k, v = F.linear(key, self.projection[width:]).chunk(2, dim=-1)
        elif value is not None:
            q, k = F.linear(query, self.projection[: 2 * width]).chunk(2, dim=-1)
            v = F.linear(value, self.projection[2 * width :])
        else:
            q, k, v = F.linear(query, self.projection).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, L, D / heads)


class FeedForward(nn.Module):
    def __init__(self, embedding: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(embedding, hidden)
        self.contract = nn.Linear(hidden, embedding)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.relu(self.expand(x)))


class EncoderLayer(nn.Module):
    def __init__(self, size: IPTSize) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.embedding)
        self.attention = Attention(size.embedding, size.attention_heads)
        self.feed_forward_norm = nn.LayerNorm(size.embedding)
        self.feed_forward = FeedForward(size.embedding, size.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.attention(y)
        return x + self.feed_forward(self.feed_forward_norm(x))


class DecoderLayer(nn.Module):
    def __init__(self, size: IPTSize) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(size.embedding)
        self.self_attention = Attention(size.embedding, size.attention_heads)
        self.cross_attention_norm = nn.LayerNorm(size.embedding)
        self.cross_attention = Attention(size.embedding, size.attention_heads)
        self.feed_forward_norm = nn.LayerNorm(size.embedding)
        self.feed_forward = FeedForward(size.embedding, size.hidden)

    def forward(self, x: Tensor, memory: Tensor, query: Tensor) -> Tensor:
        """`query` is the task's, (N, L, D) or (1, L, D)."""
        y = self.self_attention_norm(x)
        with_task = y + query
        x = x + self.self_attention(with_task, None, y)
        # Differs from the paper: keys and values are the raw memory, as in the published models.
        x = x + self.cross_attention(self.cross_attention_norm(x) + query, memory)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TaskQueries(nn.Module):
    """One table (L, D) per task, that tells the decoder what to restore.

    Differs from the paper, whose query is one vector for all positions.
    """

    def __init__(self, size: IPTSize, tasks: tuple[str, ...]) -> None:
        super().__init__()
        for task in tasks:
            table = torch.empty(size.tokens, size.embedding)
            self.register_parameter(task, nn.Parameter(nn.init.normal_(table)))

    def forward(self, counts: Mapping[str, int]) -> Tensor:
        """The query of every sample, (N, L, D); (1, L, D) where all samples share one.

        A copy, never the parameter itself: ZeRO-3 frees a parameter when the module that holds
        it returns.
        """
        shared = len(counts) == 1
        return torch.cat(
            [
                self.get_parameter(task).expand(1 if shared else count, -1, -1)
                for task, count in counts.items()
            ]
        )


class Body(nn.Module):
    """Tokens to tokens, (N, L, D): linear encoding, encoder, decoder with queries, mlp head."""

    def __init__(self, size: IPTSize, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.linear_encoding = nn.Linear(size.embedding, size.embedding)
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(size.tokens, size.embedding)))
        self.queries = TaskQueries(size, tasks)
        self.encoder = nn.ModuleList(EncoderLayer(size) for _ in range(size.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(size) for _ in range(size.decoder_layers))
        self.mlp_head = FeedForward(size.embedding, size.hidden)

    def forward(
        self, tokens: Tensor, counts: Mapping[str, int], *, activation_checkpointing: bool = False
    ) -> Tensor:
        """`counts`: how many samples of each task stand in the batch, in this order.

        With `activation_checkpointing` a layer keeps only its inputs for the backward pass, which
        computes the rest again: less memory, the same gradients.
        """
        run = _run_checkpointed if activation_checkpointing else _run
        query = self.queries(counts)
        x = self.linear_encoding(tokens) + tokens
        # The float32 table keeps the sum, and so every residual below, in float32 under autocast.
        x = x + self.positions
        for layer in self.encoder:
            x = run(layer, x)
        memory = x
        for layer in self.decoder:
            x = run(layer, x, memory, query)
        return self.mlp_head(x) + x


def _run(layer: nn.Module, *inputs: Tensor) -> Tensor:
    output: Tensor = layer(*inputs)
    return output


def _run_checkpointed(layer: nn.Module, *inputs: Tensor) -> Tensor:
    # Nothing in a layer is random.
    output: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output
