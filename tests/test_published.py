import contextlib
import json
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_data import SHARED
from torch import Tensor

from pipeline.model_configs import IPTConfig, IPTSize
from pipeline.models.hub import ModelFileError
from pipeline.models.ipt import IPT
from pipeline.models.published import from_published, read_published, to_published
from pipeline.models.published_layout import constants_of
from pipeline.tasks import PUBLISHED_ORDER, TASKS

GOLDEN = SHARED / "golden"
SCALES = {task: TASKS[task].scale for task in PUBLISHED_ORDER}
SIZE = IPTSize(features=4, encoder_layers=1, decoder_layers=1, attention_heads=12, patch_size=12)
LAYOUT_TASKS = {
    "pretrain_6_tasks": PUBLISHED_ORDER,
    "sr2": ("sr2",),
    "sr3": ("sr3",),
    "sr4": ("sr4",),
    "denoise_or_derain": ("denoise50",),
}
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="shared/golden is absent")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "official_ipt_small.safetensors")


@pytest.fixture
def published() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return to_published(IPT(IPTConfig(size=SIZE, scales=SCALES)))


def _state(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "state/"
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


@needs_golden
def test_outputs_and_tokens_are_the_official_ones(golden: dict[str, Tensor]) -> None:
    model = from_published(_state(golden)).double()
    image = golden["input"] / 255

    for i, task in enumerate(PUBLISHED_ORDER):
        with torch.no_grad():
            restored, tokens = model.forward_tasks({task: image})[task]
        for ours, official in (
            (restored * 255, golden[f"output/{i}"]),
            (tokens, golden[f"tokens/{i}"]),
        ):
            assert (ours - official).abs().max() <= 1e-9 * official.abs().max(), task


@needs_golden
def test_gradients_are_the_official_ones(golden: dict[str, Tensor]) -> None:
    record = json.loads((GOLDEN / "official_ipt_small.json").read_text())
    norms = record["grad_norms_task0_mean_abs_output"]
    model = from_published(_state(golden)).double()

    (model(golden["input"] / 255, "sr2") * 255).abs().mean().backward()

    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = to_published(model)
    assert set(norms) <= set(gradients)
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-9), name


@needs_golden
def test_swapped_heads_are_noticed(golden: dict[str, Tensor]) -> None:
    """The ×1 heads have equal shapes: only values tell a wrong order."""
    wrong = ("sr2", "sr3", "sr4", "denoise30", "derain", "denoise50")
    model = from_published(_state(golden), wrong).double()

    with torch.no_grad():
        restored = model(golden["input"] / 255, "derain") * 255

    assert (restored - golden["output/3"]).abs().max() > 1
    assert (restored - golden["output/4"]).abs().max() < 1e-6


@needs_golden
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta")
@pytest.mark.parametrize("layout", LAYOUT_TASKS)
def test_layouts_are_the_official_ones_and_load(layout: str) -> None:
    record = json.loads((GOLDEN / "official_ipt_layouts.json").read_text())[layout]
    tasks = LAYOUT_TASKS[layout]
    # Full size in the memory of one number each; the constants are checked, so are there.
    state = {name: torch.zeros(()).expand(shape) for name, shape in record["keys"].items()}
    state |= constants_of(IPTSize())

    with torch.device("meta"):
        model = from_published(state, tasks)

    assert model.config == IPTConfig(scales={task: SCALES[task] for task in tasks})
    assert model.config.published_parameters == record["parameters"]
    ours = to_published(model)
    assert {name: list(each.shape) for name, each in ours.items()} == record["keys"]


def test_round_trip_is_exact(published: dict[str, Tensor]) -> None:
    again = to_published(from_published(published))

    assert set(again) == set(published)
    assert all(again[name].equal(each) for name, each in published.items())


def test_one_task_of_six_equals_the_single_task_layout(published: dict[str, Tensor]) -> None:
    model = from_published(published)
    image = torch.rand(1, 3, 12, 12)
    single = to_published(model.task_subset(["denoise30"]))

    assert {name.split(".")[1] for name in single if name.startswith("head.")} == {"0"}
    assert single["body.query_embed.weight"].shape == (1, 16 * 36)
    assert from_published(single, ("denoise30",))(image, "denoise30").equal(
        model(image, "denoise30")
    )


@pytest.mark.parametrize("task", PUBLISHED_ORDER)
def test_one_task_of_six_restores_as_the_six_do(task: str, published: dict[str, Tensor]) -> None:
    model = from_published(published)
    image = torch.rand(2, 3, 12, 12)

    subset = model.task_subset([task])

    assert subset.tasks == (task,)
    assert subset(image, task).equal(model(image, task))


def test_every_fault_is_named_at_once(published: dict[str, Tensor]) -> None:
    del published["body.encoder.layers.0.norm1.weight"]
    published["body.extra"] = torch.zeros(1)
    published["head.1.0.bias"] = torch.zeros(5)
    published["head.2.0.bias"] = torch.full((4,), torch.inf)
    published["head.3.0.bias"] = torch.zeros(4, dtype=torch.int64)
    published["head.4.0.bias"] = torch.full((4,), 1e300, dtype=torch.float64)

    with pytest.raises(ModelFileError) as error:
        from_published(published, origin="IPT_pretrain.pt")

    for part in (
        "IPT_pretrain.pt",
        "body.encoder.layers.0.norm1.weight is missing",
        "body.extra is unexpected",
        "head.1.0.bias has shape (5,), this model (4,)",
        "head.2.0.bias holds NaN or infinity",
        "head.3.0.bias is of torch.int64",
        "head.4.0.bias holds NaN or infinity",  # in float32
    ):
        assert part in str(error.value)


def test_each_tensor_that_is_missing_or_reshaped_is_named_alone(
    published: dict[str, Tensor],
) -> None:
    """Also those that the size is inferred from."""
    for name, tensor in published.items():
        rest = {other: each for other, each in published.items() if other != name}
        with pytest.raises(ModelFileError, match=rf": {re.escape(name)} is missing$"):
            from_published(rest)
        reshaped = torch.ones(tensor.shape[0] + 1, *tensor.shape[1:])
        shapes = rf"\({', '.join(map(str, reshaped.shape))},?\), this model .*"
        with pytest.raises(ModelFileError, match=rf": {re.escape(name)} has shape {shapes}"):
            from_published(published | {name: reshaped})


def test_another_mean_is_not_ignored(published: dict[str, Tensor]) -> None:
    published["sub_mean.bias"] = published["sub_mean.bias"] * 1.01

    with pytest.raises(ModelFileError, match=r"sub_mean\.bias is"):
        from_published(published)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("sr2",), "has 6 heads, but 1 tasks were named"),
        (("sr3", "sr2", "sr4", "derain", "denoise30", "denoise50"), "check the order"),
        (("sr2", "sr3", "sr4", "derain", "derain", "denoise50"), "named twice"),
        (("sr2", "sr3", "sr4", "derain", "fog", "denoise50"), "unknown task 'fog'"),
    ],
)
def test_wrong_tasks_are_refused(
    published: dict[str, Tensor], tasks: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_published(published, tasks)


def test_other_models_are_refused(published: dict[str, Tensor]) -> None:
    with pytest.raises(ModelFileError, match=r"another model, .* it holds model\.0\.weight$"):
        from_published({"model.0.weight": torch.zeros(3)})
    with pytest.raises(ModelFileError, match="attention_heads: 5"):
        from_published(published, attention_heads=5)
    for part in ("body.encoder.layers.", "body.decoder.layers."):
        rest = {name: each for name, each in published.items() if not name.startswith(part)}
        with pytest.raises(ModelFileError, match=f"{part}0 is missing"):
            from_published(rest)


def test_files_are_read_without_running_code(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(published, path)
    assert set(read_published(path)) == set(published)

    whole = path.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "not a readable checkpoint"),
        (b"", "is empty"),
        (b"no checkpoint", "not a readable checkpoint"),
        (pickle.dumps(_Marker(tmp_path / "ran")), "not a readable checkpoint"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=message):
            read_published(path)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], path)
    with pytest.raises(ModelFileError, match="not a state dict"):
        read_published(path)
    with pytest.raises(ModelFileError, match=r"absent\.pt: No such file"):
        read_published(tmp_path / "absent.pt")


@pytest.mark.filterwarnings("ignore")  # of a pickle protocol, where its number was hit
@pytest.mark.parametrize("is_zip", [True, False])
def test_damaged_files_are_named_whatever_torch_raises(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    draws = random.Random(0)

    for _ in range(300):
        damaged = bytearray(whole[: draws.randrange(1, len(whole) + 1)])
        damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ModelFileError):  # or only a number was hit
            read_published(path)


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
