import copy

import pytest
import torch
from ipt_samples import CONFIG, SIZE, patches, small_ipt
from torch import nn

from pipeline.losses import l1, supcon
from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.blocks import computing_in
from pipeline.models.ipt import IPT, features_of, tokens_of


@pytest.fixture
def model() -> IPT:
    return small_ipt()


def test_shapes_follow_the_scales(model: IPT) -> None:
    for task, scale in CONFIG.scales.items():
        assert model(patches(2), task).shape == (2, 3, 12 * scale, 12 * scale)


def test_tokens_are_unfolded_patches() -> None:
    features = torch.rand(2, 4, 12, 12)

    tokens = tokens_of(features, 3)

    assert tokens.equal(nn.functional.unfold(features, 3, stride=3).mT)
    assert features_of(tokens, SIZE).equal(features)


def test_tasks_together_equal_tasks_apart(model: IPT) -> None:
    model = model.double()
    images = {"denoise50": patches(3).double(), "sr3": patches(1).double()}

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
    one, other = (model.forward_tasks({task: patches(1)})[task][1] for task in ("sr2", "sr3"))
    model.heads["sr3"].load_state_dict(model.heads["sr2"].state_dict())
    same_head = model.forward_tasks({"sr3": patches(1)})["sr3"][1]

    assert not one.allclose(other)
    assert not one.allclose(same_head)


def test_only_the_tasks_of_a_step_get_gradients(model: IPT) -> None:
    groups = model.parameter_groups()
    assert list(groups) == ["body", *CONFIG.scales]
    listed = [id(each) for group in groups.values() for each in group]
    assert sorted(listed) == sorted(id(each) for each in model.parameters())

    model(patches(2), "sr2").abs().mean().backward()

    for name, group in groups.items():
        for parameter in group:
            assert (parameter.grad is not None) == (name in ("body", "sr2")), name


def test_l1_reaches_the_body_beside_the_contrastive_loss(model: IPT) -> None:
    """The published training code feeds head features to the tail when contrast is on."""
    restored, tokens = model.forward_tasks({"denoise50": patches(2)})["denoise50"]
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

    restored, tokens = model.forward_tasks({"sr2": patches(2)})["sr2"]
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
    exact = model(patches(2), "sr2")
    assert 0 < (restored - exact).norm() / exact.norm() < 0.03


def test_float32_ignores_a_callers_autocast(model: IPT) -> None:
    expected = model(patches(1), "sr2")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(patches(1), "sr2").equal(expected)


def test_subset_copies_what_its_task_needs(model: IPT) -> None:
    subset = model.task_subset(["denoise50"])

    assert subset.tasks == ("denoise50",)
    assert subset(patches(2), "denoise50").equal(model(patches(2), "denoise50"))
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


@pytest.mark.slow
def test_body_compiles_whole_in_bfloat16_with_checkpointing(model: IPT) -> None:
    compiled = torch.compile(model.body, fullgraph=True)
    tokens = torch.randn(2, 16, 36, requires_grad=True)
    found = []
    for body in (model.body, compiled):
        with computing_in("bfloat16", tokens.device):
            result = body(tokens, {"sr2": 2}, activation_checkpointing=True)
        result.square().mean().backward()
        gradients = [each.grad for each in (tokens, *model.body.parameters())]
        found.append([result.detach(), *(each for each in gradients if each is not None)])
        model.zero_grad()
        tokens.grad = None

    assert len(found[0]) == 1 + 1 + len(list(model.body.parameters())) - 3  # three idle queries
    for eager, fast in zip(*found, strict=True):
        # A compiler may keep in float32 what eager rounds between two operations.
        assert (fast - eager).norm() / eager.norm() < 0.02


def test_deep_copy_is_independent(model: IPT) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.body.positions.zero_()

    assert other.body.positions.abs().sum() > 0
    assert other.config == CONFIG


def test_wrong_images_are_refused(model: IPT) -> None:
    for x, task, message in (
        (patches(1), "sr4", "task 'sr4': this model has sr3, sr2, denoise50, denoise30"),
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
