"""A run made by hand, small, for the tests of the report."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import config
from pipeline.artifacts import Artifact, seal
from pipeline.data.shards import shard_name, writing_shard
from pipeline.graph import Job, Stage
from pipeline.tasks import TASKS
from stages.report import report_stage

NASTY = '<script>alert("x")</script> & "quoted".png'


def scores(psnr: float, ssim: float = 0.5) -> dict[str, float]:
    return {"psnr_rgb": psnr, "psnr_y": psnr + 2, "ssim_rgb": ssim, "ssim_y": ssim + 0.1}


def protocol(model: str, task: str) -> dict:
    return {
        "channels": ["RGB", "Y"],
        "border": int(task[2]) if task.startswith("sr") else 0,
        "rounding": "uint8",
        "corrupted_rounding": "none, as drawn",
        "luma": "unrounded",
        "ssim": "Gaussian",
        "mean": "of per-image scores",
        "noise": "clipped" if task.startswith("denoise") else None,
        "seed": 0,
        "tiling": None if model == "dncnn" else "overlap",
        "self_ensemble": False,
        "precision": "float32",
        "corrupted_shown": "bicubic upscaling" if task.startswith("sr") else "as given",
        "drawn": {},
    }


def write_scores(folder: Path, *, model: str, task: str, psnr: float, image: str) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = {}
    for version in ("corrupted", "restored", "clean"):
        pictures[version] = f"images/{version}.png"
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / pictures[version])
    entry = {
        "name": image,
        "height": 60,
        "width": 80,
        "corrupted": scores(18.5),
        "restored": scores(psnr),
        "pictures": pictures,
    }
    record = {
        "model": model,
        "model_name": "DnCNN" if model == "dncnn" else "IPT",
        "task": task,
        "protocol": protocol(model, task),
        "test_sets": {
            "mine": {
                "images": [entry],
                "mean": {"corrupted": scores(18.5), "restored": scores(psnr)},
                "skipped": [{"path": "/x/thin.png", "reason": "9×40 pixels are too few"}],
                "faults": [],
                "incomplete": False,
                "benchmark": None,
                "task": task,
                "title": TASKS[task].title,
                "noise": "clipped" if task == "denoise30" else None,
                "border": 2 if task == "sr2" else 0,
                "corrupted_is_given": False,
            }
        },
        "failed": {},
        "missing_benchmarks": [],
        "incomplete": False,
    }
    (folder / "scores.json").write_text(json.dumps(record))


def cbsd68(checks: Sequence[dict] = ()) -> dict:
    """What a test set's record says where it is that benchmark."""
    return {"name": "CBSD68", "images": 68, "layout": "", "checks": list(checks)}


class Run:
    """Small artifacts of a run, made by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: dict[str, Stage] = {}
        self.artifacts: dict[str, Artifact] = {}

    def folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, name: str, kind: str, inputs: tuple[str, ...] = (), **sealed) -> None:
        parents = {each: self.stages[each] for each in inputs}
        self.stages[name] = Stage(
            name=name,
            kind=kind,
            version=1,
            config=config.Section(),
            run=lambda job: {},
            inputs=parents,
        )
        self.artifacts[name] = seal(
            self.folder(name),
            stage=name,
            version=1,
            fingerprint="f" * 64,
            config=sealed.get("config", {"seed": 0}),
            inputs={},
            summary=sealed.get("summary", {}),
            seconds=12.5,
        )

    @contextmanager
    def changing_scores(self, model: str) -> Iterator[dict]:
        """The scores.json of "finetune" or "dncnn" at denoising, written back as it is left."""
        path = self.root / f"evaluate-{model}-denoise30" / "scores.json"
        record = json.loads(path.read_text())
        yield record
        path.write_text(json.dumps(record))

    def report(self) -> tuple[str, dict]:
        stage = report_stage("my <run>", self.stages)
        folder = self.folder("report")
        job = Job(
            config=stage.config,
            fingerprint="0" * 64,
            folder=folder,
            inputs=self.artifacts,
            runtime=config.Runtime(),
        )
        summary = stage.run(job)
        return (folder / "report.html").read_text(encoding="utf-8"), summary


def small_run(root: Path) -> Run:
    """Two models trained and scored on one task; what could not be used is named `NASTY`."""
    run = Run(root)
    unreadable = [{"path": NASTY, "reason": "truncated"}]
    source = {
        "root": "/x",
        "images": 4,
        "validation": 1,
        "bytes": 5000,
        "unreadable": [{"path": "locked.png", "reason": "permission denied"}],
        "unreadable_found": 1,
        "other_files": 2,
    }
    run.add("source@photos", "source", summary=source)
    shards = run.folder("corrupt-denoise30@photos") / "shards"
    shards.mkdir()
    rng = np.random.default_rng(0)
    skipped = [each | {"kind": "truncated"} for each in unreadable]
    for split in ("train", "validation"):
        with writing_shard(shards, shard_name(split, 0), image_format="npy") as writer:
            for number in range(3):
                clean = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                writer.add(f"{number:016x}-0", {"clean": clean}, {"task": "denoise30"})
            writer.finish(skipped if split == "train" else ())
    run.add(
        "corrupt-denoise30@photos",
        "corrupt",
        ("source@photos",),
        config={"task": {"name": "denoise30", "corruption": "GaussianNoise", "sigma_255": 30}},
        summary={
            "task": "denoise30",
            "format": "npy",
            "train_samples": 24,
            "validation_samples": 3,
            "skipped_images": 1,
            "skipped": unreadable,
            "skipped_by_reason": {"truncated": 1},
            "bytes": 123456,
            "clip": True,
        },
    )
    training = {"samples": 64, "steps": 8, "parameters": 9, "world_size": 2, "seconds": 3.0}
    for kind, loss in (("finetune", "l1/denoise30"), ("dncnn", "l2/denoise30")):
        name = f"{kind}-denoise30"
        rows = [
            {
                "step": i,
                "samples": i * 8,
                "loss": 9 / i,
                loss: 9 / i,
                "learning_rate": 1e-4,
                "data_wait": 0.01,
                "samples_per_second": 80.0,
            }
            for i in range(1, 9)
        ]
        text = "".join(json.dumps(each) + "\n" for each in rows)
        (run.folder(name) / "metrics.jsonl").write_text(text)
        run.add(
            name,
            kind,
            ("corrupt-denoise30@photos",),
            summary=training | {"skipped_steps": 1 if kind == "dncnn" else 0},
        )
        psnr = 27.25 if kind == "finetune" else 28.5
        folder = run.folder(f"evaluate-{name}")
        write_scores(folder, model=kind, task="denoise30", psnr=psnr, image=NASTY)
        run.add(
            f"evaluate-{name}",
            "evaluate",
            (name, "source@photos"),
            config={"test_sets": {"mine": {"source": "photos", "path": None}}},
        )
    return run
