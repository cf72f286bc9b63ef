"""What `ipt plan` says of the shards, against shards that were made."""

import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data_samples import corrupted, write_photographs

from launch.__main__ import main
from pipeline.config import CorruptConfig
from pipeline.cost import IMAGENET_PHOTOGRAPHS, corrupt_cost, few_files, read_rates

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_bytes_and_files_are_those_of_shards_that_were_made(
    tmp_path: Path, image_format: str
) -> None:
    config = CorruptConfig(crops_per_image=6, samples_per_shard=12, format=image_format)
    photographs = write_photographs(tmp_path / "in", 9, height=100, width=110)

    artifact = corrupted("sr2", photographs, tmp_path, config=config)

    cost = corrupt_cost(read_rates(), "sr2", config, photographs=9, validation=2)
    assert cost is not None
    assert cost.files == len(list((artifact.folder / "shards").iterdir()))
    made = artifact.manifest.summary["bytes"]
    # The end of each tar is padded, and these tars are small; pngs are as large as what they show.
    least, most = (0.85, 1) if image_format == "npy" else (0.7, 1.4)
    assert least * made < cost.bytes < most * made


@pytest.mark.parametrize("alike", [("denoise30", "denoise50"), ("grey15", "grey25", "grey50")])
@pytest.mark.parametrize("image_format", ["npy", "png"])
def test_what_costs_the_same_was_measured_alike(alike: tuple[str, ...], image_format: str) -> None:
    """Noise is drawn in training: these are the same work. A busy machine shows here."""
    tasks = [read_rates().tasks[name] for name in alike]

    patches = [each.formats[image_format].patch_seconds for each in tasks]
    images = [each.image_seconds for each in tasks]

    assert max(patches) < 1.25 * min(patches)
    assert max(images) < 1.25 * min(images)


def test_every_task_was_measured_in_both_formats() -> None:
    rates = read_rates()

    # Not of a task of one's own, of which `plan` says that it wasn't measured.
    own = "sr2 sr3 sr4 derain denoise30 denoise50 jpeg gaussian_blur motion_blur"
    grey = "grey15 grey25 grey50 grey_blind colour_blind"
    assert set(rates.tasks) >= {*own.split(), *grey.split()}
    for task in rates.tasks.values():
        assert 1e-4 < task.image_seconds < 1e-2
        for image_format in ("npy", "png"):
            assert 1e-5 < task.formats[image_format].patch_seconds < 1e-2


def test_cost_follows_the_sizes_that_the_config_chooses() -> None:
    def cost(**values: object) -> tuple[float, float, int]:
        config = CorruptConfig(**values)
        found = corrupt_cost(
            read_rates(), "sr4", config, photographs=IMAGENET_PHOTOGRAPHS, validation=64
        )
        assert found is not None
        return found.core_hours, found.bytes, found.files

    hours, size, files = cost()

    assert files == 2 * (626 + 1)  # 1,281,103 photographs, 2,048 in a shard
    assert size == pytest.approx(1.23e12, rel=0.01)  # 10.2 million samples of 120 kB
    assert cost(crops_per_image=4)[1] == pytest.approx(size / 2, rel=0.01)
    assert hours / 2 < cost(crops_per_image=4)[0] < hours
    assert cost(patch_size=24)[1] == pytest.approx(size / 4, rel=0.01)
    assert cost(format="png")[2] == 3 * 627


def test_a_task_that_was_never_measured_has_no_cost() -> None:
    config = CorruptConfig()

    assert corrupt_cost(read_rates(), "new", config, photographs=10, validation=1) is None


def test_plan_says_what_the_papers_recipe_costs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plan", "configs/imagenet.yaml", "--set", f"runtime.runs={tmp_path}"]) == 0

    printed = capsys.readouterr().out
    assert "imagenet: 1,281,167 photographs, ImageNet's number; not listed yet" in printed
    for task in ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50"):
        assert re.search(rf"corrupt-{task}@imagenet +\d+\.\d\d +\d\.\d\d\d +1254\n", printed)
    total = re.search(r"all +(\d+\.\d\d) +(\d\.\d\d\d) +7524\n", printed)
    assert total is not None
    assert 1 < float(total[1]) < 100
    assert float(total[2]) == pytest.approx(2.69, rel=0.02)


def test_plan_counts_the_files_of_a_small_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photographs = write_photographs(tmp_path / "in", 7)

    main(
        [
            "plan",
            "demo",
            "--set",
            f"sources.photos.path={photographs}",
            "--set",
            "sources.photos.held_out=[]",
            "--set",
            f"runtime.runs={tmp_path}",
        ]
    )

    printed = capsys.readouterr().out
    assert "photos: 7 photographs, the files in its folder; not listed yet" in printed


def test_plan_counts_pairs_by_their_clean_photographs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for side, count in (("clean", 5), ("rainy", 6)):
        write_photographs(tmp_path / side, count)
    config = tmp_path / "pairs.yaml"
    config.write_text(
        f"name: pairs\nruntime: {{runs: {tmp_path}}}\n"
        f"sources: {{rain: {{clean: {tmp_path}/clean, corrupted: {tmp_path}/rainy}}}}\n"
        "pretrain: {tasks: [derain]}\n"
    )

    assert main(["plan", str(config)]) == 0

    assert "rain: 5 photographs, the files in its folder" in capsys.readouterr().out


def test_plan_names_a_task_without_rates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = read_rates()
    known = {name: each for name, each in rates.tasks.items() if name != "sr4"}
    monkeypatch.setattr("launch.inspect_run.read_rates", lambda: replace(rates, tasks=known))

    main(["plan", "configs/imagenet.yaml", "--set", f"runtime.runs={tmp_path}"])

    printed = capsys.readouterr().out
    assert re.search(r"corrupt-sr4@imagenet +not measured", printed)
    assert re.search(r"all measured +\d", printed)


def test_a_large_folder_is_not_counted(tmp_path: Path) -> None:
    for number in range(10_001):
        (tmp_path / str(number)).touch()

    assert few_files(tmp_path) is None


def test_plan_takes_half_a_second() -> None:
    def seconds() -> float:
        before = children_seconds()
        command = [sys.executable, "-m", "launch", "plan", "configs/imagenet.yaml"]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        return children_seconds() - before

    # Of CPU, because the machine may be busy with other tests.
    assert min(seconds() for _ in range(3)) < 0.5


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
