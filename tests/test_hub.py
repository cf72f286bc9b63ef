"""Model folders by the Hub's conventions: its mixin's arguments, offline, and folders at fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
from published_samples import IMAGE, small_ipt
from safetensors.torch import load, load_file, save_file

from pipeline.models.hub import ModelFileError, in_braces
from pipeline.models.ipt import IPT

ROOT = Path(__file__).parents[1]
OFFLINE = """
import socket
import sys

def no_network(*_):
    raise OSError("a connection was tried")

socket.socket.connect = socket.getaddrinfo = no_network
from pipeline.models.ipt import IPT

IPT.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
print(*IPT.from_pretrained(sys.argv[2]).tasks)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_ipt("sr2", "derain").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folders_load_and_save_offline(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, folder, folder / "again"],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.returncode, done.stdout) == (0, "sr2 derain\n"), done.stderr
    again = load_file(folder / "again" / "model.safetensors")
    assert all(each.equal(again[n]) for n, each in load_file(folder / "model.safetensors").items())


def test_saving_again_keeps_a_card_that_was_edited(folder: Path) -> None:
    (folder / "README.md").write_text("mine")

    assert small_ipt("sr3").save_pretrained(folder) is None

    assert IPT.from_pretrained(folder).tasks == ("sr3",)
    assert (folder / "README.md").read_text() == "mine"


def test_pushing_uploads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = {}

    class Api:
        """The Hub's side."""

        def __init__(self, *, token: str | None) -> None:
            uploads["token"] = token

        def create_repo(self, repo_id: str, **_: object) -> "Api":
            self.repo_id = repo_id
            return self

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
            uploads[repo_id] = {each.name: each.read_bytes() for each in folder_path.iterdir()}
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    card = {"trained_on": "four photographs"}

    url = small_ipt("sr2").push_to_hub("someone/ipt", token="t", model_card_kwargs=card)

    assert url == "https://hub/commit"
    assert uploads["token"] == "t"
    files = uploads["someone/ipt"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert b"four photographs" in files["README.md"]
    assert json.loads(files["config.json"])["scales"] == {"sr2": 2}


def test_weights_in_half_precision_become_float32(folder: Path) -> None:
    weights = folder / "model.safetensors"
    half = {name: each.half() for name, each in load_file(weights).items()}
    save_file(half, weights)

    model = IPT.from_pretrained(folder)

    assert all(each.dtype == torch.float32 for each in model.parameters())
    assert model.body.positions.equal(half["body.positions"].float())
    assert model(IMAGE, "sr2").isfinite().all()


def test_damaged_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    state = load(whole)  # not of the file itself, which load_file maps into memory

    def fault(message: str) -> None:
        with pytest.raises(ModelFileError, match=rf"model\.safetensors: .*{message}"):
            IPT.from_pretrained(folder)

    for content in (whole[:-1], whole[: len(whole) // 2], whole[:4], b""):
        weights.write_bytes(content)
        fault("not a readable safetensors file")
    save_file(state | {"body.positions": state["body.positions"].int()}, weights)
    fault(r"body\.positions is of torch\.int32")
    save_file({f"layer{i}.weight": torch.ones(1) for i in range(20)}, weights)
    fault("another model, not this IPT: it holds (layer\\d+.weight, ){3}\\.\\.\\.$")


def test_what_is_no_model_folder_is_told_the_way(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "IPT_sr2.pt"
    file.write_bytes(b"weights")
    with pytest.raises(ModelFileError, match=r"IPT_sr2\.pt: is a file, .*`ipt import-weights`"):
        IPT.from_pretrained(file)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"has no config\.json; .*`ipt import-weights`"):
        IPT.from_pretrained(folder)


def test_names_in_braces_are_all_there() -> None:
    names = [f"layers.{i}.norm.{kind}" for i in (0, 1, 2, 10) for kind in ("weight", "bias")]
    assert in_braces(names) == ["layers.{0,1,2,10}.norm.{weight,bias}"]
    assert in_braces([f"layers.{i}" for i in range(12)]) == ["layers.{0..11}"]
    assert in_braces(["layers.10", "layers.9", "layers.8"]) == ["layers.{8..10}"]
    assert in_braces(["a", "a.b", "a.b.c", "a.b.d", "b.b"]) == ["a", "{a,b}.b", "a.b.{c,d}"]
    assert in_braces(["a.0.x", "a.1.x", "a.1.y"]) == ["a.0.x", "a.1.{x,y}"]
