"""The exponential average of the weights, and clipping tensor by tensor."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import TrainingConfig
from pipeline.training.checkpoint_folder import CheckpointFolder
from pipeline.training.placement import LaunchError, check_engine
from tests.training_toys import FINAL, everything, toy_config, toy_fit, toy_model


def test_the_average_follows_the_weights_step_by_step_and_skips_what_is_skipped(
    tmp_path: Path,
) -> None:
    toy_fit(
        tmp_path,
        config=toy_config(ema_decay=0.75),
        poisoned_steps=(4,),
        checkpoint_every_steps=1,
        keep_checkpoints=12,
    )

    near = {"rtol": 1e-5, "atol": 1e-7}
    average = dict(toy_model().named_parameters())
    for step in range(1, 13):
        saved = everything(tmp_path / "checkpoints" / f"step-{step:08d}")
        for name in average:
            if step != 5:
                average[name] = 0.75 * average[name] + 0.25 * saved[f"weights/{name}"]
            torch.testing.assert_close(saved[f"average/{name}"], average[name], **near)


def test_the_average_survives_a_resume_bit_by_bit(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    toy_fit(whole, config=toy_config(ema_decay=0.9))
    toy_fit(resumed, config=toy_config(ema_decay=0.9))
    for path in (resumed / FINAL).iterdir():
        path.unlink()

    toy_fit(resumed, config=toy_config(ema_decay=0.9))

    expected, found = everything(whole / FINAL), everything(resumed / FINAL)
    assert any(name.startswith("average/") for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_result_of_a_training_is_the_average_and_it_resumes_from_the_weights(
    tmp_path: Path,
) -> None:
    toy_fit(tmp_path, config=toy_config(ema_decay=0.9), normalises=True)
    tensors = everything(tmp_path / FINAL)
    checkpoint = CheckpointFolder(tmp_path / "checkpoints", fingerprint="f" * 64, keep=2).latest()
    assert checkpoint is not None

    result, trained = toy_model(normalises=True), toy_model(normalises=True)
    checkpoint.load_result(result)
    checkpoint.load_weights(trained)

    for name, value in result.named_parameters():
        assert torch.equal(value, tensors[f"average/{name}"])
        assert torch.equal(trained.get_parameter(name), tensors[f"weights/{name}"])
        assert not torch.equal(value, trained.get_parameter(name))
    # The statistics of batch normalisation are averages already.
    for name, buffer in result.named_buffers():
        assert torch.equal(buffer, tensors[f"weights/{name}"])


def test_without_a_decay_there_is_no_average(tmp_path: Path) -> None:
    toy_fit(tmp_path)

    assert not (tmp_path / FINAL / "average.safetensors").exists()


def test_each_tensors_gradient_is_clipped_by_itself(tmp_path: Path) -> None:
    def gradients(folder: Path, **values: object) -> dict[str, Tensor]:
        toy_fit(folder, config=toy_config(samples=12, **values))
        tensors = everything(folder / "checkpoints" / "step-00000001")
        # Adam's first moment after one step is a tenth of it.
        return {name: each * 10 for name, each in tensors.items() if name.startswith("exp_avg/")}

    free = gradients(tmp_path / "free")
    lengths = sorted(each.norm().item() for each in free.values() if each.any())
    most = (lengths[2] + lengths[3]) / 2

    clipped = gradients(tmp_path / "clipped", clip="tensor", clip_norm=most)

    for name, gradient in free.items():
        shorter = min(1.0, most / (gradient.norm().item() + 1e-6))
        torch.testing.assert_close(clipped[name], gradient * shorter, rtol=1e-5, atol=1e-5)


def test_clipping_by_tensor_is_refused_where_gradients_are_parted() -> None:
    config = TrainingConfig(clip="tensor", clip_norm=1.0)
    for engine in ("zero1", "zero2", "zero3"):
        with pytest.raises(
            LaunchError, match=f"clip: tensor does not work with ZeRO stage {engine[-1]}"
        ):
            check_engine(engine, config)
    check_engine("ddp", config)
    check_engine("zero0", config)


def test_clipping_by_tensor_needs_a_norm() -> None:
    with pytest.raises(ValidationError, match="clip: tensor needs clip_norm"):
        TrainingConfig(clip="tensor")
