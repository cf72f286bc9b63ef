"""Reads a run's YAML file, its parent and the overrides, and says exactly what is wrong."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import RunConfig
from pipeline.config_section import Section

Settings = TypeVar("Settings", bound=Section)


class ConfigError(Exception):
    """A config that can't be run; the message names file, key, value and what is allowed."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two mends: 5e-5 is a number, and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", node.value[number][0].start_mark
            )
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The run that `path` describes, with overrides such as "pretrain.batch=64" put over it."""
    values = _read_with_parent(path)
    for override in overrides:
        _override(values, override)
    values.setdefault("name", path.stem)
    name = f"{path} with --set {' '.join(overrides)}" if overrides else str(path)
    return _validated(RunConfig, values, name)


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """The settings of another kind than a run that `path` holds, read as strictly."""
    return _validated(kind, _read_with_parent(path), str(path))


def _validated(kind: type[Settings], values: dict[str, Any], name: str) -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, name, kind)) from None


def _read_with_parent(path: Path) -> dict[str, Any]:
    values = _read(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: {parent!r} is not the name of a file")
    inherited = _read(path.parent / parent)
    if "extends" in inherited:
        raise ConfigError(f"{path.parent / parent}: extends: a parent can't have a parent itself")
    return _merge(inherited, values)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: can't be read: {reason}") from error
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not a mapping of sections")
    return _without_aliases(values)


def _without_aliases(value: Any) -> Any:
    """Each `*alias` as a value of its own: an override of one must not change the others."""
    if isinstance(value, dict):
        return {key: _without_aliases(inner) for key, inner in value.items()}
    return [_without_aliases(inner) for inner in value] if isinstance(value, list) else value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write it as key.subkey=value")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {section!r} holds {inner!r}, not a section")
        values = inner
    try:
        values[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error


def _explain(error: ValidationError, name: str, kind: type[Section]) -> str:
    """One line per mistake: the dotted key, the value, what is allowed."""
    lines = []
    for mistake in error.errors():
        location = [str(part) for part in mistake["loc"] if part != "[key]"]
        key = ".".join(location)
        value = mistake.get("input")
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _keys_of_section(kind, location[:-1])
            near = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            message = f"unknown key (value {value!r}){hint or '.'} Known here: {', '.join(known)}"
        elif mistake["type"] == "missing":
            message = "required, but not given"
        elif not isinstance(value, dict | list | tuple):
            message = f"{value!r}: {message}"
        lines.append(f"{name}: {key}: {message}" if key else f"{name}: {message}")
    return "\n".join(lines)


def _keys_of_section(kind: type[Section], location: list[str]) -> list[str]:
    """The keys that are known at a dotted place of the config."""
    section: Any = kind
    for part in location:
        fields = getattr(section, "model_fields", None) or section.__dataclass_fields__
        if part in fields:
            annotation = getattr(fields[part], "annotation", None) or fields[part].type
            nested = [each for each in (annotation, *get_args(annotation)) if _is_section(each)]
            section = nested[0] if nested else annotation
    fields = getattr(section, "model_fields", None) or section.__dataclass_fields__
    return list(fields)


def _is_section(annotation: Any) -> bool:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_model or hasattr(annotation, "__dataclass_fields__")
