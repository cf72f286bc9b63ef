"""Whole photographs by the model of a folder."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.corruptions.bicubic import imresize
from pipeline.data.photograph_file import Photograph
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.hub import ModelFileError
from pipeline.models.ipt import IPT
from pipeline.restore import Rows, restore, restored_bands, self_ensemble
from pipeline.restorers import Restorer, RestorerError, enlarged_rows, open_restorer
from pipeline.scoring import RestorationError

SIZE = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=12)
CPU = torch.device("cpu")


@pytest.fixture
def ipt(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    IPT(IPTConfig(size=SIZE, scales={"sr2": 2, "denoise50": 1})).save_pretrained(tmp_path / "ipt")
    return tmp_path / "ipt"


def _dncnn(folder: Path, channels: int = 3) -> DnCNN:
    """In evaluation mode, with weights and statistics that make a difference."""
    torch.manual_seed(0)
    model = DnCNN(DnCNNConfig(depth=3, features=4, channels=channels))
    for layer in (model.first, *model.inner, model.last):
        torch.nn.init.orthogonal_(layer.weight)
    for norm in model.norms:
        torch.nn.init.uniform_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    model.save_pretrained(folder)
    return model.eval()


def _image(*shape: int) -> Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))


def _photograph(dtype: type, channels: int, *, alpha: bool = False) -> Photograph:
    generator = np.random.default_rng(0)
    samples = generator.integers(0, np.iinfo(dtype).max, (31, 22, channels + 1), dtype, True)
    return Photograph(
        pixels=samples[:, :, :channels], alpha=samples[:, :, -1] if alpha else None, profile=None
    )


def _keeping(scale: int, channels: int = 3) -> Restorer:
    """A restorer that repeats pixels, a few rows at a time."""
    bands = partial(
        restored_bands,
        lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3),
        scale=scale,
        patch_size=8,
        overlap=0,
        batch=2,
    )
    return Restorer(scale=scale, channels=channels, device=CPU, restored=bands)


@pytest.mark.parametrize("tiling", ["overlap", "official"])
@pytest.mark.parametrize("ensemble", [False, True])
def test_ipt_restores_tile_by_tile(ipt: Path, tiling: str, ensemble: bool) -> None:
    image = _image(3, 25, 30)
    model = partial(IPT.from_pretrained(ipt), task="sr2")

    restorer = open_restorer(ipt, task="sr2", tiling=tiling, ensemble=ensemble, device=CPU)

    expected = restore(
        self_ensemble(model) if ensemble else model, image, scale=2, patch_size=12, tiling=tiling
    )
    assert restorer.scale == 2
    assert restorer.restore(image).equal(expected)


def test_overlap_is_the_tilings(ipt: Path) -> None:
    image = _image(3, 25, 30)
    model = partial(IPT.from_pretrained(ipt), task="sr2")

    restored = open_restorer(ipt, task="sr2", overlap=3, device=CPU).restore(image)

    assert restored.equal(restore(model, image, scale=2, patch_size=12, overlap=3))
    assert not restored.equal(restore(model, image, scale=2, patch_size=12))


def test_a_model_of_one_task_needs_no_name(tmp_path: Path) -> None:
    IPT(IPTConfig(size=SIZE, scales={"sr3": 3})).save_pretrained(tmp_path)

    assert open_restorer(tmp_path, device=CPU).scale == 3


@pytest.mark.parametrize("ensemble", [False, True])
def test_dncnn_restores_whole_images(tmp_path: Path, ensemble: bool) -> None:
    model, image = _dncnn(tmp_path), _image(3, 530, 7)  # a window and a bit

    restored = open_restorer(tmp_path, ensemble=ensemble, device=CPU).restore(image)

    with torch.no_grad():
        expected = (self_ensemble(model) if ensemble else model)(image)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-6)


def test_a_grey_dncnn_restores_each_colour_by_itself(tmp_path: Path) -> None:
    model, image = _dncnn(tmp_path, channels=1), _image(3, 20, 30)
    restorer = open_restorer(tmp_path, device=CPU)

    with torch.no_grad():
        channels = [model(image[:, i : i + 1]) for i in range(3)]

    torch.testing.assert_close(restorer.restore(image), torch.cat(channels, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(restorer.restore(image[:, :1]), channels[0], rtol=0, atol=1e-6)


def test_grey_goes_through_a_colour_model_as_three_channels(ipt: Path) -> None:
    image = _image(1, 25, 30)
    restorer = open_restorer(ipt, task="denoise50", device=CPU)

    colour = restorer.restore(image.expand(-1, 3, -1, -1))

    assert restorer.restore(image).equal(colour.mean(1, keepdim=True))


def test_options_that_do_not_fit_the_model_are_refused(ipt: Path, tmp_path: Path) -> None:
    _dncnn(tmp_path / "dncnn")
    _dncnn(tmp_path / "two", channels=2)
    for folder, options, message in (
        (ipt, {}, "no task.*sr2, denoise50"),
        (ipt, {"task": "sr4"}, "task 'sr4'.*sr2, denoise50"),
        (ipt, {"task": "sr2", "overlap": 12}, "overlap 12: between 0 and 11"),
        (ipt, {"task": "sr2", "overlap": -1}, "overlap -1: between 0 and 11"),
        (ipt, {"task": "sr2", "overlap": 3, "tiling": "official"}, "leave out the overlap"),
        (tmp_path / "dncnn", {"task": "sr2"}, "leave out the task"),
        (tmp_path / "dncnn", {"tiling": "official"}, "leave out .* the tiling"),
        (tmp_path / "dncnn", {"overlap": 3}, "leave out .* its overlap"),
        (tmp_path / "dncnn", {"batch": 3}, "leave out .* the batch"),
        (tmp_path / "two", {}, "two restores 2 channels; photographs have 1 or 3"),
    ):
        with pytest.raises(RestorerError, match=message):
            open_restorer(folder, device=CPU, **options)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": ""}, "has no config.json; .*`ipt import-weights` makes one"),
        ({"config.json": "{}"}, "has no model.safetensors; .*`ipt import-weights` makes one"),
        ({"model.safetensors": "", "config.json": "{"}, "config.json: not readable as JSON"),
        ({"model.safetensors": "", "config.json": "[]"}, "config.json: holds no JSON object"),
        (
            {"model.safetensors": "", "config.json": json.dumps({"architecture": "SwinIR"})},
            "architecture is 'SwinIR', not (IPT or DnCNN|DnCNN or IPT)",
        ),
    ],
)
def test_what_is_no_model_folder_is_refused(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    with pytest.raises(ModelFileError, match=message):
        open_restorer(tmp_path, device=CPU)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ipt.pt").write_bytes(b"weights")

    with pytest.raises(ModelFileError, match="is a file, not a model folder; `ipt import-weights`"):
        open_restorer(tmp_path / "ipt.pt", device=CPU)
    with pytest.raises(ModelFileError, match="absent: no such folder"):
        open_restorer(tmp_path / "absent", device=CPU)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_photograph_keeps_channels_depth_and_alpha(
    dtype: type, channels: int, alpha: bool, scale: int
) -> None:
    photograph = _photograph(dtype, channels, alpha=alpha)

    bands = list(_keeping(scale).restore_photograph(photograph))

    restored = np.concatenate(bands)
    assert len(bands) > 2
    assert restored.dtype == dtype
    assert restored.shape == (31 * scale, 22 * scale, channels + alpha)
    expected = photograph.pixels.repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(restored[:, :, :channels], expected)
    if alpha:
        assert np.array_equal(restored[::scale, ::scale, -1].shape, photograph.alpha.shape)
        if scale == 1:
            assert np.array_equal(restored[:, :, -1], photograph.alpha)
        elif dtype == np.uint8:
            assert np.array_equal(restored[:, :, -1], imresize(photograph.alpha, scale))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("height", [1, 5, 30])
def test_rows_of_an_enlarged_alpha_are_those_of_the_whole(
    dtype: type, scale: int, height: int
) -> None:
    shape = (height, 9)
    alpha = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, True)
    whole = imresize(alpha if dtype == np.uint8 else alpha.astype(np.float64), scale)
    if dtype == np.uint16:
        whole = np.floor(whole + 0.5).clip(0, 65535).astype(np.uint16)

    for step in (1, 7):
        bands = [
            enlarged_rows(alpha, scale, rows=(top * scale, min(top + step, height) * scale))
            for top in range(0, height, step)
        ]
        assert np.array_equal(np.concatenate(bands), whole)
        assert bands[0].dtype == dtype


@pytest.mark.parametrize(("value", "level"), [(-0.1, 0), (1.2, 255), (100.4 / 255, 100)])
def test_results_are_clipped_and_rounded(value: float, level: int) -> None:
    restorer = _constant(value)

    band = next(restorer.restore_photograph(_photograph(np.uint8, 3)))

    assert (band == level).all()


def test_values_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(RestorationError, match="not numbers"):
        next(_constant(float("nan")).restore_photograph(_photograph(np.uint8, 3)))


def _constant(value: float) -> Restorer:
    def bands(image: Rows) -> Iterator[Tensor]:
        yield torch.full((image.channels, image.height, image.width), value)

    return Restorer(scale=1, channels=3, device=CPU, restored=bands)
