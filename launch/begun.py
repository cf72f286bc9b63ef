"""Notices a training that is about to begin anew only because a value of its config was changed.

A changed value is another fingerprint and so another folder. Each training's folder holds a record
of what it began with, so that it can be said what was changed, and a job that SLURM has requeued,
which is to go on, does not silently start at step 0.
"""

import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import JSON, MANIFEST, Artifact, ArtifactError, read_manifest, write_json
from pipeline.config_file import ConfigError
from pipeline.graph import Resolved
from pipeline.training.checkpoint_names import CHECKPOINTS, newest_first, step_of

logger = logging.getLogger(__name__)

RECORD = ".begun.json"  # hidden: no part of the artifact, whose manifest says the same
# What the keys of a stage's config are in the run's; those of `training` depend on the stage.
KEYS = {"size": "ipt", "task.clip": "corrupt.clip_noise", "task.border": "corrupt.border"}


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a stage was begun with: a record, or the manifest of one that is done."""

    stage: str
    version: int
    config: dict[str, JSON]
    inputs: dict[str, str]  # role: identity
    job: str | None = None  # of SLURM, that worked on it last


def refuse_in_requeue(resolved: Resolved, inputs: Mapping[str, Artifact]) -> None:
    """Raise ConfigError where a requeued job would begin what it is to go on with.

    Every process may ask; nothing is written.
    """
    other = _left_behind(resolved)
    if other is None or not _is_requeued(other):
        return
    raise ConfigError(
        f"{_situation(resolved, inputs, other)} This job was requeued, so it is to go on, not to "
        f"begin anew: nothing was begun. {_remedy(resolved, inputs, other)}; to train anew all the "
        "same, submit a new job"
    )


def record_beginning(resolved: Resolved, inputs: Mapping[str, Artifact]) -> None:
    """Write down what the stage begins or goes on with; warn where another one is left behind."""
    assert resolved.folder is not None
    other = _left_behind(resolved)
    if other is not None:
        logger.warning(
            "%s %s", _situation(resolved, inputs, other), _remedy(resolved, inputs, other)
        )
    begun = _now(resolved, inputs)
    record = {"schema": 1, **begun.__dict__, "fingerprint": resolved.fingerprint}
    write_json(resolved.folder / RECORD, record)


def _now(resolved: Resolved, inputs: Mapping[str, Artifact]) -> Begun:
    stage = resolved.stage
    return Begun(
        stage=stage.name,
        version=stage.version,
        config=stage.config.model_dump(mode="json"),
        inputs={role: artifact.identity for role, artifact in inputs.items()},
        job=os.environ.get("SLURM_JOB_ID"),
    )


def _left_behind(resolved: Resolved) -> Path | None:
    """The unfinished training of the same stage that got a checkpoint last, if this one has not
    begun yet."""
    folder = resolved.folder
    assert folder is not None
    if (folder / RECORD).exists() or newest_first(folder / CHECKPOINTS):
        return None
    newest: dict[Path, float] = {}  # folder: when it got its last checkpoint
    for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
        is_aside = "." in other.name  # as .replaced-… is
        if other == folder or is_aside or (other / MANIFEST).exists():
            continue
        checkpoint = next(iter(newest_first(other / CHECKPOINTS)), None)
        if checkpoint is not None:
            newest[other] = checkpoint.stat().st_mtime
    return max(newest, key=lambda each: newest[each]) if newest else None


def _is_requeued(other: Path) -> bool:
    """Whether SLURM has started this job again, and it was this one that trained there."""
    if not int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return False
    begun = _read(other)
    # Else the job may reach this stage for the first time, and the other one be an old experiment.
    return begun is None or begun.job in (None, os.environ.get("SLURM_JOB_ID"))


def _read(folder: Path) -> Begun | None:
    try:
        record = json.loads((folder / RECORD).read_text())
        return Begun(**{name: record[name] for name in Begun.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):  # an older version wrote none
        return None


def _situation(resolved: Resolved, inputs: Mapping[str, Artifact], other: Path) -> str:
    checkpoint = next(iter(newest_first(other / CHECKPOINTS)), None)
    step = (checkpoint and step_of(checkpoint)) or 0
    differ = [
        f"{name}: {_text(old)} -> {_text(new)}"
        for name, old, new in _differences(resolved, inputs, other)
    ]
    return (
        f"{resolved.stage.name}: begins at step 0 in {resolved.folder}, while {other} has a "
        f"checkpoint of step {step:,} and is not finished. What differs (old -> new): "
        f"{'; '.join(differ) or 'not recorded'}."
    )


def _remedy(resolved: Resolved, inputs: Mapping[str, Artifact], other: Path) -> str:
    values = [
        f"--set {shlex.quote(f'{name}={json.dumps(old)}')}"
        for name, old, _ in _differences(resolved, inputs, other)
        if " " not in name
    ]
    how = f", by {' '.join(values)}" if values else ""
    return f"With the old values set again{how}, the same command goes on from there"


Difference = tuple[str, JSON, JSON]  # a dotted key or a description; the old value and the new


def _differences(
    resolved: Resolved, inputs: Mapping[str, Artifact], other: Path
) -> list[Difference]:
    before = _read(other)
    if before is None:
        return []
    assert resolved.folder is not None
    known = {
        artifact.identity: Begun(
            stage=artifact.manifest.stage,
            version=artifact.manifest.version,
            config=artifact.manifest.config,
            inputs=artifact.manifest.inputs,
        )
        for artifact in _artifacts(resolved.folder.parents[1])
    }
    found = _compared(before, _now(resolved, inputs), known)
    return list({name: (name, old, new) for name, old, new in found}.values())


def _artifacts(run_folder: Path) -> Iterator[Artifact]:
    for path in run_folder.glob(f"*/*/{MANIFEST}"):
        try:
            manifest = read_manifest(path.parent)
        except ArtifactError:
            continue
        if manifest is not None:
            yield Artifact(folder=path.parent, manifest=manifest)


def _compared(old: Begun, new: Begun, known: Mapping[str, Begun]) -> Iterator[Difference]:
    """What differs, through the inputs: of them, those whose own config or version does."""
    if old.version != new.version:
        yield f"the version of stage {new.stage}", old.version, new.version
    values = [dict(_flat(each.config)) for each in (old, new)]
    for key in dict.fromkeys([*values[1], *values[0]]):
        before, after = (each.get(key) for each in values)
        if before != after:
            yield _key_of_run(new.stage, key), before, after
    for role in dict.fromkeys([*new.inputs, *old.inputs]):
        before, after = old.inputs.get(role, "none"), new.inputs.get(role, "none")
        if before == after:
            continue
        one, other = known.get(before), known.get(after)
        deeper = list(_compared(one, other, known)) if one and other else []
        # Nothing deeper: other photographs, say.
        yield from deeper or [(f"input {role} of {new.stage}", before[:12], after[:12])]


def _flat(config: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, JSON]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _key_of_run(stage: str, key: str) -> str:
    """The dotted key of the run's config behind one of a stage's; with a space, a description."""
    section, _, rest = key.partition(".")
    if key in ("seed", *KEYS):
        return KEYS.get(key, key)
    if section == "training":  # pretrain; finetune-sr2 is finetune.sr2
        return f"{stage.replace('-', '.', 1)}.{rest}"
    if section in KEYS:
        return f"{KEYS[section]}.{rest}"
    if section == "rain_layers":
        return key
    if stage.startswith("corrupt-") and section != "task":
        return f"corrupt.{key}"
    if stage.startswith("source@"):
        return f"sources.{stage.partition('@')[2]}.{key}"
    return f"{key} of {stage}"


def _text(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False)
