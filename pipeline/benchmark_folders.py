"""Finds the benchmarks in a folder of them, in any of the layouts that people have.

Imports nothing heavy: a plan lists what is there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.benchmarks import Benchmark, Layout, benchmark_named, benchmarks_for
from pipeline.data.file_names import is_photograph_file
from pipeline.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Found:
    """A benchmark as it lies somewhere, for the tasks of one scale."""

    benchmark: Benchmark
    folder: Path
    layout: Layout
    clean: tuple[Path, ...]
    corrupted: tuple[Path, ...] | None

    @property
    def layout_text(self) -> str:
        """Such as Set5/HR/* with Set5/LR_bicubic/X2/*."""
        given = f" with {self.layout.corrupted}" if self.layout.corrupted else ""
        return f"{self.folder.name}: {self.layout.clean}{given}"


def find_benchmarks(root: Path, task: Task) -> tuple[list[Found], list[str]]:
    """What `root` has of the benchmarks for the task, and those that it lacks."""
    folders: dict[str, list[Path]] = {}
    for folder in sorted(each for each in root.iterdir() if each.is_dir()):
        known = benchmark_named(folder.name)
        if known is not None:
            folders.setdefault(known.name, []).append(folder)
    found, missing = [], []
    for benchmark in benchmarks_for(task):
        places = folders.get(benchmark.name, [])
        if benchmark.grey_of is not None:
            places = [*places, *folders.get(benchmark.grey_of, [])]
        fitting = [each for place in places for each in _fitting(benchmark, place, task)]
        if not fitting:
            there = f" ({places[0].name} is laid out in no way that is known)" if places else ""
            missing.append(benchmark.name + there)
        else:
            found.append(max(fitting, key=_likeness))
    return found, missing


def _fitting(benchmark: Benchmark, folder: Path, task: Task) -> Iterator[Found]:
    """All that images lie in, of the layouts that the benchmark is known by."""
    for layout in (_of_scale(each, task.scale) for each in benchmark.layouts):
        clean = _photographs(folder, layout.clean)
        corrupted = _photographs(folder, layout.corrupted) if layout.corrupted else None
        if clean and corrupted != ():
            yield Found(
                benchmark=benchmark,
                folder=folder,
                layout=layout,
                clean=clean,
                corrupted=corrupted,
            )


def _likeness(found: Found) -> tuple[bool, int, bool]:
    """As many images as the benchmark has, else the most: a stray one hides none. Pairs first."""
    count = len(found.clean)
    return count == found.benchmark.images, count, found.corrupted is not None


def _of_scale(layout: Layout, scale: int) -> Layout:
    return Layout(
        clean=layout.clean.format(scale=scale),
        corrupted=layout.corrupted and layout.corrupted.format(scale=scale),
    )


def _photographs(folder: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(each for each in sorted(folder.glob(pattern)) if is_photograph_file(each))


def listed(found: Sequence[Found], missing: Sequence[str]) -> str:
    """In a line what is there and what is not."""
    there = ", ".join(each.benchmark.name for each in found) or "none"
    return there + (f"; not there: {', '.join(missing)}" if missing else "")
