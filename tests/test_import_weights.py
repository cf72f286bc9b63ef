"""What `ipt import-weights` makes, and that it overwrites and leaves behind nothing."""

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_samples import IMAGE, SIZE, import_weights, refused, saved, small_ipt

from pipeline.model_configs import DnCNNConfig
from pipeline.models import hub
from pipeline.models.dncnn import DnCNN
from pipeline.models.ipt import IPT
from pipeline.models.published import to_published
from pipeline.tasks import PUBLISHED_ORDER, TASKS


@pytest.fixture(scope="module")
def six() -> IPT:
    return small_ipt(*PUBLISHED_ORDER)


@pytest.fixture
def file(six: IPT, tmp_path: Path) -> Path:
    return saved(to_published(six), tmp_path)


def test_six_tasks_become_a_model_folder(
    six: IPT, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "ipt"

    assert import_weights(file, "--out", out) == 0

    assert sorted(each.name for each in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert sorted(each.name for each in out.parent.iterdir()) == ["ipt"]
    model = IPT.from_pretrained(out)
    assert model.config == six.config
    for task in PUBLISHED_ORDER:
        assert model(IMAGE, task).equal(six(IMAGE, task))
    card = (out / "README.md").read_text()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    parameters = f"{six.config.parameters:,}"
    for part in ("IPT_pretrain.pt", digest, ", ".join(PUBLISHED_ORDER), parameters):
        assert part in card
    assert "license: other" in card  # whatever the publisher says
    assert "Trained on" not in card
    printed = capsys.readouterr().out
    assert f"{six.config.published_parameters:,}" in printed
    assert f"ipt restore photo.png --weights {out} --task sr2 --out restored" in printed


@pytest.mark.parametrize("task", PUBLISHED_ORDER)
def test_one_task_of_six_restores_as_the_six_do(
    task: str, six: IPT, file: Path, tmp_path: Path
) -> None:
    assert import_weights(file, "--out", tmp_path / "one", "--task", task) == 0

    model = IPT.from_pretrained(tmp_path / "one")
    assert model.tasks == (task,)
    assert model(IMAGE, task).equal(six(IMAGE, task))
    record = json.loads((tmp_path / "one" / "config.json").read_text())
    assert record["scales"] == {task: TASKS[task].scale}


@pytest.mark.parametrize(
    ("tasks", "options", "expected"),
    [
        (("sr2",), [], ("sr2",)),
        (("sr3",), [], ("sr3",)),
        (("sr4",), [], ("sr4",)),
        (("sr4",), ["--task", "sr4"], ("sr4",)),
        (("derain",), ["--tasks", "derain"], ("derain",)),
        (("derain",), ["--task", "denoise30"], ("denoise30",)),
        (("sr4", "derain"), ["--tasks", "sr4,denoise50"], ("sr4", "denoise50")),
        (("sr4", "derain"), ["--tasks", "sr4,derain", "--task", "derain"], ("derain",)),
        (("sr2", "sr3"), ["--tasks", "sr2,sr3", "--attention-heads", "6"], ("sr2", "sr3")),
    ],
)
def test_heads_get_the_tasks_that_are_named(
    tasks: tuple[str, ...], options: list[str], expected: tuple[str, ...], tmp_path: Path
) -> None:
    """Or, for one head, the one that its tail allows."""
    heads = 6 if "--attention-heads" in options else 12
    published = small_ipt(*tasks, size=replace(SIZE, attention_heads=heads))
    file = saved(to_published(published), tmp_path)

    assert import_weights(file, "--out", tmp_path / "new", *options) == 0

    model = IPT.from_pretrained(tmp_path / "new")
    assert model.tasks == expected
    index = -1 if len(expected) < len(tasks) else 0
    assert model(IMAGE, expected[0]).equal(published(IMAGE, tasks[index]))


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (("derain",), [], "--tasks with one of derain, denoise30, denoise50"),
        (("sr2", "sr3"), [], "has 2 heads; name the task of each"),
        (("sr2", "sr3"), ["--task", "sr2"], "has 2 heads; name the task of each"),
        (("sr2",), ["--tasks", "sr3"], "upsample by (2,), sr3 by (3,)"),
        (("sr2",), ["--task", "derain"], "upsample by (2,), derain by (1,)"),
        (("derain",), ["--tasks", "sr2"], "tail.0.0.0.weight is missing"),
        (("sr2", "sr3"), ["--tasks", "sr3,sr2"], "check the order of the tasks"),
        (("sr2", "sr3"), ["--tasks", "sr2"], "has 2 heads, but 1 tasks"),
        (("derain", "sr3"), ["--tasks", "sr3,sr3"], "named twice: sr3, sr3"),
        (("sr2",), ["--tasks", "sr2,fog"], "unknown task 'fog'; known: sr2, sr3"),
        (("sr2",), ["--tasks", ""], "unknown task ''"),
        (("sr2",), ["--task", "fog"], "unknown task 'fog'"),
        (("derain",), ["--tasks", "grey25"], "unknown task 'grey25'"),
        (("sr2", "sr3"), ["--tasks", "sr2,sr3", "--task", "sr4"], "--task sr4 is not among"),
        (("sr2",), ["--attention-heads", "5"], "attention_heads: 5 is no divisor"),
        (("sr2",), ["--attention-heads", "0"], "attention_heads: 0 is no divisor"),
    ],
)
def test_contradictions_are_errors_of_usage(
    tasks: tuple[str, ...],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = saved(to_published(small_ipt(*tasks)), tmp_path)

    assert message in refused(capsys, file, *options, code=2)


def test_dncnn_becomes_a_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As DataParallel saves it in a training checkpoint."""
    torch.manual_seed(0)
    published = DnCNN(DnCNNConfig(depth=4, features=2, channels=1, batch_norm=False)).eval()
    layers = [published.first, *published.inner, published.last]
    state = {
        f"module.model.{2 * i}.{name}": each
        for i, layer in enumerate(layers)
        for name, each in layer.state_dict().items()
    }
    file = saved({"epoch": 3, "state_dict": state}, tmp_path)

    assert import_weights(file, "--out", tmp_path / "new") == 0

    model = DnCNN.from_pretrained(tmp_path / "new")
    image = IMAGE[:, :1]
    assert model(image).equal(published(image))
    printed = capsys.readouterr().out
    assert "DnCNN: depth 4, 2 features, grey" in printed
    assert f"ipt restore photo.png --weights {tmp_path / 'new'} --out restored" in printed
    for option in (["--task", "sr2"], ["--tasks", "sr2"], ["--attention-heads", "2"]):
        message = refused(capsys, file, *option, code=2, out="other")
        assert f"is a DnCNN, which has one task; leave out {option[0]}" in message


def test_what_exists_is_not_overwritten(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "exists and is not an empty folder" in refused(capsys, file, out="full", code=2)
    assert "exists and is not an empty folder" in refused(capsys, file, out=file.name, code=2)
    assert "choose another --out" in refused(capsys, file, out=f"{file.name}/new")
    (tmp_path / "empty").mkdir()
    assert import_weights(file, "--out", tmp_path / "empty") == 0
    assert IPT.from_pretrained(tmp_path / "empty").tasks == PUBLISHED_ORDER


@pytest.mark.parametrize(
    ("stop", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; nothing"),
    ],
)
def test_a_failed_import_leaves_nothing(
    stop: BaseException,
    code: int,
    message: str,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(*_: object, **__: object) -> bytes:
        raise stop

    monkeypatch.setattr(hub, "save", save)  # safetensors'

    assert message in refused(capsys, file, code=code, out="models/ipt")
