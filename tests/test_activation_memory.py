"""What a forward pass keeps for the backward pass, and what checkpointing leaves of it."""

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from demo_run import Run
from ipt_samples import patches, small_ipt
from safetensors.numpy import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.measuring import MEBIBYTE, saved_bytes, saved_bytes_per_patch
from launch.stage import resolve_with_inputs
from pipeline.config_file import load_config
from pipeline.graph import Job
from pipeline.model_configs import IPTConfig, Precision
from pipeline.models.ipt import IPT
from pipeline.models.transformer import DecoderLayer
from stages.recipe import build_graph


@pytest.fixture(scope="module")
def full_size() -> IPT:
    return IPT(IPTConfig(scales={"sr2": 2, "sr4": 4}))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "limit"), [("sr2", 220), ("sr4", 240)])
def test_full_size_patch_fits_the_memory_that_is_promised(
    full_size: IPT, task: str, limit: int
) -> None:
    def saved() -> float:
        x = torch.zeros(1, 3, 48, 48)
        return saved_bytes(lambda: full_size(x, task), full_size.parameters()) / MEBIBYTE

    full_size.activation_checkpointing = False
    assert saved() < limit
    full_size.activation_checkpointing = True
    assert saved() < 60


@pytest.mark.slow
def test_full_size_patch_takes_less_in_bfloat16(full_size: IPT) -> None:
    full_size.activation_checkpointing = False
    taken = {}
    for precision in get_args(Precision):
        full_size.precision = precision
        taken[precision] = saved_bytes_per_patch(full_size, lambda x: full_size(x, "sr4"), 48)
    full_size.precision = "float32"

    assert taken["float32"] == full_size.config.activation_bytes("sr4")
    assert taken["bfloat16"] <= 0.7 * taken["float32"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_gives_the_same_gradients(precision: Precision) -> None:
    found = []
    for checkpoints in (False, True):
        model = small_ipt()
        model.precision, model.activation_checkpointing = precision, checkpoints
        images = {"sr2": patches(2).requires_grad_(), "denoise50": patches(3)}
        results = model.forward_tasks(images)
        loss = torch.stack([part.abs().mean() for pair in results.values() for part in pair]).sum()
        loss.backward()
        idle = {*model.heads["sr3"].parameters(), *model.tails["sr3"].parameters()}
        assert all(each.grad is None for each in idle)
        found.append([images["sr2"].grad, *(each.grad for each in model.parameters())])

    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or one.equal(other)


def test_checkpointing_is_for_training_with_gradients_only() -> None:
    model = small_ipt()

    def saved() -> int:
        return saved_bytes(lambda: model(patches(2), "sr2"), model.parameters())

    whole = saved()
    model.activation_checkpointing = True
    assert saved() < 0.7 * whole
    with torch.no_grad():
        assert saved() == 0
    assert model.eval()(patches(2), "sr2").requires_grad
    assert saved() == whole


def test_subset_keeps_checkpointing() -> None:
    model = small_ipt()
    model.activation_checkpointing = True

    assert model.task_subset(("sr2",)).activation_checkpointing


@pytest.mark.parametrize(
    "stage_name", [pytest.param("pretrain", marks=pytest.mark.slow), "finetune-sr2"]
)
def test_training_with_checkpointing_gives_the_same_weights(
    finished: Run, tmp_path: Path, stage_name: str
) -> None:
    config = load_config(
        finished.config,
        (f"runtime.runs={finished.folder.parent}", "runtime.activation_checkpointing=true"),
    )
    graph = build_graph(config)
    resolved, inputs = resolve_with_inputs(graph, graph.stage(stage_name), finished.folder)
    assert resolved.state == "done"  # the runtime changes no fingerprint
    assert resolved.fingerprint is not None
    job = Job(
        config=resolved.stage.config,
        fingerprint=resolved.fingerprint,
        folder=tmp_path,
        inputs=inputs,
        runtime=config.runtime,
    )
    passes = 0

    def count(module: nn.Module, _: object) -> None:
        nonlocal passes
        passes += isinstance(module, DecoderLayer) and torch.is_grad_enabled()

    threads = torch.get_num_threads()
    torch.set_num_threads(config.runtime.threads_per_process)
    counting = register_module_forward_pre_hook(count)
    try:
        resolved.stage.run(job)
    finally:
        counting.remove()
        torch.set_num_threads(threads)

    assert passes == 2 * 6  # steps, each with a second forward pass
    trained = load_file(tmp_path / "model" / "model.safetensors")
    expected = finished.weights(stage_name)
    assert trained.keys() == expected.keys()
    assert all(np.array_equal(trained[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_zero3_trains_with_checkpointing(finished: Run, tmp_path: Path) -> None:
    """Its hooks hand every module other tensors, and free weights between the passes."""
    run = Run(tmp_path)
    shutil.copytree(finished.folder, run.folder)
    shutil.rmtree(run.folder / "pretrain")
    runtime = {"engine": "zero3", "processes": 2, "activation_checkpointing": "true"}
    values = (
        part for key, value in runtime.items() for part in ("--set", f"runtime.{key}={value}")
    )

    run("run", "--until", "pretrain", *values)

    trained, reference = run.weights("pretrain"), finished.weights("pretrain")
    # Sums over two processes are rounded in another order.
    assert all(abs(trained[name] - reference[name]).max() < 1e-4 for name in reference)
