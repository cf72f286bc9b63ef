import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import saved_bytes_per_patch
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize, Precision
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.tasks import PUBLISHED_ORDER, TASKS

SCALES = {task: TASKS[task].scale for task in PUBLISHED_ORDER}
SMALL = IPTSize(features=8, encoder_layers=2, decoder_layers=1, attention_heads=4)


@pytest.mark.parametrize(
    ("tasks", "published"),
    [
        (PUBLISHED_ORDER, 118_892_394),
        (("sr2",), 115_460_443),
        (("sr3",), 115_645_083),
        (("sr4",), 115_608_155),
        (("derain",), 115_312_731),
        (("denoise50",), 115_312_731),
    ],
)
def test_parameters_are_the_published_ones(tasks: tuple[str, ...], published: int) -> None:
    config = IPTConfig(scales={task: SCALES[task] for task in tasks})
    with torch.device("meta"):
        model = IPT(config)

    assert config.published_parameters == published
    assert sum(each.numel() for each in model.parameters()) == config.parameters == published - 24


def test_parameters_of_parts_are_the_published_ones() -> None:
    config = IPTConfig(scales=SCALES)

    assert config.size.head_parameters == 411_648
    assert [config.size.tail_parameters(s) for s in (1, 2, 3, 4)] == [
        1_731,
        149_443,
        334_083,
        297_155,
    ]
    assert config.size.shared_parameters + 6 * config.size.query_parameters == 115_636_608
    assert config.size.shared_parameters + config.size.query_parameters == 114_899_328


def test_flops_are_the_published_ones() -> None:
    config = IPTConfig(scales=SCALES)

    assert config.flops("sr2").head == 2 * 947_699_712
    assert config.flops("sr2").body == 2 * 32_020_365_312
    mean_shifts = 2 * 9 * (48**2 + 96**2)  # 1×1 convolutions there, sums here
    assert config.flops("sr2").total + mean_shifts == 2 * 33_323_832_576
    assert [round(config.flops(task).total / 1e9, 2) for task in PUBLISHED_ORDER[:4]] == [
        66.65,
        67.54,
        69.46,
        65.94,
    ]


@pytest.mark.parametrize("size", [IPTSize(), SMALL], ids=["paper", "small"])
def test_flops_equal_torchs_counter(size: IPTSize) -> None:
    config = IPTConfig(size=size, scales=SCALES)
    with torch.device("meta"):
        model = IPT(config)
        image = torch.empty(1, 3, size.patch_size, size.patch_size)

    for task in ("sr2", "sr3", "sr4", "derain"):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(image, task)
        parts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
        flops = config.flops(task)
        assert parts[f"IPT.heads.{task}"] == flops.head
        assert parts["IPT.body"] == flops.body
        assert parts[f"IPT.tails.{task}"] == flops.tail
        assert counter.get_total_flops() == flops.total


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["sr2", "sr3", "sr4", "derain"])
def test_activation_bytes_are_what_autograd_saves(precision: Precision, task: str) -> None:
    config = IPTConfig(size=SMALL, scales=SCALES)
    model = IPT(config, precision=precision)

    saved = saved_bytes_per_patch(model, lambda x: model(x, task), SMALL.patch_size)

    assert saved == config.activation_bytes(task, precision=precision)


def test_full_size_fits_the_memory_that_was_measured() -> None:
    config = IPTConfig(scales=SCALES)

    assert config.activation_bytes("sr2") < 220 * 2**20
    assert config.activation_bytes("sr4") < 240 * 2**20
    assert config.activation_bytes("sr4", precision="bfloat16") < 0.7 * config.activation_bytes(
        "sr4"
    )


@pytest.mark.parametrize(
    ("depth", "channels", "trained", "folded"),
    # Folded: those of the published merged models, S and B in grey, B in colour.
    [(17, 1, 556_096, 555_137), (20, 1, 667_072, 665_921), (20, 3, 669_376, 668_227)],
)
def test_dncnn_parameters(depth: int, channels: int, trained: int, folded: int) -> None:
    for batch_norm, published in ((True, trained), (False, folded)):
        config = DnCNNConfig(depth=depth, channels=channels, batch_norm=batch_norm)

        parameters = sum(each.numel() for each in DnCNN(config).parameters())

        assert parameters == config.parameters == published


def test_dncnn_with_a_bias_everywhere_has_the_parameters_of_kairs() -> None:
    config = DnCNNConfig(depth=17, channels=3)

    assert config.parameters + 15 * config.features + config.channels == 559_363


def test_dncnn_flops_equal_torchs_counter() -> None:
    config = DnCNNConfig(depth=5, features=8, channels=1)

    with FlopCounterMode(display=False) as counter:
        DnCNN(config)(torch.zeros(1, 1, 20, 30))

    assert counter.get_total_flops() == config.flops(height=20, width=30)


def test_a_tail_of_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale 5: a tail upsamples by 1, 2, 3 or 4"):
        IPTSize().tail_flops(5)


def test_costs_are_known_without_torch() -> None:
    code = (
        "import sys; from pipeline.model_configs import IPTConfig; "
        "IPTConfig(scales={'sr2': 2}).flops('sr2'); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
