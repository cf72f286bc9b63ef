import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import SMALL, corrupted, write_photographs

from pipeline.config import DataConfig
from pipeline.data.loader import training_batches, validation_crops
from pipeline.data.order import OrderError
from pipeline.data.samples import Batch
from pipeline.data.shards import ShardError
from pipeline.data.streams import Stream, open_stream
from pipeline.tasks import TASKS, task_named

NAMES = ("sr2", "derain", "denoise30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three tasks: 36 training samples in 4 shards and 6 validation samples each."""
    folder = tmp_path_factory.mktemp("shards")
    photographs = write_photographs(folder / "in", 14)
    for name in NAMES:
        corrupted(name, photographs, folder, config=SMALL)
    return folder


@pytest.fixture(scope="module")
def streams(folder: Path) -> dict[str, Stream]:
    return {name: open_stream(folder / name, TASKS[name], split="train") for name in NAMES}


def batches(streams: dict[str, Stream], **changes: object) -> list[Batch]:
    settings = {
        "config": DataConfig(),
        "tasks_per_step": "one",
        "batch": 12,
        "micro_batch": 12,
        "seed": 0,
        "start_step": 0,
        "steps": 6,
        "rank": 0,
        "world_size": 1,
        "workers": 0,
        "device": torch.device("cpu"),
    }
    return list(training_batches(streams, **(settings | changes)))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one) == list(other)
        for name in one:
            for image, expected in zip(one[name], other[name], strict=True):
                assert image.dtype == expected.dtype
                assert torch.equal(image, expected)


def joined(parts: list[Batch]) -> Batch:
    """Micro-batches put together, in order, by task."""
    return {
        name: tuple(torch.cat([part[name][side] for part in parts]) for side in (0, 1))
        for name in parts[0]
    }


@pytest.mark.parametrize("mode", ["one", "all"])
def test_batches_are_the_same_for_any_number_of_workers(
    streams: dict[str, Stream], mode: str
) -> None:
    config = DataConfig(flips_and_rotations=True, lanes=2, window=1)
    alone = batches(streams, tasks_per_step=mode, config=config)

    for workers in (1, 2):
        others = batches(streams, tasks_per_step=mode, config=config, workers=workers)
        assert_same(others, alone)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("mode", ["one", "all"])
def test_a_resumed_run_gets_the_tail_of_the_untouched_one(
    streams: dict[str, Stream], mode: str
) -> None:
    untouched = batches(streams, tasks_per_step=mode, steps=9)

    for start in (1, 4, 8, 9):
        tail = batches(streams, tasks_per_step=mode, start_step=start, steps=9)
        assert_same(tail, untouched[start:])


@pytest.mark.parametrize("mode", ["one", "all"])
def test_ranks_and_micro_batches_share_out_the_same_batch(
    streams: dict[str, Stream], mode: str
) -> None:
    whole = batches(streams, tasks_per_step=mode, steps=3)

    by_rank = [
        batches(streams, tasks_per_step=mode, steps=3, micro_batch=3, world_size=2, rank=rank)
        for rank in (0, 1)
    ]

    assert [len(parts) for parts in by_rank] == [6, 6]  # two micro-batches a step
    for step in range(3):
        parts = [part for parts in by_rank for part in parts[2 * step : 2 * step + 2]]
        assert_same([joined(parts)], [whole[step]])


def test_one_trains_every_task_once_in_a_block_and_all_every_task_in_a_step(
    streams: dict[str, Stream],
) -> None:
    one = batches(streams, steps=6)
    every = batches(streams, steps=2, tasks_per_step="all")

    for block in (one[:3], one[3:]):
        assert sorted(name for batch in block for name in batch) == sorted(NAMES)
    for batch in every:
        assert tuple(batch) == NAMES
        assert all(len(pair[0]) == len(pair[1]) == 4 for pair in batch.values())


def test_tasks_with_other_numbers_of_shards_and_samples_go_on_each_by_itself(
    folder: Path, tmp_path: Path, streams: dict[str, Stream]
) -> None:
    photographs = write_photographs(tmp_path / "in", 8)
    config = SMALL.model_copy(update={"samples_per_shard": 100})
    few = open_stream(
        corrupted("denoise30", photographs, tmp_path, config=config).folder,
        TASKS["denoise30"],
        split="train",
    )
    assert (len(few.reader.records), few.samples) == (1, 18)

    both = batches({"sr2": streams["sr2"], "denoise30": few}, tasks_per_step="all", steps=6)
    alone = batches({"sr2": streams["sr2"]}, batch=6, micro_batch=6, steps=6)

    assert all(
        torch.equal(one["sr2"][1], two["sr2"][1]) for one, two in zip(both, alone, strict=True)
    )
    passes = [joined(both[begin : begin + 3])["denoise30"] for begin in (0, 3)]
    assert torch.equal(_sorted(passes[0])[1], _sorted(passes[1])[1])


def test_images_have_the_contracted_types_and_shapes(streams: dict[str, Stream]) -> None:
    batch = batches(streams, steps=1, tasks_per_step="all")[0]

    for name, (corrupted_images, clean) in batch.items():
        side = 8 * TASKS[name].scale
        assert (clean.dtype, clean.shape) == (torch.uint8, (4, 3, side, side))
        assert corrupted_images.shape == (4, 3, 8, 8)
        assert corrupted_images.is_contiguous()
        assert clean.is_contiguous()
    assert batch["sr2"][0].dtype == torch.uint8
    noisy = batch["denoise30"][0]
    assert noisy.dtype == torch.float32
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_noise_has_its_sigma_and_is_clipped_only_if_the_task_says_so(folder: Path) -> None:
    task = task_named("denoise30", clip_noise=False)
    stream = open_stream(folder / "denoise30", task, split="train")

    (batch,) = batches({"denoise30": stream}, batch=36, micro_batch=36, steps=1)

    noisy, clean = batch["denoise30"]
    noise = noisy * 255 - clean
    assert noise.mean().abs() < 1
    assert abs(noise.std() - 30) < 0.6
    assert noisy.min() < 0
    assert noisy.max() > 1


def test_a_pass_holds_every_sample_once_and_noise_is_fresh_in_the_next(
    streams: dict[str, Stream],
) -> None:
    stream = {"denoise30": streams["denoise30"]}

    passes = [joined(part)["denoise30"] for part in _halves(batches(stream, steps=6))]

    (first_noisy, first), (second_noisy, second) = (_sorted(pair) for pair in passes)
    assert torch.equal(first, second)
    assert not torch.equal(first_noisy, second_noisy)
    assert not torch.equal(passes[0][1], passes[1][1])  # in another order


def test_fixed_noise_is_the_same_in_every_pass(streams: dict[str, Stream]) -> None:
    stream = {"denoise30": streams["denoise30"]}
    config = DataConfig(fresh_noise=False)

    passes = [
        joined(part)["denoise30"] for part in _halves(batches(stream, steps=6, config=config))
    ]

    assert torch.equal(_sorted(passes[0])[0], _sorted(passes[1])[0])


def _halves(parts: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    return parts[: len(parts) // 2], parts[len(parts) // 2 :]


def _sorted(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair in the order of the clean images' bytes."""
    order = sorted(range(len(pair[1])), key=lambda place: pair[1][place].numpy().tobytes())
    return pair[0][order], pair[1][order]


def test_flips_and_rotations_turn_both_images_alike(streams: dict[str, Stream]) -> None:
    stream = {"derain": streams["derain"]}
    plain = joined(batches(stream, steps=3))["derain"]

    turned = joined(batches(stream, steps=3, config=DataConfig(flips_and_rotations=True)))["derain"]

    kinds = set()
    for place in range(len(plain[1])):
        both = torch.cat([plain[0][place], plain[1][place]])
        found = torch.cat([turned[0][place], turned[1][place]])
        kinds.add(next(kind for kind in range(8) if torch.equal(_turn(both, kind), found)))
    assert kinds == set(range(8))


def _turn(image: torch.Tensor, kind: int) -> torch.Tensor:
    rotated = torch.rot90(image, kind % 4, (1, 2))
    return rotated.flip(2) if kind >= 4 else rotated


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_untouched(streams: dict[str, Stream], workers: int) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()

    batches(streams, workers=workers)
    validation_crops(streams["denoise30"], 2, 0)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_seeds_give_different_batches(streams: dict[str, Stream]) -> None:
    first, second = (batches(streams, tasks_per_step="all", steps=1, seed=seed) for seed in (0, 1))

    assert not torch.equal(first[0]["sr2"][1], second[0]["sr2"][1])


def test_validation_crops_are_the_same_every_time(folder: Path) -> None:
    for name in NAMES:
        stream = open_stream(folder / name, TASKS[name], split="validation")

        first, second = (validation_crops(stream, 4, seed=0) for _ in range(2))
        everything = validation_crops(stream, 100, seed=0)

        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        assert [len(images) for images in first] == [4, 4]
        assert [len(images) for images in everything] == [6, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": DataConfig(lanes=5)}, "data.lanes: 5 lanes do not divide the 12"),
        ({"config": DataConfig(lanes=60), "batch": 60, "micro_batch": 60}, "60 lanes are more"),
        ({"micro_batch": 5}, "runtime.micro_batch: 5 .* use 1, 2, 3, 4, 6 or 12"),
        ({"world_size": 5}, "batch: 12 does not divide over 5 processes"),
    ],
)
def test_what_does_not_divide_is_an_error_before_anything_starts(
    streams: dict[str, Stream], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(OrderError, match=message):
        batches(streams, **changes)


def test_unfinished_shards_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"the shards of train are not complete"):
        open_stream(tmp_path, TASKS["sr2"], split="train")
