"""Networks laid out as the published DnCNNs are, small, and the check of what is read from them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.model_configs import DnCNNConfig
from pipeline.models.published_dncnn import read_published_dncnn

FEATURES = 5


def published_network(
    *, channels: int = 1, depth: int = 5, norm: float | None = None, bias: str = "all"
) -> nn.Sequential:
    """The layers of a published model, in its order; `norm` is the ε, `bias` who has one."""
    layers: list[nn.Module] = []
    for i in range(depth):
        inputs = channels if i == 0 else FEATURES
        outputs = channels if i == depth - 1 else FEATURES
        has_bias = bias == "all" or (bias == "first" and i == 0)
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=has_bias))
        if norm is not None and 0 < i < depth - 1:
            layers.append(nn.BatchNorm2d(outputs, eps=norm))
        if i < depth - 1:
            layers.append(nn.ReLU())
    network = nn.Sequential(*layers)
    for name, each in network.state_dict().items():
        if each.is_floating_point():
            # Variances as small as the ε, or a wrong one would not be seen.
            low, high = (1e-5, 3e-5) if name.endswith("running_var") else (-0.3, 0.3)
            each.uniform_(low, high)
    return network.eval()


def named_state(network: nn.Sequential, prefix: str) -> dict[str, Tensor]:
    """The state dict as files of torch 0.3 hold it: without counters."""
    state = network.state_dict()
    return {prefix + name: each for name, each in state.items() if "num_batches" not in name}


def check_model(path: Path, network: nn.Sequential, sign: int = -1) -> None:
    """That the file's model is the image plus `sign` times what the network gives of it."""
    torch.manual_seed(1)
    first = network[0]
    assert isinstance(first, nn.Conv2d)
    x = torch.rand(2, first.in_channels, 9, 12, dtype=torch.float64)

    model = read_published_dncnn(path)

    assert not model.training
    convolutions = [each for each in network if isinstance(each, nn.Conv2d)]
    assert model.config == DnCNNConfig(
        depth=len(convolutions), features=FEATURES, channels=first.in_channels, batch_norm=False
    )
    with torch.no_grad():
        expected = x + sign * network.double()(x)
        # The model's weights are float32, rounded after folding.
        torch.testing.assert_close(model.double()(x), expected, rtol=1e-4, atol=1e-4)
