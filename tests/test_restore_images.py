"""`ipt restore`: photographs in, PNG files out, nothing lost on the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import png
import pytest
import torch
from data_samples import largest_file
from PIL import Image, ImageCms

from launch.__main__ import main
from launch.restore_images import restore_images
from launch.terminal import CommandFailed
from pipeline.config_file import ConfigError
from pipeline.model_configs import DnCNNConfig, IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.restorers import open_restorer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A DnCNN that predicts no noise: what it restores is its input."""
    model = DnCNN(DnCNNConfig(depth=3, features=4))
    torch.nn.init.zeros_(model.last.weight)
    model.save_pretrained(tmp_path / "identity")
    return tmp_path / "identity"


@pytest.fixture
def ipt(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    size = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=12)
    IPT(IPTConfig(size=size, scales={"sr2": 2, "denoise50": 1})).save_pretrained(tmp_path / "ipt")
    return tmp_path / "ipt"


def _samples(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, np.iinfo(dtype).max, shape, dtype, True)


def _photographs(folder: Path, count: int = 1) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(_samples(20, 30, 3)).save(path)
    return paths


def _restore(images: list[Path], weights: Path, out: Path, **options) -> int:
    defaults = {"task": None, "tiling": "overlap", "tile_overlap": None, "ensemble": False}
    defaults |= {"batch": None, "device": "cpu", "force": False}
    return restore_images(images, weights=weights, out=out, **(defaults | options))


def _read(path: Path) -> np.ndarray:
    """(H, W, C) with the depth of the file, which Pillow would not keep."""
    width, height, rows, layout = png.Reader(filename=str(path)).read()
    return np.vstack([*rows]).reshape(height, width, layout["planes"])


def test_every_kind_of_photograph_is_kept_by_a_model_that_does_nothing(
    tmp_path: Path, identity: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    kinds = {
        "one": _samples(1, 1, 3),
        "thin": _samples(47, 2, 3),
        "grey": _samples(9, 8, 1),
        "grey_alpha": _samples(9, 8, 2),
        "rgba": _samples(9, 8, 4),
        "grey_16": _samples(9, 8, 1, dtype=np.uint16),
        "colour_16": _samples(9, 8, 3, dtype=np.uint16),
        "rgba_16": _samples(9, 8, 4, dtype=np.uint16),
    }
    for name, samples in kinds.items():
        height, width, channels = samples.shape
        writer = png.Writer(
            width,
            height,
            bitdepth=8 * samples.itemsize,
            greyscale=channels < 3,
            alpha=channels in (2, 4),
        )
        with (photos / f"{name}.png").open("wb") as file:
            writer.write(file, samples.reshape(height, -1))

    assert _restore([photos], identity, tmp_path / "out") == 0

    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"{name}.png" for name in kinds)
    for name, samples in kinds.items():
        restored = _read(tmp_path / "out" / f"{name}.png")
        assert restored.dtype == samples.dtype
        assert np.array_equal(restored, samples), name


def test_the_command_restores_files_and_folders(
    tmp_path: Path, ipt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _photographs(tmp_path / "photos", 2)
    (tmp_path / "photos" / "notes.txt").write_text("no image, and not asked for")
    Image.fromarray(_samples(20, 30)).save(tmp_path / "grey.jpg")
    arguments = ["restore", str(tmp_path / "photos"), str(tmp_path / "grey.jpg")]
    arguments += ["--weights", str(ipt), "--out", str(tmp_path / "new" / "out"), "--task", "sr2"]

    assert main([*arguments, "--tile-overlap", "4", "--self-ensemble", "--device", "cpu"]) == 0

    out = tmp_path / "new" / "out"
    assert sorted(os.listdir(out)) == ["0.png", "1.png", "grey.png"]
    restorer = open_restorer(ipt, task="sr2", overlap=4, ensemble=True, device=torch.device("cpu"))
    image = torch.from_numpy(_samples(20, 30, 3)).permute(2, 0, 1)[None] / 255
    expected = restorer.restore(image)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).byte()
    assert np.array_equal(_read(out / "0.png"), expected.numpy())
    assert _read(out / "grey.png").shape == (40, 60, 1)
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()] == [
        [str(out / name), "60×40"] for name in ("0.png", "1.png", "grey.png")
    ]
    assert first.exists()
    assert second.exists()


def test_upright_with_its_profile(tmp_path: Path, identity: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = _samples(20, 30, 3)
    path = tmp_path / "a.tif"
    Image.fromarray(samples).save(path, exif=exif, icc_profile=profile)

    _restore([path], identity, tmp_path / "out")

    with Image.open(tmp_path / "out" / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.rot90(samples, -1))
        assert image.info["icc_profile"] == profile
        assert not image.getexif().get(0x0112)


def test_nothing_is_overwritten_without_force(tmp_path: Path, identity: Path) -> None:
    paths = _photographs(tmp_path / "photos", 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.png").write_bytes(b"mine")

    with pytest.raises(ConfigError, match=r"1\.png exists; .*--force"):
        _restore(paths, identity, out)
    assert os.listdir(out) == ["1.png"]
    assert (out / "1.png").read_bytes() == b"mine"

    _restore(paths, identity, out, force=True)
    assert np.array_equal(_read(out / "1.png"), _samples(20, 30, 3))


def test_an_output_is_never_an_input(tmp_path: Path, identity: Path) -> None:
    (path,) = _photographs(tmp_path / "photos")
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "photos")

    for out in (tmp_path / "photos", tmp_path / "link"):
        with pytest.raises(ConfigError, match="is one of the images to restore"):
            _restore([path], identity, out, force=True)

    assert path.read_bytes() == before


def test_images_that_would_become_one_file_are_refused(tmp_path: Path, identity: Path) -> None:
    (path,) = _photographs(tmp_path / "photos")
    other = tmp_path / "0.jpg"
    Image.fromarray(_samples(20, 30, 3)).save(other)

    with pytest.raises(ConfigError, match=r"0\.png and .*0\.jpg would both become"):
        _restore([path, other], identity, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_cant_be_meant_are_usage_errors(tmp_path: Path, ipt: Path) -> None:
    (path,) = _photographs(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    for images, options, message in (
        ([path], {}, "no task.*sr2, denoise50"),
        ([path], {"task": "sr9"}, "task 'sr9'"),
        ([path], {"task": "sr2", "tile_overlap": 12}, "overlap 12: between 0 and 11"),
        ([path], {"task": "sr2", "tile_overlap": 3, "tiling": "official"}, "--tile-overlap"),
        ([path], {"task": "sr2", "batch": 0}, "--batch 0"),
        ([path], {"task": "sr2", "device": "nonsense"}, "--device nonsense"),
        ([path], {"task": "sr2", "device": "meta"}, "--device meta"),
        ([tmp_path / "none.png"], {"task": "sr2"}, "none.png: no such file"),
        ([tmp_path / "empty"], {"task": "sr2"}, "empty: no image"),
    ):
        with pytest.raises(ConfigError, match=message):
            _restore(images, ipt, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_cant_work_fails_before_anything_is_restored(tmp_path: Path, identity: Path) -> None:
    (good,) = _photographs(tmp_path / "photos")
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.touch()

    with pytest.raises(CommandFailed, match=r"text\.png: not an image.*empty\.png: empty file"):
        _restore([good, text, empty], identity, tmp_path / "out")
    with pytest.raises(CommandFailed, match=r"photos: has no config\.json"):
        _restore([good], tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CommandFailed, match="can't be made"):
        _restore([good], identity, text / "out")


def test_a_damaged_image_does_not_stop_the_others(tmp_path: Path, identity: Path) -> None:
    paths = _photographs(tmp_path / "photos", 3)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])

    with pytest.raises(CommandFailed, match=r"1 of 3 .*photos/1\.png: truncated or damaged"):
        _restore(paths, identity, tmp_path / "out")

    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "2.png"]


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, identity: Path) -> None:
    paths = _photographs(tmp_path / "photos")
    message = r"out/0\.png: File too large; nothing of 0\.png"

    with largest_file(1024), pytest.raises(CommandFailed, match=message):
        _restore(paths, identity, tmp_path / "out")

    assert os.listdir(tmp_path / "out") == []


def test_ctrl_c_leaves_no_partial_file(tmp_path: Path, ipt: Path) -> None:
    paths = _photographs(tmp_path / "photos", 2)
    Image.fromarray(_samples(200, 300, 3)).save(paths[1])
    out = tmp_path / "out"

    def interrupt(*_: object) -> None:
        if list(out.glob(".1.png.*")):  # while the second is being written
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"1\.png: stopped; nothing of 1\.png"):
            _restore(paths, ipt, out, task="denoise50", tiling="official")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert os.listdir(out) == ["0.png"]


def test_exit_codes(tmp_path: Path, identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = _photographs(tmp_path / "photos")
    (tmp_path / "bad.png").write_text("no image")
    options = ["--weights", str(identity), "--out", str(tmp_path / "out")]

    done = subprocess.run(
        [sys.executable, "-m", "launch", "restore", str(path), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for image, code, words in ((path, 2, "exists"), (tmp_path / "bad.png", 1, "not an image")):
        assert main(["restore", str(image), *options]) == code
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1
        assert words in sentence
