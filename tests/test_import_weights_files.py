"""What `ipt import-weights` reads, and the one sentence for every file that it can't."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_samples import IMAGE, import_weights, refused, saved, small_ipt
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.model_configs import DnCNNConfig
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.models.published import to_published
from pipeline.tasks import PUBLISHED_ORDER


@pytest.fixture(scope="module")
def six() -> IPT:
    return small_ipt(*PUBLISHED_ORDER)


@pytest.fixture
def file(six: IPT, tmp_path: Path) -> Path:
    return saved(to_published(six), tmp_path)


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"state_dict": {"a": torch.ones(1)}, "args": RunsCode(tmp_path / "ran")}
    file = saved(content, tmp_path)
    for protocol in (2, 4):
        file.write_bytes(pickle.dumps(content, protocol=protocol))
        assert "no code in it was run" in refused(capsys, file)
    for is_zip in (True, False):
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)
        assert "holds posix.mkdir, which only running code makes" in refused(capsys, file)
    torch.save(DnCNN(DnCNNConfig(depth=3, features=1)), file)
    assert "holds pipeline.models.dncnn.DnCNN, which only" in refused(capsys, file)
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(file))
    assert "holds the code of TorchScript" in refused(capsys, file)


def test_files_that_are_no_checkpoint_are_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = file.read_bytes()
    for content, message in (
        (b"", "is empty"),
        (whole[: len(whole) // 2], "is damaged"),
        (whole[:-1], "is damaged"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "is damaged, or was not written by"),
    ):
        file.write_bytes(content)
        assert f"{file}: " in (error := refused(capsys, file))
        assert message in error
    save_file({"a": torch.ones(9)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    assert "not a readable safetensors file" in refused(capsys, file)
    file.unlink()
    assert "No such file" in refused(capsys, file)
    file.mkdir()
    assert "is a folder" in refused(capsys, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a state dict"),
        ({}, "not a state dict"),
        ({"epoch": 3, "head.0.0.weight": torch.ones(1)}, "not a state dict"),
        (
            {"params": {"a": torch.ones(1)}, "params_ema": {"a": torch.ones(1)}},
            "holds several state dicts (params, params_ema)",
        ),
        (
            {f"layer{i}.weight": torch.ones(1) for i in range(300)},
            "another model, not a published IPT: it holds layer0.weight, layer1.weight, "
            "layer2.weight, ...\n",
        ),
        ({"model": {"head.0.weight": torch.ones(1)}}, "another model, not a published IPT"),
    ],
)
def test_other_models_are_refused_in_a_sentence(
    content: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, saved(content, tmp_path))


def test_every_fault_of_the_tensors_is_named(
    six: IPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = to_published(six)
    for name in [name for name in state if name.startswith("body.encoder.layers.")]:
        state[name] = state[name] * torch.nan
    del state["tail.4.1.bias"]
    state["sub_mean.bias"] = torch.zeros(2)
    file = saved(state, tmp_path)

    error = refused(capsys, file)

    assert "tail.4.1.bias is missing; " in error
    assert "sub_mean.bias has shape (2,), this model (3,)" in error
    # Too many to list one by one, but no name is left out.
    for names in (
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "{norm1,norm2,linear1,linear2}.{weight,bias}",
    ):
        assert f"body.encoder.layers.{{0,1}}.{names} holds NaN or infinity" in error


@pytest.mark.parametrize(
    "change",
    [
        lambda each: each.to_sparse(),
        lambda each: each.to("meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensors_without_plain_values_are_named(
    change: Callable[[Tensor], Tensor],
    six: IPT,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = to_published(six)
    state["head.0.0.bias"] = change(state["head.0.0.bias"])

    assert "head.0.0.bias is sparse, nested" in refused(capsys, saved(state, tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {f"module.{name}": each for name, each in state.items()},
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"param_groups": [1]}},
        lambda state: {"params": state},
    ],
)
def test_wrapped_state_dicts_are_read(
    change: Callable[[dict[str, Tensor]], object], six: IPT, tmp_path: Path
) -> None:
    file = saved(change(to_published(six)), tmp_path)

    assert import_weights(file, "--out", tmp_path / "new") == 0

    assert IPT.from_pretrained(tmp_path / "new")(IMAGE, "sr3").equal(six(IMAGE, "sr3"))


def test_old_files_and_safetensors_are_read(six: IPT, tmp_path: Path) -> None:
    old, safe = tmp_path / "old.pth", tmp_path / "safe.bin"
    torch.save(to_published(six), old, _use_new_zipfile_serialization=False)
    save_file({name: each.clone() for name, each in to_published(six).items()}, safe)

    for file in (old, safe):
        assert import_weights(file, "--out", tmp_path / f"from-{file.stem}") == 0
        model = IPT.from_pretrained(tmp_path / f"from-{file.stem}")
        assert model(IMAGE, "sr3").equal(six(IMAGE, "sr3"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, six: IPT, tmp_path: Path) -> None:
    state = {n: x.to(dtype) if x.is_floating_point() else x for n, x in to_published(six).items()}

    assert import_weights(saved(state, tmp_path), "--out", tmp_path / "new") == 0

    ours = load_file(tmp_path / "new" / "model.safetensors")
    positions = state["body.position_encoding.pe.weight"]
    assert ours["body.positions"].dtype == torch.float32
    assert ours["body.positions"].equal(positions.float())
