"""What the training stages share: from shards to a model folder with its curves and pictures."""

# N batch, C channels, H W height and width

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.artifacts import JSON, Artifact, sync_folder
from pipeline.config import PretrainConfig, Runtime, TrainingConfig
from pipeline.config_file import ConfigError
from pipeline.data.loader import TrainingBatches, WorkerLost, training_batches, validation_crops
from pipeline.data.order import OrderError
from pipeline.data.shard_files import shard_files
from pipeline.data.shards import ShardError
from pipeline.data.streams import Stream, open_stream
from pipeline.graph import Job, StageError
from pipeline.model_configs import COLOURS, DnCNNConfig
from pipeline.models.hub import HubModel
from pipeline.tasks import task_named
from pipeline.training.checkpoint import CheckpointError, CheckpointRefused
from pipeline.training.loop import Trained, fit
from pipeline.training.model_facts import ModelFacts
from pipeline.training.objectives import Objective, as_images
from pipeline.training.placement import LaunchError, Place

MODEL = "model"
IMAGES = "images"
CROPS = 4  # fixed validation crops of each task that are shown

Restore = Callable[[nn.Module, Tensor, str], Tensor]  # model, corrupted images, task name
Crops = Mapping[str, tuple[Tensor, Tensor]]  # task: corrupted and clean, (N, C, H, W) in [0, 1]


def train_and_export(
    job: Job,
    objective: Objective,
    *,
    config: TrainingConfig,
    seed: int,
    shards: Mapping[str, Artifact],
    groups: Mapping[str, Sequence[nn.Parameter]],
    restore: Restore,
) -> dict[str, JSON]:
    """Train a model on the shards of each task, by name, and write its folder and pictures.

    Every rank calls this; rank 0 writes. Returns the summary for the manifest.
    """
    model = objective.model
    assert isinstance(model, HubModel)
    if job.runtime.compile:
        model.compile_parts()
    with _sentences():
        streams, crops = _opened(shards, job.runtime, seed=seed)
        batches = partial(_batches, streams, config=config, seed=seed, workers=job.runtime.workers)

        def checked_batches(place: Place, device: torch.device) -> TrainingBatches:
            _check_shards(streams, place, contents=job.runtime.verify_shards)
            return batches(place, device)

        def pictures(model: nn.Module) -> dict[str, Tensor]:
            # Compiled, it would be compiled once more, for the number of crops.
            is_compiled = job.runtime.compile
            with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
                return _pictures(model, crops, restore)

        trained = fit(
            objective,
            config=config,
            runtime=job.runtime,
            folder=job.folder,
            fingerprint=job.fingerprint,
            batches=checked_batches,
            groups=groups,
            facts=_facts(model, streams, config),
            keys=lambda place, number: batches(place, torch.device("cpu")).samples.keys(number),
            images=pictures,
            progress=job.progress,
        )
        if trained.place.rank == 0:
            # Not the trained module: under ZeRO 3 that holds a part of each weight.
            final = type(model)(model.config)
            trained.checkpoint.load_result(final)
            final.eval()
            _export(final, job, tasks=tuple(shards))
            _write_pictures(job.folder / IMAGES, _pictures(final, crops, restore))
    return _summary(trained, parameters=sum(each.numel() for each in model.parameters()))


def _opened(
    shards: Mapping[str, Artifact], runtime: Runtime, *, seed: int
) -> tuple[dict[str, Stream], dict[str, tuple[Tensor, Tensor]]]:
    """The training streams by task, and the validation crops that are shown."""
    streams, crops = {}, {}
    for name, artifact in shards.items():
        clips = artifact.manifest.summary.get("clip") is not False
        task = task_named(name, clip_noise=clips)
        files = shard_files(artifact.folder, runtime)
        streams[name] = open_stream(artifact.folder, task, split="train", files=files)
        shown = open_stream(artifact.folder, task, split="validation", files=files)
        corrupted, clean = validation_crops(shown, CROPS, seed)
        crops[name] = (as_images(corrupted), as_images(clean))
    return streams, crops


@contextmanager
def _sentences() -> Iterator[None]:
    """What the library finds wrong, as the errors that end a stage with a sentence."""
    try:
        yield
    except (LaunchError, OrderError, CheckpointRefused) as error:
        raise ConfigError(str(error)) from None
    except (CheckpointError, ShardError, WorkerLost) as error:
        raise StageError(str(error)) from error


def _facts(model: HubModel, streams: Mapping[str, Stream], training: TrainingConfig) -> ModelFacts:
    config = model.config
    if isinstance(config, DnCNNConfig):
        height, width, _ = next(iter(streams.values())).reader.shapes["clean"]
        flops = dict.fromkeys(streams, config.flops(height=height, width=width))
        return ModelFacts(config=model.config_text(), forward_flops=flops)
    return ModelFacts(
        config=model.config_text(),
        forward_flops={name: config.flops(name).total for name in streams},
        activation_bytes={
            name: config.activation_bytes(name, precision=training.precision) for name in streams
        },
    )


def _check_shards(streams: Mapping[str, Stream], place: Place, *, contents: bool) -> None:
    """Each process looks at its part of the shards."""
    for stream in streams.values():
        numbers = range(place.rank, len(stream.reader.records), place.world_size)
        stream.reader.check(numbers, contents=contents)


def _batches(
    streams: Mapping[str, Stream],
    place: Place,
    device: torch.device,
    *,
    config: TrainingConfig,
    seed: int,
    workers: int,
) -> TrainingBatches:
    return training_batches(
        streams,
        config=config.data,
        tasks_per_step=config.tasks_per_step if isinstance(config, PretrainConfig) else "all",
        batch=config.batch,
        micro_batch=place.micro_batch,
        seed=seed,
        start_step=place.start_step,
        steps=place.steps,
        rank=place.rank,
        world_size=place.world_size,
        workers=workers,
        device=device,
    )


def _pictures(model: nn.Module, crops: Crops, restore: Restore) -> dict[str, Tensor]:
    """What the model makes of the crops: named images (N, 3, H, W), on the CPU."""
    device = next(model.parameters()).device
    pictures = {}
    for task, (corrupted, clean) in crops.items():
        with torch.no_grad():
            restored = restore(model, corrupted.to(device), task)
        pictures[f"{task}/corrupted"] = corrupted
        pictures[f"{task}/restored"] = restored.float().cpu()
        pictures[f"{task}/clean"] = clean
    return {name: images.expand(-1, COLOURS, -1, -1) for name, images in pictures.items()}


def _write_pictures(folder: Path, pictures: Mapping[str, Tensor]) -> None:
    """One file per name: the crops side by side."""
    folder.mkdir(exist_ok=True)
    for name, images in pictures.items():
        pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()  # NHWC
        strip = np.concatenate(list(pixels), axis=1)
        Image.fromarray(strip).save(folder / f"{name.replace('/', '-')}.png")


def _export(model: HubModel, job: Job, *, tasks: tuple[str, ...]) -> None:
    """The model folder, whole or not at all."""
    temporary, final = job.folder / f".{MODEL}", job.folder / MODEL
    for leftover in (temporary, final):
        shutil.rmtree(leftover, ignore_errors=True)
    inputs = ", ".join(f"{role} {each.identity[:12]}" for role, each in job.inputs.items())
    card = {"trained_on": inputs, "fingerprint": job.fingerprint, "tasks": tasks}
    model.save_pretrained(temporary, model_card_kwargs=card)
    temporary.rename(final)
    sync_folder(job.folder)


def _summary(trained: Trained, *, parameters: int) -> dict[str, JSON]:
    state = trained.checkpoint.state
    return {
        "samples": state.samples,
        "samples_by_task": state.samples_by_task,
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "final_loss": state.loss,
        "parameters": parameters,
        "world_size": trained.place.world_size,
        "skipped_steps": state.skipped,
    }
