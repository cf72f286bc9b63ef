"""The Image Processing Transformer (Chen et al., CVPR 2021, arXiv 2012.00364).

One head, one tail and one query per task around a shared transformer body.
"""
# N batch, H W height and width, P patch size, s scale, F features, L tokens, D embedding

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.model_configs import COLOURS, IPTConfig, IPTSize, Precision, upsampling
from pipeline.models.blocks import Head, Tail, computing_in
from pipeline.models.cards import IPT_CARD
from pipeline.models.hub import HubModel
from pipeline.models.transformer import Body

GREY_LEVELS = 255
# The mean colour of DIV2K, which the published models subtract whatever they train on.
MEAN = (0.4488, 0.4371, 0.4040)
BODY_GROUP = "body"


class IPT(HubModel, config_class=IPTConfig, card=IPT_CARD):
    """Restores patches of exactly `config.size.patch_size` pixels; larger images are tiled."""

    config: IPTConfig

    def __init__(
        self,
        config: IPTConfig,
        *,
        precision: Precision = "float32",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_buildable(config)
        size, tasks = config.size, tuple(config.scales)
        self.config = config
        self.precision: Precision = precision  # of the products; parameters stay float32
        # The body's layers are computed again in the backward pass, instead of kept for it.
        self.activation_checkpointing = activation_checkpointing
        self.heads = nn.ModuleDict({task: Head(size.features) for task in tasks})
        self.body = Body(size, tasks)
        self.tails = nn.ModuleDict(
            {task: Tail(size.features, scale) for task, scale in config.scales.items()}
        )
        mean = torch.tensor(MEAN).view(1, COLOURS, 1, 1) * GREY_LEVELS
        self.register_buffer("mean", mean, persistent=False)
        self.mean: Tensor

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.config.scales)

    def forward(self, x: Tensor, task: str) -> Tensor:
        """Restore (N, 3, P, P) to (N, 3, sP, sP), both in [0, 1]; the result is not clamped."""
        restored, _ = self.forward_tasks({task: x})[task]
        return restored

    def forward_tasks(self, images: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Restore images of several tasks in one pass of the body.

        Per task, `images` are (N, 3, P, P) in [0, 1]; the results are the restored images and the
        body's tokens (N, L, D), which the contrastive loss compares.
        """
        if not images:
            raise ValueError("no images: give those of at least one task")
        for task, x in images.items():
            self._check(task, x)
        counts = {task: len(x) for task, x in images.items()}
        device = self.mean.device
        keeps_inputs_only = (
            self.activation_checkpointing and self.training and torch.is_grad_enabled()
        )
        with computing_in(self.precision, device):
            features = torch.cat(
                [self.heads[task](x * GREY_LEVELS - self.mean) for task, x in images.items()]
            )
            tokens = self.body(
                tokens_of(features, self.config.size.token_size),
                counts,
                activation_checkpointing=keeps_inputs_only,
            )
        # The long skip is summed in the parameters' precision, whatever the body computed in.
        mixed = features.to(self.mean.dtype) + features_of(tokens, self.config.size)
        del features  # where no gradient needs them, the tails need their memory
        slices = zip(
            counts,
            mixed.split(list(counts.values())),
            tokens.split(list(counts.values())),
            strict=True,
        )
        return {
            task: ((self.tails[task](x, self.precision) + self.mean) / GREY_LEVELS, of_task)
            for task, x, of_task in slices
        }

    def compile_parts(self, *, backend: str = "inductor") -> None:
        """The layers of the body alone: equal in kind, each kind is compiled once for all tasks."""
        for layer in [*self.body.encoder, *self.body.decoder]:
            layer.compile(dynamic=False, backend=backend)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The shared parameters under "body", and each task's head, tail and query under its name.

        A step on some tasks moves their groups and the body; the other groups must not move.
        """
        queries = set(self.body.queries.parameters())
        shared = [each for each in self.body.parameters() if each not in queries]
        groups = {BODY_GROUP: shared}
        for task in self.tasks:
            groups[task] = [
                *self.heads[task].parameters(),
                *self.tails[task].parameters(),
                self.body.queries.get_parameter(task),
            ]
        return groups

    def task_subset(self, tasks: Sequence[str]) -> "IPT":
        """A new model for some of the tasks, with this model's weights copied."""
        for task in tasks:
            self._check_task(task)
        config = IPTConfig(
            size=self.config.size, scales={task: self.config.scales[task] for task in tasks}
        )
        subset = IPT(
            config,
            precision=self.precision,
            activation_checkpointing=self.activation_checkpointing,
        ).to(self.mean)
        weights = self.state_dict()
        subset.load_state_dict({name: weights[name] for name in subset.state_dict()})
        return subset.train(self.training)

    def _check_task(self, task: str) -> None:
        if task not in self.config.scales:
            raise ValueError(f"task {task!r}: this model has {', '.join(self.tasks)}")

    def _check(self, task: str, x: Tensor) -> None:
        self._check_task(task)
        side = self.config.size.patch_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (COLOURS, side, side):
            raise ValueError(
                f"{task}: images of shape {tuple(x.shape)}; this model restores (N, {COLOURS}, "
                f"{side}, {side}), and pipeline.restore tiles other sizes"
            )
        if not x.is_floating_point():
            raise ValueError(f"{task}: images of {x.dtype}; this model takes floats in [0, 1]")


def tokens_of(features: Tensor, token_size: int) -> Tensor:
    """Cut (N, F, H, W) into tokens (N, L, D): row by row, each ordered (feature, row, column)."""
    count, channels, height, width = features.shape
    t = token_size
    cut = features.reshape(count, channels, height // t, t, width // t, t)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * t * t)


def features_of(tokens: Tensor, size: IPTSize) -> Tensor:
    """The inverse of `tokens_of`: (N, L, D) to (N, F, P, P)."""
    t, side = size.token_size, size.patch_size
    cut = tokens.reshape(len(tokens), side // t, side // t, size.features, t, t)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), size.features, side, side)


def check_buildable(config: IPTConfig) -> None:
    """Raise ValueError for a config that no IPT can have."""
    config.size.check()
    if not config.scales:
        raise ValueError("scales: an IPT needs at least one task")
    if BODY_GROUP in config.scales:
        raise ValueError(f"scales: a task can't be named {BODY_GROUP!r}")
    for task, scale in config.scales.items():
        upsampling(scale)
        if not task.isidentifier() or hasattr(nn.ModuleDict(), task):
            raise ValueError(
                f"scales: {task!r} can't name a task; use letters, digits and _, "
                "and no attribute of torch's modules"
            )
