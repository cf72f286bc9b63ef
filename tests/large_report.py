"""A run of six tasks with five test sets each, made by hand: as much as a report has to bear."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from report_samples import Run, protocol, scores

from pipeline.benchmarks import benchmark_named
from pipeline.data.shards import shard_name, writing_shard
from pipeline.protocol import border_of, noise_of
from pipeline.tasks import TASKS, Bicubic, GaussianNoise, Task

PHOTOGRAPHS = Path(__file__).parents[1] / "pipeline" / "assets" / "photos"
PICTURES = ("astronaut.png", "coffee.png", "chelsea.png")
NAMES = ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")
TEST_SETS = {
    "sr": {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "held-out": 50},
    "denoise": {"CBSD68": 68, "Kodak24": 24, "McMaster": 18, "Urban100": 100, "held-out": 50},
    "derain": {"Rain100L": 100, "Rain100H": 100, "Rain800": 98, "Rain12": 12, "held-out": 50},
}
SIZE = {"height": 300, "width": 420}
MODELS = {"finetune": 0.8, "dncnn": 0.55}  # how much of the damage a model mends


def large_run(root: Path) -> Run:
    """Every test set has three pictures of 420×300 pixels, the noisy ones as noise makes them."""
    run = Run(root)
    listed = {"root": "/data/imagenet", "images": 1_281_167, "validation": 512, "bytes": 147 << 30}
    listed |= {"unreadable": [], "unreadable_found": 0, "other_files": 3}
    run.add("source@imagenet", "source", summary=listed)
    for name in NAMES:
        _add_shards(run, TASKS[name])
    shards = tuple(f"corrupt-{name}@imagenet" for name in NAMES)
    _add_training(run, "pretrain", "pretrain", shards, NAMES)
    for name in NAMES:
        pictures = _pictures(run.folder("pictures") / name, TASKS[name])
        for kind in MODELS:
            stage = f"{kind}-{name}"
            inputs = (f"corrupt-{name}@imagenet", *(["pretrain"] if kind == "finetune" else []))
            _add_training(run, stage, kind, inputs, (name,))
            _add_scores(run, stage, kind, TASKS[name], pictures)
    return run


def _add_shards(run: Run, task: Task) -> None:
    stage = f"corrupt-{task.name}@imagenet"
    shards = run.folder(stage) / "shards"
    shards.mkdir()
    photograph = _photograph("coffee.png")
    for split in ("train", "validation"):
        with writing_shard(shards, shard_name(split, 0), image_format="npy") as writer:
            for number in range(8):
                clean = photograph[30 * number :][:48, 40 * number :][:, :48]
                images = {"clean": clean}
                if task.stores_corrupted:
                    images["corrupted"] = clean[:: task.scale, :: task.scale]
                about = {"task": task.name, "parameters": {}}
                writer.add(f"{number:016x}-0", images, about)
            writer.finish(())
    kind = type(task.corruption).__name__
    run.add(
        stage,
        "corrupt",
        ("source@imagenet",),
        config={"task": {"name": task.name, "corruption": kind, **vars(task.corruption)}},
        summary={
            "task": task.name,
            "format": "png",
            "train_samples": 10_245_240,
            "validation_samples": 4096,
            "skipped_images": 14,
            "skipped": [
                {"path": f"n02105855/n02105855_{i}.JPEG", "reason": "29×500 pixels are too few"}
                for i in range(14)
            ],
            "skipped_by_reason": {"too small": 14},
            "bytes": 85 << 30,
            "clip": True,
        },
    )


def _add_training(
    run: Run, stage: str, kind: str, inputs: tuple[str, ...], tasks: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(len(stage))
    loss = "l2" if kind == "dncnn" else "l1"
    rows = []
    for i in range(1, 2001):
        row = {"step": 100 * i, "samples": 25_600 * i, "learning_rate": 1e-4 * 0.5 ** (i // 500)}
        for number, task in enumerate(tasks):
            row[f"{loss}/{task}"] = (3 + number + 60 / math.sqrt(i)) * float(rng.uniform(0.9, 1.1))
        if kind == "pretrain":
            row["contrastive"] = 2 + 5 / i
        rows.append(row)
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (run.folder(stage) / "metrics.jsonl").write_text(text)
    summary = {"samples": 51_200_000, "steps": 200_000, "parameters": 115_500_000}
    summary |= {"world_size": 8, "seconds": 345_600.0, "skipped_steps": 0}
    run.add(stage, kind, inputs, summary=summary)


def _add_scores(run: Run, stage: str, kind: str, task: Task, pictures: list[dict]) -> None:
    folder = run.folder(f"evaluate-{stage}")
    (folder / "images").mkdir()
    family = next(family for family in TEST_SETS if task.name.startswith(family))
    before = {"sr": 30.0, "denoise": 16.5, "derain": 26.9}[family]
    means = {"corrupted": scores(before), "restored": scores(before + 10 * MODELS[kind])}
    shown = []
    for picture in pictures:
        paths = {}
        for version in ("corrupted", "clean", kind):
            name = "restored" if version == kind else version
            paths[name] = f"images/{picture['name']}-{name}.png"
            (folder / paths[name]).hardlink_to(picture[version])
        shown.append({"name": picture["name"], **SIZE, **means, "pictures": paths})
    test_sets = {
        test_set: {
            "images": [
                shown[i] if i < len(shown) else {"name": f"{i:03d}", **SIZE, **means}
                for i in range(count)
            ],
            "mean": means,
            "skipped": [],
            "corrupted_is_given": family == "derain",
            "faults": [],
            "incomplete": test_set == "Set14",
            "benchmark": _benchmark(test_set, count),
            "task": task.name,
            "title": task.title,
            "noise": noise_of(task),
            "border": border_of(task),
        }
        for test_set, count in TEST_SETS[family].items()
    }
    record = {"model": kind, "task": task.name, "protocol": protocol(kind, task.name)}
    record |= {"model_name": "DnCNN" if kind == "dncnn" else "IPT"}
    record |= {"failed": {}, "missing_benchmarks": []}
    (folder / "scores.json").write_text(json.dumps(record | {"test_sets": test_sets}))
    run.add(
        f"evaluate-{stage}",
        "evaluate",
        (stage, "source@imagenet"),
        config={"test_sets": {name: {"source": None, "path": "x"} for name in test_sets}},
    )


def _benchmark(name: str, count: int) -> dict | None:
    """What is said of a benchmark: one of another size, one verified, the rest without a score."""
    if benchmark_named(name) is None:
        return None
    states = {"number of images": "verified", "sizes": "verified", "input": "not checked"}
    if name == "Set14":
        states["sizes"] = "differs"
    elif name == "CBSD68":
        states = {"number of images": "verified", "sizes": "verified", "input on RGB": "verified"}
    checks = [
        {"what": what, "state": state, "expected": "", "found": ""}
        for what, state in states.items()
    ]
    return {"name": name, "images": count, "layout": "", "checks": checks}


def _pictures(folder: Path, task: Task) -> list[dict]:
    """The versions of every picture, as files, by name."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = []
    for file in PICTURES:
        clean = _photograph(file).astype(np.float32)
        match task.corruption:
            case GaussianNoise(sigma_255=sigma):
                corrupted = clean + rng.normal(0, sigma, clean.shape)
            case Bicubic(scale=scale):
                image = Image.fromarray(clean.astype(np.uint8))
                size = (image.width, image.height)
                corrupted = np.asarray(image.reduce(scale).resize(size), np.float32)
            case _:
                corrupted = clean + 120 * (rng.random(clean.shape[:2]) > 0.97)[..., None]
        versions = {"corrupted": corrupted, "clean": clean}
        for kind, share in MODELS.items():
            versions[kind] = corrupted + share * (clean - corrupted)
        picture = {"name": Path(file).stem}
        for version, pixels in versions.items():
            picture[version] = folder / f"{picture['name']}-{version}.png"
            whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
            Image.fromarray(whole).save(picture[version], compress_level=1)
        pictures.append(picture)
    return pictures


def _photograph(name: str) -> np.ndarray:
    """(300, 420, 3) uint8."""
    with Image.open(PHOTOGRAPHS / name) as image:
        return np.asarray(image.convert("RGB"))[:300, :420]
