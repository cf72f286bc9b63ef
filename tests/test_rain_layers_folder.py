import json
from pathlib import Path

import numpy as np
import pytest
from data_samples import execute, imported_by, run_bank
from PIL import Image

from pipeline.config import RainLayersConfig, RunConfig
from pipeline.corruptions.keyed import generator
from pipeline.corruptions.rain import render_layer
from pipeline.graph import Graph, Stage, StageError
from stages.rain_layers import rain_layers_stage
from stages.recipe import folders_read


def write_streaks(path: Path, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    size = max(height, width)
    streaks = render_layer(generator("test", seed), size, "light")[:height, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(streaks).save(path)
    return streaks


def test_own_images_become_layers_of_the_smallest_side(tmp_path):
    first = write_streaks(tmp_path / "streaks" / "a.png", 100, 130, seed=1)
    second = write_streaks(tmp_path / "streaks" / "below" / "b.png", 90, 200, seed=2)
    folder = str(tmp_path / "streaks")

    summary, layers = run_bank(tmp_path / "bank", layers=6, size=256, folder=folder)

    assert layers.shape == (6, 90, 90)
    assert summary["size"] == 90
    assert summary["origin"] == folder
    described = json.loads((tmp_path / "bank" / "parameters.json").read_text())["layers"]
    assert [each["image"] for each in described] == ["a.png", "below/b.png"] * 3
    for layer, each in zip(layers, described, strict=True):
        image = first if each["image"] == "a.png" else second
        top, left = each["top"], each["left"]
        np.testing.assert_array_equal(layer, image[top : top + 90, left : left + 90])
    assert len({each["left"] for each in described}) > 1


def test_own_images_are_cut_at_the_size_asked_for(tmp_path):
    write_streaks(tmp_path / "streaks" / "a.png", 300, 200)

    _, layers = run_bank(tmp_path / "bank", layers=2, size=64, folder=str(tmp_path / "streaks"))

    assert layers.shape == (2, 64, 64)


def test_colour_file_of_grey_streaks_keeps_its_levels(tmp_path):
    grey = write_streaks(tmp_path / "streaks" / "a.png", 64, 64)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "streaks" / "a.png")

    _, layers = run_bank(tmp_path / "bank", layers=2, size=64, folder=str(tmp_path / "streaks"))

    np.testing.assert_array_equal(layers[0], grey)


def test_own_images_do_not_resume_from_what_others_gave(tmp_path):
    grey = write_streaks(tmp_path / "streaks" / "a.png", 64, 64, seed=1)
    folder = str(tmp_path / "streaks")
    run_bank(tmp_path / "bank", layers=2, size=64, folder=folder)
    (tmp_path / "bank" / "layers.npy").rename(tmp_path / "bank" / ".layers.npy.partial")
    grey = write_streaks(tmp_path / "streaks" / "a.png", 64, 64, seed=2)

    _, layers = run_bank(tmp_path / "bank", layers=2, size=64, folder=folder)

    np.testing.assert_array_equal(layers[0], grey)


def make_artifact(stage: Stage, runs: Path) -> None:
    fingerprint = stage.fingerprint({})
    execute(stage, runs / stage.name / fingerprint[:12], fingerprint=fingerprint)


def test_bank_is_stale_once_its_folder_changes(tmp_path):
    write_streaks(tmp_path / "streaks" / "a.png", 64, 64)
    config = RainLayersConfig(layers=2, size=64, folder=str(tmp_path / "streaks"))
    stage = rain_layers_stage(config, seed=0)
    make_artifact(stage, tmp_path / "runs")
    graph = Graph(stages=(stage,))
    before = graph.resolve(tmp_path / "runs")["rain-layers"]

    write_streaks(tmp_path / "streaks" / "b.png", 64, 64, seed=1)
    after = graph.resolve(tmp_path / "runs")["rain-layers"]

    assert before.state == "done"
    assert after.state == "fresh"
    assert "streaks changed" in after.reason


def test_bank_stands_when_its_folder_is_gone(tmp_path):
    path = tmp_path / "streaks" / "a.png"
    write_streaks(path, 64, 64)
    config = RainLayersConfig(layers=2, size=64, folder=str(path.parent))
    stage = rain_layers_stage(config, seed=0)
    make_artifact(stage, tmp_path / "runs")

    path.unlink()
    path.parent.rmdir()

    assert Graph(stages=(stage,)).resolve(tmp_path / "runs")["rain-layers"].state == "done"


def test_identity_of_own_images_is_their_content(tmp_path):
    for name in ("here", "there"):
        write_streaks(tmp_path / name / "a.png", 64, 64)
    config = {"layers": 2, "size": 64}

    here, _ = run_bank(tmp_path / "1", folder=str(tmp_path / "here"), **config)
    there, _ = run_bank(tmp_path / "2", folder=str(tmp_path / "there"), **config)
    write_streaks(tmp_path / "there" / "a.png", 64, 64, seed=9)
    other, _ = run_bank(tmp_path / "3", folder=str(tmp_path / "there"), **config)

    assert here["identity"] == there["identity"] != other["identity"]


def expect_error(tmp_path: Path, message: str, *, layers: int = 4) -> None:
    folder = str(tmp_path / "streaks")
    with pytest.raises(StageError, match=message):
        run_bank(tmp_path / "bank", layers=layers, size=64, folder=folder)
    assert list((tmp_path / "bank").iterdir()) == []


def test_folder_that_is_not_there_is_named(tmp_path):
    expect_error(tmp_path, r"streaks is not a folder")


def test_folder_without_images_is_named(tmp_path):
    (tmp_path / "streaks").mkdir()
    (tmp_path / "streaks" / "notes.txt").write_text("no image")
    (tmp_path / "streaks" / ".hidden.png").write_bytes(b"")

    expect_error(tmp_path, r"streaks holds no images")


def test_file_that_is_no_image_is_named(tmp_path):
    write_streaks(tmp_path / "streaks" / "a.png", 64, 64)
    (tmp_path / "streaks" / "b.png").write_bytes(b"not a picture")

    expect_error(tmp_path, r"b\.png.*replace or remove")


def test_too_small_an_image_is_named(tmp_path):
    write_streaks(tmp_path / "streaks" / "a.png", 47, 64)

    expect_error(tmp_path, r"a\.png: 47×64 pixels.*48×48")


@pytest.mark.parametrize("level", [0, 160])
def test_image_that_is_not_streaks_on_black_is_named(tmp_path, level):
    (tmp_path / "streaks").mkdir()
    Image.fromarray(np.full((64, 64), level, np.uint8)).save(tmp_path / "streaks" / "a.png")

    expect_error(tmp_path, r"a\.png: mean brightness.*streaks on black")


def test_more_images_than_layers_says_which_number_to_set(tmp_path):
    for number in range(3):
        write_streaks(tmp_path / "streaks" / f"{number}.png", 64, 64)

    expect_error(tmp_path, r"2 layers can't show all 3 images.*set it to 3", layers=2)


def test_plan_with_a_folder_of_streaks_imports_no_numpy(tmp_path):
    write_streaks(tmp_path / "streaks" / "a.png", 64, 64)
    config = RainLayersConfig(layers=2, size=64, folder=str(tmp_path / "streaks"))
    make_artifact(rain_layers_stage(config, seed=0), tmp_path / "runs")
    code = f"""
from pathlib import Path
from pipeline.config import RainLayersConfig, RunConfig
from pipeline.graph import Graph
from stages.rain_layers import rain_layers_stage
from stages.recipe import folders_read
config = RainLayersConfig(layers=2, size=64, folder={config.folder!r})
graph = Graph(stages=(rain_layers_stage(config, seed=0),))
resolved = graph.resolve(Path({str(tmp_path / "runs")!r}))
assert resolved["rain-layers"].state == "done"
"""

    assert "numpy" not in imported_by(code)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_streaks(tmp_path / "streaks" / "a.png", 64, 64)
    config = RunConfig(
        name="run",
        sources={"photos": {"path": "photos"}},
        rain_layers={"layers": 2, "size": 64, "folder": "~/streaks"},
    )
    stage = rain_layers_stage(config.rain_layers, seed=0)
    make_artifact(stage, tmp_path / "runs")

    write_streaks(tmp_path / "streaks" / "b.png", 64, 64, seed=1)

    assert ("rain_layers.folder", "rain-layers", tmp_path / "streaks") in folders_read(config)
    assert "changed" in Graph(stages=(stage,)).resolve(tmp_path / "runs")["rain-layers"].reason
