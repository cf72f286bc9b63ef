"""Model folders of an IPT, as the Hub knows them."""

import json
from pathlib import Path

import pytest
import torch
from ipt_samples import CONFIG, patches, small_ipt
from safetensors.torch import load_file, save_file

from pipeline.models.dncnn import DnCNN, DnCNNConfig
from pipeline.models.hub import ModelFileError
from pipeline.models.ipt import IPT


@pytest.fixture
def model() -> IPT:
    return small_ipt()


def test_folder_round_trip_is_exact(model: IPT, tmp_path: Path) -> None:
    model.save_pretrained(
        tmp_path, model_card_kwargs={"trained_on": "four photographs", "fingerprint": "0123abcd"}
    )
    loaded = IPT.from_pretrained(tmp_path)

    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert loaded.config == CONFIG
    assert loaded.tasks == model.tasks  # in order
    assert not loaded.training
    assert loaded(patches(2), "sr3").equal(model(patches(2), "sr3"))
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["architecture"] == "IPT"
    assert record["size"]["features"] == 4
    card = (tmp_path / "README.md").read_text()
    parameters = f"{CONFIG.parameters:,}"
    for part in ("license: apache-2.0", "sr3, sr2", "four photographs", "0123abcd", parameters):
        assert part in card


def test_code_in_the_card_works(model: IPT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("this folder", str(tmp_path))
    names = {"photograph": torch.rand(3, 20, 17)}

    exec(code, names)

    assert names["restored"].shape == (3, 60, 51)


def test_hub_repository_loads_offline_once_it_is_cached(model: IPT, tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--ipt"
    model.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)

    loaded = IPT.from_pretrained("someone/ipt", cache_dir=tmp_path, local_files_only=True)

    assert loaded(patches(1), "sr2").equal(model(patches(1), "sr2"))


def test_faulty_folders_are_refused(model: IPT, tmp_path: Path) -> None:
    def fault(message: str) -> None:
        with pytest.raises(ModelFileError, match=message):
            IPT.from_pretrained(tmp_path)

    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    model.save_pretrained(tmp_path)
    state = load_file(weights)

    changed = dict(state)
    del changed["body.positions"]
    changed["body.position"] = torch.zeros(2)
    changed["heads.sr2.first.bias"] = torch.zeros(5)
    changed["heads.sr3.first.bias"] = torch.full((4,), torch.nan)
    save_file(changed, weights)
    with pytest.raises(ModelFileError) as error:
        IPT.from_pretrained(tmp_path)
    for part in (
        "body.positions is missing",
        "body.position is unexpected",
        r"heads.sr2.first.bias has shape (5,), this model (4,)",
        "heads.sr3.first.bias holds NaN",
        "model.safetensors",
    ):
        assert part in str(error.value)

    weights.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    fault("not a readable safetensors file")
    weights.unlink()
    fault("has no model.safetensors")
    model.save_pretrained(tmp_path)
    for text, message in (
        ("{", "not readable as JSON"),
        ("[]", "holds no JSON object"),
        ('{"architecture": "DnCNN"}', "architecture is 'DnCNN', not 'IPT'"),
        ('{"architecture": "IPT", "scale": {}}', "scale: Unexpected"),
        ('{"architecture": "IPT", "size": {"features": 0}}', "size.features: "),
        ('{"architecture": "IPT", "scales": {}}', "config.json: scales: .*at least one task"),
        ('{"architecture": "IPT", "scales": {"sr7": 7}}', "config.json: scale 7"),
        ('{"architecture": "IPT", "scales": {"training": 1}}', "config.json: .*can't name a task"),
    ):
        config.write_text(text)
        fault(message)
    config.unlink()
    fault("has no config.json")
    with pytest.raises(ModelFileError, match="no such folder"):
        IPT.from_pretrained(tmp_path / "absent")
    with pytest.raises(ModelFileError, match="no such folder"):
        IPT.from_pretrained("runs/pretrain/model")
    DnCNN(DnCNNConfig(depth=3, features=2)).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelFileError, match="architecture is 'DnCNN'"):
        IPT.from_pretrained(tmp_path / "other")
