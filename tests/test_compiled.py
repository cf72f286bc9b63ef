"""torch.compile makes the same model: names, weights, gradients."""

from pathlib import Path

import pytest
import torch
from demo_run import Run

from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.hub import HubModel
from pipeline.models.ipt import IPT

TASKS = {"sr2": 2, "denoise30": 1}


def ipt(*, activation_checkpointing: bool = False) -> IPT:
    torch.manual_seed(0)
    size = IPTSize(features=4, encoder_layers=2, decoder_layers=2, attention_heads=4, patch_size=12)
    config = IPTConfig(size=size, scales=TASKS)
    return IPT(config, activation_checkpointing=activation_checkpointing)


def gradients(model: HubModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.rand(6, 3, 12, 12)
    if isinstance(model, IPT):
        results = model.forward_tasks({"sr2": x[:4], "denoise30": x[4:]})
        loss = sum(restored.square().mean() for restored, _ in results.values())
    else:
        loss = model(x).square().mean()
    loss.backward()
    return {name: each.grad for name, each in model.named_parameters()}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.slow  # a compiler of C++ is at work
@pytest.mark.parametrize("kind", ["ipt", "ipt, activation checkpointing", "dncnn"])
def test_compiled_parts_give_the_same_gradients_under_the_same_names(kind: str) -> None:
    def built() -> HubModel:
        if kind == "dncnn":
            torch.manual_seed(0)
            return DnCNN(DnCNNConfig(depth=4, features=8))
        return ipt(activation_checkpointing=kind != "ipt").train()

    plain, compiled = built(), built()
    compiled.compile_parts()

    expected, found = gradients(plain), gradients(compiled)

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # something was compiled
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_steps_of_all_tasks_share_what_was_compiled() -> None:
    model = ipt()
    model.compile_parts(backend="eager")
    graphs = []

    for task in TASKS:
        model(torch.rand(6, 3, 12, 12), task).mean().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    # An encoder layer's and a decoder layer's; the first of these gets one tensor twice.
    assert graphs == [3, 3]


@pytest.mark.slow
def test_a_run_that_compiles_ends_with_nearly_the_same_weights(finished, tmp_path: Path) -> None:
    run = Run(tmp_path)

    run("run", "--until", "pretrain", "--set", "runtime.compile=true")

    trained, reference = run.weights("pretrain"), finished.weights("pretrain")
    assert trained.keys() == reference.keys()
    assert all(abs(trained[name] - reference[name]).max() < 1e-4 for name in reference)
