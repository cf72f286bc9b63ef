"""DnCNN (Zhang et al., TIP 2017): a plain convolutional denoiser that predicts the noise."""
# N batch, C channels, H W height and width

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.model_configs import DnCNNConfig, Precision
from pipeline.models.blocks import computing_in
from pipeline.models.cards import DNCNN_CARD
from pipeline.models.hub import HubModel

# Differs from the author's PyTorch code: its momentum of 0.95 is MatConvNet's meaning of the word
# and would make the running statistics those of one batch.
MOMENTUM = 0.1
EPSILON = 1e-4
# KAIR's gain. With 1, the first prediction is six times the noise, and training loses hundreds of
# steps to shrinking it.
GAIN = 0.2


class DnCNN(HubModel, config_class=DnCNNConfig, card=DNCNN_CARD):
    """Restores images of any size.

    Where there is batch normalisation, only the first convolution has a bias: the inner ones are
    shifted by it, and the predicted noise has mean zero. Folded, every convolution has one.
    """

    config: DnCNNConfig

    def __init__(self, config: DnCNNConfig, *, precision: Precision = "float32") -> None:
        super().__init__()
        self.config = config
        self.precision: Precision = precision
        features = config.features
        is_folded = not config.batch_norm
        self.first = nn.Conv2d(config.channels, features, 3, padding=1)
        self.inner = nn.ModuleList(
            nn.Conv2d(features, features, 3, padding=1, bias=is_folded)
            for _ in range(config.depth - 2)
        )
        self.norms = nn.ModuleList(
            nn.Identity() if is_folded else nn.BatchNorm2d(features, eps=EPSILON, momentum=MOMENTUM)
            for _ in range(config.depth - 2)
        )
        self.last = nn.Conv2d(features, config.channels, 3, padding=1, bias=is_folded)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, gain=GAIN)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Restore (N, C, H, W) in [0, 1]; the result is not clamped."""
        channels = self.config.channels
        if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(
                f"images of shape {tuple(x.shape)}, {x.dtype}; this model restores "
                f"(N, {channels}, H, W) of floats in [0, 1]"
            )
        with computing_in(self.precision, x.device):
            y = F.relu(self.first(x))
            for convolution, norm in zip(self.inner, self.norms, strict=True):
                y = F.relu(norm(convolution(y)))
        with computing_in("float32", x.device):
            return x - self.last(y.to(x.dtype))


def fold_batch_norm(model: DnCNN) -> DnCNN:
    """The model without batch normalisation that gives what `model` gives in evaluation mode.

    A folded model is returned as it is.
    """
    if not model.config.batch_norm:
        return model
    state = {name: each.cpu().double() for name, each in model.state_dict().items()}
    folded = {name: each for name, each in state.items() if not name.startswith("norms.")}
    folded["last.bias"] = torch.zeros(model.config.channels)
    for i in range(model.config.depth - 2):
        folded[f"inner.{i}.weight"], folded[f"inner.{i}.bias"] = fuse_conv_bn_weights(
            state[f"inner.{i}.weight"],
            None,
            state[f"norms.{i}.running_mean"],
            state[f"norms.{i}.running_var"],
            EPSILON,
            state[f"norms.{i}.weight"],
            state[f"norms.{i}.bias"],
        )
    result = DnCNN(replace(model.config, batch_norm=False), precision=model.precision)
    result.to(model.first.weight).load_state_dict(folded)
    return result.eval()
