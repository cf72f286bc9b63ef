"""Stages, the edges between them, and what is done, half done or yet to do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pipeline.artifacts import JSON, Artifact, Manifest, canonical_digest, open_artifact
from pipeline.config import Runtime
from pipeline.config_file import ConfigError
from pipeline.config_section import Section

FINGERPRINT_DIGITS = 12  # of a folder's name


class StageError(Exception):
    """A stage that can't go on; the message says what is wrong and what to do."""


class StoppedWithCheckpoint(Exception):  # noqa: N818 - not an error: the same command goes on
    """A stage that was asked to stop and saved its progress first."""


class Progress(Protocol):
    """How a stage tells whoever watches how far it is."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def report_nothing(done: int, total: int, note: str = "") -> None:
    """The progress of a stage that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One execution of a stage: where it writes, what it reads, how it may use the machine."""

    config: Section
    fingerprint: str
    folder: Path  # may hold what an interrupted execution left
    inputs: Mapping[str, Artifact]  # by role
    runtime: Runtime
    progress: Progress = report_nothing
    part: tuple[int, int] = (0, 1)  # part i of n, of an array stage
    # SHA-256 by path in the folder, where the stage took it while it wrote: what may be terabytes
    # is not read again to be sealed.
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb of the pipeline with its config and its inputs.

    `run` writes into `job.folder` and returns the summary for the manifest, or None where other
    parts of an array are still missing. Run again after an interruption, it goes on.
    """

    name: str  # such as corrupt-sr2@photos
    kind: str  # such as corrupt
    version: int  # raised whenever the same config would give other content
    config: Section
    run: Callable[[Job], dict[str, JSON] | None]
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)  # by role
    launch: Literal["single", "array", "distributed"] = "single"
    # Why a finished artifact no longer stands for the outside world (a folder that changed).
    stale: Callable[[Section, Manifest], str | None] | None = None

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """SHA-256 of what decides the content: kind, version, config, identities of the inputs."""
        return canonical_digest(
            {
                "kind": self.kind,
                "version": self.version,
                "config": self.config.model_dump(mode="json", exclude_defaults=True),
                "inputs": dict(inputs),
            }
        )


State = Literal["done", "resume", "fresh"]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A stage as it stands on disk."""

    stage: Stage
    state: State
    reason: str
    fingerprint: str | None  # None while an input's content is unknown
    folder: Path | None
    artifact: Artifact | None

    @property
    def is_stale(self) -> bool:
        return self.state != "done" and self.artifact is not None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The stages of one run, every stage after its inputs."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            assert stage.name not in seen, f"two stages are named {stage.name}"
            assert all(each.name in seen for each in stage.inputs.values()), stage.name
            seen.add(stage.name)

    def stage(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise ConfigError(f"no stage is named {name!r}; this run has: {known}")

    def downstream(self, name: str) -> set[str]:
        """The names of `name` and of every stage that needs it, directly or not."""
        names = {self.stage(name).name}
        for stage in self.stages:
            if names & {each.name for each in stage.inputs.values()}:
                names.add(stage.name)
        return names

    def upstream(self, name: str) -> set[str]:
        """The names of `name` and of every stage that it needs, directly or not."""
        names = {self.stage(name).name}
        for stage in reversed(self.stages):
            if stage.name in names:
                names |= {each.name for each in stage.inputs.values()}
        return names

    def upstream_of_arrays(self) -> set[str]:
        """The names of the stages that can be shared out in parts, and of all that they need."""
        arrays = [stage.name for stage in self.stages if stage.launch == "array"]
        return set().union(*map(self.upstream, arrays))

    def resolve(self, run_folder: Path) -> dict[str, Resolved]:
        """Every stage as it stands in `run_folder`, by name. Reads manifests, computes nothing."""
        resolved: dict[str, Resolved] = {}
        for stage in self.stages:
            resolved[stage.name] = resolve_stage(stage, resolved, run_folder)
        return resolved


def resolve_stage(stage: Stage, known: Mapping[str, Resolved], run_folder: Path) -> Resolved:
    """`stage` as it stands in `run_folder`; `known` has its inputs."""
    identities: dict[str, str] = {}
    for role, parent in stage.inputs.items():
        before = known[parent.name]
        if before.state == "done" and before.artifact is not None:
            identities[role] = before.artifact.identity
        elif parent.stale is None and before.fingerprint is not None:
            identities[role] = before.fingerprint  # what it will be, once made
        else:
            return Resolved(
                stage=stage,
                state="fresh",
                reason=f"waits for {parent.name}",
                fingerprint=None,
                folder=None,
                artifact=None,
            )
    fingerprint = stage.fingerprint(identities)
    folder = run_folder / stage.name / fingerprint[:FINGERPRINT_DIGITS]
    artifact = open_artifact(folder)
    state, reason = _state(stage, folder, artifact)
    return Resolved(
        stage=stage,
        state=state,
        reason=reason,
        fingerprint=fingerprint,
        folder=folder,
        artifact=artifact,
    )


def _state(stage: Stage, folder: Path, artifact: Artifact | None) -> tuple[State, str]:
    if artifact is not None:
        stale = stage.stale(stage.config, artifact.manifest) if stage.stale else None
        if stale:
            return "fresh", stale
        return "done", f"{artifact.manifest.provenance.get('seconds', 0):.1f} s"
    if folder.is_dir():
        return "resume", "began, not finished"
    others = sorted(folder.parent.glob("*/manifest.json")) if folder.parent.is_dir() else []
    if others:
        return "fresh", "config or inputs changed since it was last made"
    return "fresh", "never made"
