import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.losses import l1, supcon
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.dncnn import DnCNN, DnCNNConfig
from pipeline.models.hub import ModelFileError
from pipeline.models.ipt import IPT, features_of, tokens_of

SIZE = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=2, patch_size=12)
# Not in alphabetical order, which files sorted by key would bring them into.
CONFIG = IPTConfig(size=SIZE, scales={"sr3": 3, "sr2": 2, "denoise50": 1, "denoise30": 1})


@pytest.fixture
def model() -> IPT:
    torch.manual_seed(0)
    return IPT(CONFIG)


def _images(count: int) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_shapes_follow_the_scales(model: IPT) -> None:
    for task, scale in CONFIG.scales.items():
        assert model(_images(2), task).shape == (2, 3, 12 * scale, 12 * scale)


def test_tokens_are_unfolded_patches() -> None:
    features = torch.rand(2, 4, 12, 12)

    tokens = tokens_of(features, 3)

    assert tokens.equal(nn.functional.unfold(features, 3, stride=3).mT)
    assert features_of(tokens, SIZE).equal(features)


def test_tasks_together_equal_tasks_apart(model: IPT) -> None:
    model = model.double()
    images = {"denoise50": _images(3).double(), "sr3": _images(1).double()}

    together = model.forward_tasks(images)

    assert list(together) == list(images)
    for task, x in images.items():
        restored, tokens = together[task]
        apart, tokens_apart = model.forward_tasks({task: x})[task]
        # Rounding only: a product over more rows may be summed in another order.
        torch.testing.assert_close(restored, apart, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tokens, tokens_apart, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(restored, model(x, task), rtol=1e-12, atol=1e-12)
        assert tokens.shape == (len(x), 16, 36)


def test_queries_tell_the_body_the_task(model: IPT) -> None:
    one, other = (model.forward_tasks({task: _images(1)})[task][1] for task in ("sr2", "sr3"))
    model.heads["sr3"].load_state_dict(model.heads["sr2"].state_dict())
    same_head = model.forward_tasks({"sr3": _images(1)})["sr3"][1]

    assert not one.allclose(other)
    assert not one.allclose(same_head)


def test_only_the_tasks_of_a_step_get_gradients(model: IPT) -> None:
    groups = model.parameter_groups()
    assert list(groups) == ["body", *CONFIG.scales]
    listed = [id(each) for group in groups.values() for each in group]
    assert sorted(listed) == sorted(id(each) for each in model.parameters())

    model(_images(2), "sr2").abs().mean().backward()

    for name, group in groups.items():
        for parameter in group:
            assert (parameter.grad is not None) == (name in ("body", "sr2")), name


def test_l1_reaches_the_body_beside_the_contrastive_loss(model: IPT) -> None:
    """The published training code feeds head features to the tail when contrast is on."""
    restored, tokens = model.forward_tasks({"denoise50": _images(2)})["denoise50"]
    pixels = l1(restored, torch.rand_like(restored))
    (pixels + 0.1 * supcon(tokens)).backward(retain_graph=True)
    model.zero_grad()

    pixels.backward()

    for name, parameter in model.body.named_parameters():
        if not name.startswith("queries.") or name == "queries.denoise50":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_stays_inside_its_region(model: IPT) -> None:
    model.precision = "bfloat16"
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update(
                    {name: (inputs[0].dtype, output.dtype)}
                )
            )

    restored, tokens = model.forward_tasks({"sr2": _images(2)})["sr2"]
    restored.abs().mean().backward()

    last = seen.pop("tails.sr2.last")
    assert last == (torch.float32, torch.float32)
    assert {output for _, output in seen.values()} == {torch.bfloat16}
    assert len(seen) == 16
    assert restored.dtype == tokens.dtype == torch.float32
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert all(
        each.grad.dtype == torch.float32 for each in model.parameters() if each.grad is not None
    )
    model.precision = "float32"
    exact = model(_images(2), "sr2")
    assert 0 < (restored - exact).norm() / exact.norm() < 0.03


def test_float32_ignores_a_callers_autocast(model: IPT) -> None:
    expected = model(_images(1), "sr2")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(_images(1), "sr2").equal(expected)


def test_subset_copies_what_its_task_needs(model: IPT) -> None:
    subset = model.task_subset(["denoise50"])

    assert subset.tasks == ("denoise50",)
    assert subset(_images(2), "denoise50").equal(model(_images(2), "denoise50"))
    assert sum(each.numel() for each in subset.parameters()) == subset.config.parameters
    with torch.no_grad():
        subset.body.positions.zero_()
    assert model.body.positions.abs().sum() > 0


def test_initialisation_is_the_published_one(model: IPT) -> None:
    assert abs(model.body.positions.std().item() - 1) < 0.1
    assert abs(model.body.queries.get_parameter("sr2").std().item() - 1) < 0.1
    projection = model.body.encoder[0].attention.projection
    assert projection.abs().max() <= 36**-0.5
    assert projection.std().item() == pytest.approx(36**-0.5 / 3**0.5, rel=0.05)


def test_activation_checkpointing_gives_the_same_gradients(model: IPT) -> None:
    layer = model.body.decoder[0]
    x, memory, query = (torch.rand(2, 16, 36, requires_grad=True) for _ in range(3))
    gradients = []
    for outputs in (
        layer(x, memory, query),
        checkpoint(layer, x, memory, query, use_reentrant=False),
    ):
        outputs.square().sum().backward()
        gradients.append([each.grad for each in (x, memory, query, *layer.parameters())])
        for each in (x, memory, query, *layer.parameters()):
            each.grad = None

    assert all(one.equal(other) for one, other in zip(*gradients, strict=True))


@pytest.mark.slow
def test_body_compiles(model: IPT) -> None:
    compiled = torch.compile(model.body, fullgraph=True)
    tokens = torch.randn(2, 16, 36)
    gradients = []
    for body in (model.body, compiled):
        result = body(tokens, {"sr2": 2})
        result.square().mean().backward()
        gradients.append((result.detach(), model.body.positions.grad))
        model.zero_grad()

    for eager, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-5)


def test_deep_copy_is_independent(model: IPT) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.body.positions.zero_()

    assert other.body.positions.abs().sum() > 0
    assert other.config == CONFIG


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
    assert loaded(_images(2), "sr3").equal(model(_images(2), "sr3"))
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

    assert loaded(_images(1), "sr2").equal(model(_images(1), "sr2"))


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
        ("[]", "architecture is None"),
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


def test_wrong_images_are_refused(model: IPT) -> None:
    for x, task, message in (
        (_images(1), "sr4", "task 'sr4': this model has sr3, sr2, denoise50, denoise30"),
        (torch.rand(1, 3, 12, 13), "sr2", r"\(1, 3, 12, 13\).*pipeline.restore tiles"),
        (torch.rand(3, 12, 12), "sr2", r"\(3, 12, 12\)"),
        (torch.zeros(1, 3, 12, 12, dtype=torch.uint8), "sr2", "uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, task)
    with pytest.raises(ValueError, match="no images"):
        model.forward_tasks({})
    with pytest.raises(ValueError, match="task 'sr4'"):
        model.task_subset(["sr4"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IPTConfig(size=SIZE), "at least one task"),
        (IPTConfig(size=SIZE, scales={"body": 1}), "can't be named 'body'"),
        (IPTConfig(size=SIZE, scales={"a.b": 1}), "can't name a task"),
        (IPTConfig(size=SIZE, scales={"train": 1}), "can't name a task"),
        (IPTConfig(size=SIZE, scales={"training": 1}), "can't name a task"),
        (IPTConfig(size=SIZE, scales={"sr7": 7}), "scale 7"),
        (IPTConfig(size=IPTSize(patch_size=50), scales={"sr2": 2}), "token_size: 3"),
        (IPTConfig(size=IPTSize(attention_heads=7), scales={"sr2": 2}), "attention_heads: 7"),
    ],
)
def test_impossible_configs_are_refused(config: IPTConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IPT(config)
