"""What a cluster is like: one YAML file, in no fingerprint. See configs/slurm/."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config_section import Positive, Section
from pipeline.graph import Stage

StageKind = Literal[
    "source", "rain-layers", "corrupt", "pretrain", "finetune", "dncnn", "evaluate", "report"
]
# Of the kinds: what has its own section above `stages`.
ARRAYS: tuple[StageKind, ...] = ("corrupt",)
DISTRIBUTED: tuple[StageKind, ...] = ("pretrain", "finetune", "dncnn")
# By how much a limit exceeds `seconds_before_limit` at least. SLURM looks at limits every 30 s and
# signals rather early than late (its manual allows itself 60): so a stage has some 25 s to import
# its packages, before which the signal is lost. Not more, so that a limit of a minute, the shortest
# that SLURM keeps, can be tried.
SECONDS_BEFORE_SIGNAL = 55


def _quoted_time(value: object) -> object:
    """YAML reads 24:00:00 as the number 86400, which SLURM would take for minutes."""
    if isinstance(value, int):
        raise ValueError('write it in quotes, as in "24:00:00" (hours) or "2-12" (days-hours)')
    return value


def _gpus(value: object) -> int | str:
    """As sbatch takes them. YAML reads 3090:4 as the number 185404, which no node has."""
    text = str(value)
    if not re.fullmatch(r"\d{1,3}|[A-Za-z0-9._-]+:[1-9]\d{0,2}", text):
        raise ValueError(
            'allowed: a number per node, such as 8, or a type and a number in quotes, "a100:8"'
        )
    return text if ":" in text else int(text)


def _srun_option(value: object) -> object:
    """Of one word for the shell, as it goes into quotes."""
    if not re.fullmatch(r"(-[A-Za-z]\S*|--[a-z][a-z0-9-]*(=.*)?)", str(value)):
        raise ValueError("write each as one word, such as --container-image=/images/ipt.sqsh")
    return value


Word = Annotated[str, Field(pattern=r"^[^\s'\"\\$`]+$")]  # goes onto a line of a shell script
Line = Annotated[str, Field(pattern=r"^[^\n]*$")]
Time = Annotated[
    str, BeforeValidator(_quoted_time), Field(pattern=r"^(\d+-\d+(:\d\d){0,2}|\d+(:\d\d){1,2})$")
]


def _seconds(time: str) -> int:
    """A time limit in seconds: days-hours[:minutes[:seconds]] or [hours:]minutes:seconds."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes, seconds = [*parts, 0, 0][:3] if dash else [0, *parts][-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class Resources(Section):
    """What the jobs of some stages ask for. What is left out is as in the section around it."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    nodes: Positive | None = None  # of a distributed stage; the others take one (default: 1)
    # Per node, a process for each (default: 0); of a type where it is said, such as "a100:8".
    gpus: Annotated[int | str, BeforeValidator(_gpus)] | None = None
    cpus: Positive | None = None  # per node (default: 1)
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]$")] | None = None  # per node, such as 64G
    time: Time | None = None
    parts: Positive | None = None  # jobs that share an array stage (default: 1)
    at_once: Positive | None = None  # most of them that run at the same time, of one stage
    options: tuple[Line, ...] | None = None  # further ones of sbatch, such as --constraint=a100

    @property
    def gpu_count(self) -> int:
        """Per node, of whatever type."""
        return int(str(self.gpus or 0).rpartition(":")[2])

    def over(self, below: "Resources") -> "Resources":
        """These, and what they leave out from `below`."""
        given = {key: value for key, value in self if value is not None}
        return below.model_copy(update=given)


class Cluster(Section):
    jobs: Resources = Resources()  # all of them
    single: Resources = Resources()  # source, rain-layers, evaluate, report
    array: Resources = Resources()  # corrupt
    distributed: Resources = Resources()  # pretrain, finetune, dncnn
    stages: dict[StageKind, Resources] = Field(default_factory=dict)  # what differs for a kind
    setup: tuple[Line, ...] = ()  # of the shell, before a stage: module load …, export …
    container: Line = ""  # a command to run Python in, such as: apptainer exec --nv image.sif
    srun_options: tuple[Annotated[str, BeforeValidator(_srun_option)], ...] = ()  # of every stage
    # How `gpus` are asked for: --gpus-per-node, --gres=gpu:…, or not at all, as of whole nodes.
    gpus_as: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    python: Word | None = None  # of the compute nodes; None: the one that submits
    seconds_before_limit: Annotated[int, Field(ge=0, le=65535)] = 300  # when a stage is to stop
    hung_after_seconds: Positive = 1800  # without a step, a shard or a picture
    starts_without_progress: Positive = 3  # of a job, after which it fails

    def resources(self, stage: Stage) -> Resources:
        """What the jobs of a stage ask for."""
        found = Resources()
        for _, section in self._sections(stage.kind):
            found = found.over(section)
        return found

    def _sections(self, kind: str) -> list[tuple[str, Resources]]:
        """All that is said of a kind of stage, with its key, the nearest first."""
        sections = [(f"stages.{name}", each) for name, each in self.stages.items() if name == kind]
        if kind in ARRAYS:
            sections.append(("array", self.array))
        elif kind in DISTRIBUTED:
            sections.append(("distributed", self.distributed))
        else:
            sections.append(("single", self.single))
        return [*sections, ("jobs", self.jobs)]

    @model_validator(mode="after")
    def _limits_leave_time_before_their_signal(self) -> Self:
        """A signal that comes at once is lost, or stops a stage at each of its starts."""
        least = self.seconds_before_limit + SECONDS_BEFORE_SIGNAL
        too_short = []
        for kind in get_args(StageKind):
            limits = [(name, each.time) for name, each in self._sections(kind) if each.time]
            # SLURM takes a limit of zero for none.
            if limits and 0 < _seconds(limits[0][1]) < least:
                too_short.append(f"{limits[0][0]}.time: {limits[0][1]!r}")
        if too_short:
            each_once = dict.fromkeys(too_short)  # one section may be that of many kinds
            raise ValueError(
                f"{', '.join(each_once)}: too short for seconds_before_limit: "
                f"{self.seconds_before_limit}, as stages would be stopped before they have begun; "
                f"allow at least {least} s, or lower seconds_before_limit"
            )
        return self

    @model_validator(mode="after")
    def _numbers_fit_their_stages(self) -> Self:
        sections: list[tuple[str, Resources, tuple[StageKind, ...]]]
        sections = [("jobs", self.jobs, ()), ("single", self.single, ())]
        sections += [(f"stages.{kind}", each, (kind,)) for kind, each in self.stages.items()]
        for name, section, kinds in sections:
            if (section.nodes or 1) > 1 and not set(kinds) & set(DISTRIBUTED):
                raise ValueError(
                    f"{name}.nodes: {section.nodes}, but only distributed stages take more than "
                    "one; write it under distributed, or under one of "
                    f"{', '.join(f'stages.{kind}' for kind in DISTRIBUTED)}"
                )
        if self.array.nodes not in (None, 1):
            raise ValueError("array.nodes: each part takes one node; use more parts")
        for name, section, kinds in [*sections, ("distributed", self.distributed, ())]:
            if (section.parts or section.at_once) and not set(kinds) & set(ARRAYS):
                raise ValueError(f"{name}: parts and at_once belong under array or stages.corrupt")
        return self
