"""One YAML file is one run: its sections, with their defaults and allowed values.

The defaults are the paper's recipe. Everything here except `Runtime` decides results and enters
fingerprints; `Runtime` decides only where, how fast and how talkative.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.config_section import Address, Fraction, Momentum, Name, Positive, Rate, Section
from pipeline.model_configs import DnCNNConfig, IPTSize
from pipeline.tasks import IPT_TASKS, PUBLISHED_ORDER, TASKS


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"unknown task; allowed: {', '.join(TASKS)}")
    return name


TaskName = Annotated[str, AfterValidator(_known_task)]


class SourceConfig(Section):
    """Photographs, or real pairs of clean and corrupted ones.

    `path` is one of
      a folder, read recursively, as ImageNet's class folders; in the package after `package:`;
      tars of a webdataset: data/train-{000..146}.tar, data/*.tar or https://…/train-{000..146}.tar;
      parquet files: data/*.parquet;
      a dataset of the Hugging Face Hub, or a folder that is one: hf:owner/name@split (train), or
        hf:owner/name:subset@split; of another revision than main: …@split#revision.
    What is local is relative to the working directory.
    """

    path: str | None = None
    # Instead of `path`, folders of pairs with the same names: tasks read them as they are.
    clean: str | None = None
    corrupted: str | None = None
    validation_images: Positive = 64  # how many a keyed hash keeps out of training
    # Instead of the hash: patterns of relative paths to keep out, such as "val/*".
    held_out: tuple[str, ...] = ()
    # Go on without what a damaged tar or a folder that may not be listed hides, however much.
    skip_damaged: bool = False

    @property
    def is_pairs(self) -> bool:
        return self.clean is not None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.clean is None) != (self.corrupted is None):
            raise ValueError("real pairs need both clean and corrupted, a folder each")
        if (self.path is None) == (self.clean is None):
            raise ValueError("a source names either a path, or clean and corrupted folders")
        return self


class CorruptConfig(Section):
    crops_per_image: Positive = 8
    patch_size: Positive = 48  # of the corrupted image; the clean one is `scale` times larger
    samples_per_shard: Positive = 16384
    format: Literal["npy", "png"] = "npy"  # png: a third fewer bytes, twice to three times the time
    clip_noise: bool = True  # IPT clips noisy images to [0, 255]; DnCNN's recipe does not
    border: Literal["symmetric", "replicate"] = "symmetric"
    # Of the photographs, what may be damaged, too small or not to be listed; decides no content.
    most_skipped: Fraction = 0.1


class RainLayersConfig(Section):
    preset: Literal["light", "heavy"] = "light"  # like Rain100L, like Rain100H
    layers: Annotated[int, Field(ge=2)] = 200  # a quarter is kept out of training
    size: Annotated[int, Field(ge=64)] = 512
    # Grey streak images to use instead of rendered ones.
    folder: Annotated[str, AfterValidator(os.path.expanduser)] | None = None


class DataConfig(Section):
    """How a training stream is read; design: the order is a pure function of seed and step."""

    lanes: Positive = 1
    window: Positive | None = None  # shards shuffled together; None: all of a lane
    fresh_noise: bool = True  # new noise in every pass; False: the same for ever
    flips_and_rotations: bool = False


class ContrastiveConfig(Section):
    form: Literal["supcon", "paper"] = "supcon"
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    images: Annotated[int, Field(ge=2)] = 8  # of one task, compared with each other


class TrainingConfig(Section):
    """What all three trainings share. Progress is counted in samples, never in epochs."""

    source: str | None = None  # None: the source that pretraining reads
    samples: Positive = 384_000_000
    batch: Positive = 256  # samples per step, over all processes and accumulation
    learning_rate: Rate = 5e-5
    final_learning_rate: Rate = 2e-5
    schedule: Literal["step", "cosine"] = "step"
    drop_at: Fraction = 2 / 3  # where `step` falls to the final rate, as a fraction of samples
    warmup_samples: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    clip_norm: Rate | None = None  # of the gradient: of the whole, or with `clip: tensor` of each
    clip: Literal["global", "tensor"] = "global"
    # An exponential average of the weights, by this much of itself a step, is what is exported.
    ema_decay: Momentum | None = None
    max_skipped_in_a_row: Positive = 5  # steps skipped for a non-finite loss or gradient
    precision: Literal["float32", "bfloat16"] = "float32"
    deterministic: bool = False  # a GPU then gives the same bits every time, more slowly
    data: DataConfig = DataConfig()

    @model_validator(mode="after")
    def _clipping_is_whole(self) -> Self:
        if self.clip == "tensor" and self.clip_norm is None:
            raise ValueError("clip: tensor needs clip_norm, the most that a gradient's norm may be")
        return self


class PretrainConfig(TrainingConfig):
    tasks: tuple[TaskName, ...] = PUBLISHED_ORDER  # none: the run has no IPT
    # one: a step trains one task, as the paper; all: every micro-batch holds every task.
    tasks_per_step: Literal["one", "all"] = "one"
    contrastive: ContrastiveConfig = ContrastiveConfig()
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    @model_validator(mode="after")
    def _batch_holds_all_tasks(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: a task is named twice")
        if self.tasks and self.tasks_per_step == "all" and self.batch % len(self.tasks):
            raise ValueError(
                f"batch: {self.batch} does not divide into {len(self.tasks)} equal tasks; "
                f"use a multiple of {len(self.tasks)}, or tasks_per_step: one"
            )
        return self


class FinetuneConfig(TrainingConfig):
    pretrained: bool = True  # False: from random weights, to see what pretraining gives
    samples: Positive = 2_000_000
    learning_rate: Rate = 2e-5
    precision: Literal["float32", "bfloat16"] = "bfloat16"


class DnCNNTrainingConfig(TrainingConfig):
    model: DnCNNConfig = DnCNNConfig()
    samples: Positive = 11_904_000  # 50 epochs of 1860 batches
    batch: Positive = 128
    learning_rate: Rate = 1e-3
    final_learning_rate: Rate = 1e-4
    drop_at: Fraction = 0.6
    statistics_batch: Annotated[int, Field(ge=2)] = 128  # images behind one batch-norm statistic


class TestSetConfig(Section):
    """Photographs to evaluate on: the validation images of a source, or a folder of one's own."""

    source: str | None = None
    path: str | None = None  # clean images
    corrupted: str | None = None  # their corrupted versions; None: corrupted here, by the task
    tasks: tuple[TaskName, ...] | None = None  # None: every task

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.path is None):
            raise ValueError("a test set names either a source or a path")
        if self.corrupted is not None and self.path is None:
            raise ValueError("corrupted: needs the path of the clean images")
        if self.corrupted is not None and self.tasks is None:
            raise ValueError("corrupted: name in `tasks` the tasks whose corruption it shows")
        return self


class EvaluateConfig(Section):
    test_sets: dict[Name, TestSetConfig] = Field(default_factory=dict)
    benchmarks: str | None = None  # a folder with Set5/, CBSD68/, ...: what is for a task is used
    sigmas: tuple[Rate, ...] = (10, 70)  # that denoisers meet there beside their own
    tiling: Literal["overlap", "official"] = "overlap"
    self_ensemble: bool = False
    seed: int = 0  # of the noise and the rain


class Runtime(Section):
    """Everything that changes throughput and places, never content. In no fingerprint."""

    runs: Annotated[Path, AfterValidator(Path.expanduser)] = Path("runs")
    processes: Positive = 1  # per machine, for the distributed stages
    workers: Annotated[int, Field(ge=0)] = 2  # of the corrupt stages and of each loader
    threads_per_process: Positive = 1
    engine: Literal["launcher", "ddp", "zero0", "zero1", "zero2", "zero3"] = "launcher"
    micro_batch: Positive | None = None  # most samples in memory at once; None: batch / processes
    # IPT keeps a tenth per sample for the backward pass and computes a third more.
    activation_checkpointing: bool = False
    compile: bool = False  # by torch.compile: faster steps on a GPU after a minute; other bits
    log_every_steps: Positive = 50
    images_every_steps: Positive = 2000
    checkpoint_every_steps: Positive = 1000
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3  # the last ones
    keep_every_steps: Positive | None = None  # and those of every so many steps, for ever
    # A training in which nothing moves for so long, or for 20 times its usual step, is ended; until
    # its first step is done, it may take longer.
    stall_seconds: Rate = 600.0
    first_step_seconds: Rate = 3600.0
    trackers: tuple[str, ...] = ("tensorboard",)  # any that accelerate knows
    # Where a copy of runs/<name> is: https://…, s3://… or a path. Trainings fetch the tars that
    # runs/ lacks from there; records and manifests are needed here.
    shards_at: Address | None = None
    shard_cache: Path = Path("~/.cache/ipt-pipeline")
    shard_cache_gib: Rate = 200.0  # for all processes of a machine together
    verify_shards: bool = False  # hash every shard before a training starts


class RunConfig(Section):
    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    sources: Annotated[dict[Name, SourceConfig], Field(min_length=1)]
    corrupt: CorruptConfig = CorruptConfig()
    rain_layers: RainLayersConfig = RainLayersConfig()
    ipt: IPTSize = IPTSize()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: dict[TaskName, FinetuneConfig] = Field(default_factory=dict)
    dncnn: dict[TaskName, DnCNNTrainingConfig] = Field(default_factory=dict)
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: Runtime = Runtime()

    @property
    def trainings(self) -> dict[str, TrainingConfig]:
        """Every training of the run by its dotted key."""
        trainings: dict[str, TrainingConfig] = {}
        trainings |= {"pretrain": self.pretrain} if self.pretrain.tasks else {}
        trainings |= {f"finetune.{task}": each for task, each in self.finetune.items()}
        trainings |= {f"dncnn.{task}": each for task, each in self.dncnn.items()}
        return trainings

    def source_of(self, training: TrainingConfig) -> str:
        """The name of the source that a training reads."""
        return training.source or self.pretrain.source or next(iter(self.sources))

    @model_validator(mode="after")
    def _models_fit_their_tasks(self) -> Self:
        if not self.pretrain.tasks and not self.dncnn:
            raise ValueError("pretrain.tasks: none, and no dncnn; a run trains at least one model")
        for name in self.pretrain.tasks:
            if name not in IPT_TASKS:
                raise ValueError(
                    f"pretrain.tasks: {name} is grey, and the heads of an IPT take RGB; train a "
                    f"DnCNN for it, as dncnn.{name}"
                )
        for name in self.finetune:
            if name not in self.pretrain.tasks:
                raise ValueError(
                    f"finetune.{name}: not in pretrain.tasks, which has "
                    f"{', '.join(self.pretrain.tasks) or 'none'}"
                )
        for name, dncnn in self.dncnn.items():
            task = TASKS[name]
            if task.scale != 1:
                raise ValueError(f"dncnn.{name}: DnCNN keeps the size of its input; use ×1 tasks")
            if dncnn.model.channels != task.channels:
                raise ValueError(
                    f"dncnn.{name}.model.channels: {dncnn.model.channels}, but the photographs of "
                    f"the task have {task.channels}; use {task.channels}"
                )
            if not dncnn.model.batch_norm:  # gradients vanish in so many layers without
                raise ValueError(f"dncnn.{name}.model.batch_norm: training needs it; leave it out")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        named = {f"{key}.source": training.source for key, training in self.trainings.items()}
        test_sets = self.evaluate.test_sets.items()
        named |= {f"evaluate.test_sets.{key}.source": each.source for key, each in test_sets}
        for key, source in named.items():
            if source is not None and source not in self.sources:
                known = ", ".join(self.sources)
                raise ValueError(f"{key}: {source!r} is not a source of this run; known: {known}")
        if self.pretrain.tasks and self.ipt.patch_size != self.corrupt.patch_size:
            raise ValueError(
                f"ipt.patch_size: {self.ipt.patch_size} differs from "
                f"corrupt.patch_size: {self.corrupt.patch_size}"
            )
        if self.evaluate.tiling == "official" and self.ipt.patch_size % 4:
            raise ValueError(
                f"evaluate.tiling: official needs an ipt.patch_size that is a multiple of 4, not "
                f"{self.ipt.patch_size}; use overlap"
            )
        try:
            self.ipt.check()
        except ValueError as error:
            raise ValueError(f"ipt.{error}") from None
        return self
