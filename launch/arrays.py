"""How the parts of an array stage become calls of sbatch: a cluster limits how large an array is,
and its file how many parts run at the same time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launch.cluster import Cluster
from pipeline.graph import Stage


@dataclass(frozen=True, kw_only=True)
class Array:
    """One call of sbatch: some parts of an array stage, or a whole stage."""

    offset: int = 0
    tasks: tuple[int, ...] | None = None
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    follows: int | None = None  # which of the calls before it has to end first


def arrays(stage: Stage, parts: Iterable[int], cluster: Cluster, *, most: int) -> list[Array]:
    """Calls of sbatch that make these parts, with at most `most` tasks each.

    Those that run side by side share out what may run at once; further ones follow them.
    """
    if stage.launch != "array":
        return [Array()]
    chunks: dict[int, list[int]] = {}
    for part in sorted(parts):
        chunks.setdefault(part // most, []).append(part % most)
    at_once = cluster.resources(stage).at_once
    side_by_side = min(len(chunks), at_once or len(chunks))
    calls = []
    for index, (number, tasks) in enumerate(chunks.items()):
        throttle = ""
        if at_once:
            share, rest = divmod(at_once, side_by_side)
            throttle = f"%{share + (index % side_by_side < rest)}"
        calls.append(
            Array(
                offset=number * most,
                tasks=tuple(tasks),
                options=(f"--array={ranges(tasks)}{throttle}",),
                arguments=(str(number * most),),
                follows=index - side_by_side if index >= side_by_side else None,
            )
        )
    return calls


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as SLURM writes them: 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def dependency(ended_well: Sequence[str], ended: Sequence[str] = ()) -> list[str]:
    """The option of sbatch that lets a job wait for others."""
    conditions = {"afterok": ended_well, "afterany": ended}
    texts = [":".join([condition, *jobs]) for condition, jobs in conditions.items() if jobs]
    return [f"--dependency={','.join(texts)}"] if texts else []
