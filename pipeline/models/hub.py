"""Model folders as the Hugging Face Hub knows them: model.safetensors, config.json, README.md."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.artifacts import write_atomically
from pipeline.model_configs import DnCNNConfig, IPTConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD_HEAD = """---
{{ card_data }}
---

"""
CARD_FOOT = """
Trained on: {{ trained_on }}

Fingerprint of the run's config: `{{ fingerprint }}`

Parameters: {{ parameters }}
"""
IPT_CARD = (
    CARD_HEAD
    + """# Image Processing Transformer

Restores RGB photographs with one shared transformer ([paper](https://arxiv.org/abs/2012.00364)).

Tasks: {{ tasks }}

```python
from pipeline.models.ipt import IPT
from pipeline.restore import restore

model = IPT.from_pretrained("this folder")
# photograph: (3, H, W), RGB in [0, 1]
restored = restore(
    lambda x: model(x, "{{ example }}"), photograph,
    scale=model.config.scales["{{ example }}"], patch_size=model.config.size.patch_size,
)
```
"""
    + CARD_FOOT
)
DNCNN_CARD = (
    CARD_HEAD
    + """# DnCNN

A convolutional denoiser ([paper](https://arxiv.org/abs/1608.03981)), trained as a baseline.

Tasks: {{ tasks }}

```python
from pipeline.models.dncnn import DnCNN

model = DnCNN.from_pretrained("this folder")
restored = model(photographs)  # (N, C, H, W) in [0, 1]
```
"""
    + CARD_FOOT
)


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
            raise ModelFileError(f"{source}: no such folder, and not the name of a Hub repository")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelFileError(
                    f"{source}: has no {name}; a model folder holds {CONFIG}, {WEIGHTS}"
                )
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
        record = {"architecture": type(self).__name__, **asdict(self.config)}
        # Keys are not sorted: the order of the tasks is part of the model.
        write_atomically(save_directory / CONFIG, json.dumps(record, indent=1) + "\n")

    def generate_model_card(
        self,
        *,
        trained_on: str = "not recorded",
        fingerprint: str = "not recorded",
        tasks: tuple[str, ...] = (),
    ) -> ModelCard:
        """The README.md of the folder; `save_pretrained(model_card_kwargs=...)` gives these."""
        if not tasks and isinstance(self.config, IPTConfig):
            tasks = tuple(self.config.scales)
        return ModelCard.from_template(
            card_data=self._hub_mixin_info.model_card_data,
            template_str=self._hub_mixin_info.model_card_template,
            tasks=", ".join(tasks) or "not recorded",
            example=next(iter(tasks), ""),
            trained_on=trained_on,
            fingerprint=fingerprint,
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
    expected = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    faults = faults_of(expected, state)
    if faults:
        raise ModelFileError(
            f"{origin}: does not fit this {type(model).__name__}: {'; '.join(faults)}"
        )
    model.load_state_dict(state)


def faults_of(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[str]:
    """One phrase per tensor that is missing, unexpected, mis-shaped or not finite."""
    faults = [f"{name} is missing" for name in expected if name not in state]
    for name, tensor in state.items():
        if name not in expected:
            faults.append(f"{name} is unexpected")
        elif tuple(tensor.shape) != expected[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, this model {expected[name]}")
        elif not bool(torch.isfinite(tensor).all()):
            faults.append(f"{name} holds NaN or infinity")
    return faults


def _read_config(path: Path, model: type[HubModel]) -> IPTConfig | DnCNNConfig:
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ModelFileError(f"{path}: not readable as JSON ({error})") from error
    architecture = record.pop("architecture", None) if isinstance(record, dict) else None
    if architecture != model.__name__:
        raise ModelFileError(f"{path}: architecture is {architecture!r}, not {model.__name__!r}")
    try:
        return TypeAdapter(model.config_class).validate_python(record)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ModelFileError(f"{path}: {'; '.join(faults)}") from error
