"""Model folders as the Hugging Face Hub knows them: model.safetensors, config.json, README.md."""

import copy
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.artifacts import JSON, write_atomically
from pipeline.model_configs import DnCNNConfig, IPTConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
IMPORT = "`ipt import-weights` makes one of published weights"
LISTED_ONE_BY_ONE = 12  # names with the same fault


class ModelFileError(ValueError):
    """Weights or a config that can't become a model; the message names the file and each fault."""


class HubModel(nn.Module, PyTorchModelHubMixin):
    """A model that saves itself as a Hub folder, uploads it, and loads it, also offline.

    Loading is strict: the mixin's own would leave missing weights at random and drop others.
    """

    config: IPTConfig | DnCNNConfig
    config_class: ClassVar[type[IPTConfig] | type[DnCNNConfig]]

    def __init_subclass__(
        cls, *, config_class: type[IPTConfig] | type[DnCNNConfig], card: str
    ) -> None:
        super().__init_subclass__(
            model_card_template=card,
            license="apache-2.0",
            library_name="ipt-pretrain",
            pipeline_tag="image-to-image",
            tags=["image-restoration"],
        )
        cls.config_class = config_class

    @classmethod
    def from_pretrained(  # type: ignore[override]  # names what the mixin passes through
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """The model of a local folder or of a Hub repository, in evaluation mode, on the CPU."""
        source = pretrained_model_name_or_path
        if os.path.isdir(source):
            folder = Path(source)
        elif isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
            folder = Path(
                snapshot_download(
                    source,
                    allow_patterns=[CONFIG, WEIGHTS],
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                )
            )
        else:
            raise _no_folder(source)
        check_model_folder(folder)
        config = _read_config(folder / CONFIG, cls)
        try:
            model = cls(config)
        except ValueError as error:
            raise ModelFileError(f"{folder / CONFIG}: {error}") from error
        load_weights(model, read_weights(folder / WEIGHTS), origin=str(folder / WEIGHTS))
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: each.detach().cpu().contiguous() for name, each in self.state_dict().items()}
        write_atomically(save_directory / WEIGHTS, save(state, metadata={"format": "pt"}))
        write_atomically(save_directory / CONFIG, self.config_text())

    def config_text(self) -> str:
        """The config.json of the folder. Keys are not sorted: the order of tasks is the model's."""
        record = {"architecture": type(self).__name__, **asdict(self.config)}
        return json.dumps(record, indent=1) + "\n"

    def compile_parts(self, *, backend: str = "inductor") -> None:
        """Let torch.compile make faster what is worth it; names and weights stay as they are."""
        self.compile(dynamic=False, backend=backend)

    def generate_model_card(
        self,
        *,
        trained_on: str = "not recorded",
        fingerprint: str = "not recorded",
        checkpoint: str = "",
        tasks: tuple[str, ...] = (),
        published_file: str = "",
        sha256: str = "",
    ) -> ModelCard:
        """The README.md of the folder; `save_pretrained(model_card_kwargs=...)` gives these.

        Of imported weights, `published_file` and its `sha256` are the origin; `checkpoint` says
        how far a training was that gave them.
        """
        if not tasks and isinstance(self.config, IPTConfig):
            tasks = tuple(self.config.scales)
        card_data = copy.deepcopy(self._hub_mixin_info.model_card_data)
        if published_file:
            card_data.license = "other"
        return ModelCard.from_template(
            card_data=card_data,
            template_str=self._hub_mixin_info.model_card_template,
            tasks=", ".join(tasks) or "not recorded",
            example=next(iter(tasks), ""),
            trained_on=trained_on,
            fingerprint=fingerprint,
            checkpoint=checkpoint,
            published_file=published_file,
            sha256=sha256,
            parameters=f"{self.config.parameters:,}",
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or ModelFileError."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a readable safetensors file ({error})") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load all of `state` into all of `model`, or raise ModelFileError with every fault."""
    ours = model.state_dict()
    if not ours.keys() & state.keys():
        raise ModelFileError(
            f"{origin}: another model, not this {type(model).__name__}: it holds "
            f"{first_names(state)}"
        )
    faults = faults_of(
        {name: tuple(each.shape) for name, each in ours.items()},
        state,
        integers=[name for name, each in ours.items() if not each.is_floating_point()],
    )
    if faults:
        raise ModelFileError(
            f"{origin}: does not fit this {type(model).__name__}: {'; '.join(faults)}"
        )
    model.load_state_dict(state)


def faults_of(
    expected: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Tensor],
    *,
    integers: Collection[str] = (),
) -> list[str]:
    """What is missing, unexpected, of another shape or type, or not finite in float32.

    Every name is given; where many have the same fault, in braces. Only those of `integers` may
    hold no floats.
    """
    names: dict[str, list[str]] = {}  # by fault
    for name in expected:
        if name not in state:
            names.setdefault("is missing", []).append(name)
    for name, tensor in state.items():
        if name not in expected:
            fault = "is unexpected"
        elif tuple(tensor.shape) != expected[name]:
            fault = f"has shape {tuple(tensor.shape)}, this model {expected[name]}"
        elif tensor.is_floating_point() == (name in integers):
            fault = f"is of {tensor.dtype}, not {'integers' if name in integers else 'floats'}"
        elif not bool(torch.isfinite(tensor.float()).all()):
            fault = "holds NaN or infinity"
        else:
            continue
        names.setdefault(fault, []).append(name)
    return [
        f"{each} {fault}"
        for fault, group in names.items()
        for each in (group if len(group) <= LISTED_ONE_BY_ONE else in_braces(group))
    ]


def first_names(state: Mapping[str, Tensor]) -> str:
    """Enough to recognise a model by."""
    return ", ".join([*list(state)[:3], *(["..."] if len(state) > 3 else [])]) or "nothing"


def in_braces(names: Sequence[str]) -> list[str]:
    """The same names, joined where they differ in one part: `layers.{0..11}.{weight,bias}`."""
    rows = [tuple(name.split(".")) for name in names]
    for place in reversed(range(max(map(len, rows)))):
        parts: dict[tuple[tuple[str, ...], ...], list[str]] = {}  # by what stands around them
        for row in rows:
            around = row[:place], row[place + 1 :], row[:0] if place < len(row) else row
            parts.setdefault(around, []).extend(row[place : place + 1])
        rows = [(*before, *_joined(each), *after) for (before, after, _), each in parts.items()]
    return [".".join(row) for row in rows]


def _joined(parts: Sequence[str]) -> tuple[str, ...]:
    if len(parts) < 2:
        return tuple(parts)
    numbers = sorted(int(part) for part in parts if part.isdecimal())
    if len(numbers) == len(parts) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return (f"{{{numbers[0]}..{numbers[-1]}}}",)
    return (f"{{{','.join(parts)}}}",)


def check_model_folder(folder: Path) -> str:
    """The architecture that a local model folder names, or ModelFileError."""
    if not folder.is_dir():
        raise _no_folder(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelFileError(
                f"{folder}: has no {name}; a model folder holds {CONFIG}, {WEIGHTS}; {IMPORT}"
            )
    return _known_architecture(folder / CONFIG)


def model_of_config(path: Path) -> HubModel:
    """A model with the config of a config.json and no weights yet, or ModelFileError."""
    # Only a kind that is imported is known; each of them imports this module.
    import pipeline.models.dncnn
    import pipeline.models.ipt  # noqa: F401

    kinds = {each.__name__: each for each in HubModel.__subclasses__()}
    model = kinds[_known_architecture(path)]
    return model(_read_config(path, model))


def read_model_config(folder: Path) -> IPTConfig | DnCNNConfig:
    """What the model of a local folder is, without building it, or ModelFileError."""
    kinds = {each.__name__: each for each in HubModel.__subclasses__()}
    return _read_config(folder / CONFIG, kinds[check_model_folder(folder)])


def _known_architecture(path: Path) -> str:
    architecture = _read_record(path).get("architecture")
    known = [each.__name__ for each in HubModel.__subclasses__()]
    if architecture not in known:
        raise ModelFileError(f"{path}: architecture is {architecture!r}, not {' or '.join(known)}")
    return architecture


def _no_folder(source: str | Path) -> ModelFileError:
    if os.path.isfile(source):
        return ModelFileError(f"{source}: is a file, not a model folder; {IMPORT}")
    return ModelFileError(f"{source}: no such folder, and not the name of a Hub repository")


def _read_record(path: Path) -> dict[str, JSON]:
    try:
        record = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ModelFileError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise ModelFileError(f"{path}: holds no JSON object")
    return record


def _read_config(path: Path, model: type[HubModel]) -> IPTConfig | DnCNNConfig:
    record = _read_record(path)
    architecture = record.pop("architecture", None)
    if architecture != model.__name__:
        raise ModelFileError(f"{path}: architecture is {architecture!r}, not {model.__name__!r}")
    try:
        return TypeAdapter(model.config_class).validate_python(record)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ModelFileError(f"{path}: {'; '.join(faults)}") from error
