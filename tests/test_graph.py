"""What is made again, and what isn't."""

from pathlib import Path

import pytest

from launch.local import run_graph
from launch.stage import run_stage
from pipeline.artifacts import ArtifactError
from pipeline.config import RunConfig, Runtime
from pipeline.config_file import ConfigError
from pipeline.config_section import Section
from pipeline.graph import Graph, Job, Stage, StageError, report_nothing
from pipeline.locks import writing


class Numbers(Section):
    value: int = 0
    fails: bool = False


def write_sum(job: Job) -> dict:
    if job.config.fails:
        raise StageError("this one fails")
    below = [int((each.folder / "sum.txt").read_text()) for each in job.inputs.values()]
    total = job.config.value + sum(below)
    (job.folder / "sum.txt").write_text(str(total))
    return {"total": total}


def summing(name: str, value: int, *inputs: Stage, fails: bool = False) -> Stage:
    return Stage(
        name=name,
        kind="sum",
        version=1,
        config=Numbers(value=value, fails=fails),
        run=write_sum,
        inputs={each.name: each for each in inputs},
    )


def diamond(a: int = 1, b: int = 10, c: int = 100, d: int = 1000) -> Graph:
    first = summing("a", a)
    left, right = summing("b", b, first), summing("c", c, first)
    return Graph(stages=(first, left, right, summing("d", d, left, right)))


@pytest.fixture
def run(tmp_path):
    config = RunConfig(name="run", sources={"x": {"path": "x"}}, runtime={"runs": tmp_path})

    def run(graph: Graph, **options) -> tuple[list[str], dict]:
        lines: list[str] = []
        artifacts = run_graph(graph, config, config_arguments=[], say=lines.append, **options)
        made = [line.split()[1] for line in lines if "made in" in line]
        return made, artifacts

    return run


def test_graph_runs_in_order_and_then_nothing_runs(run):
    made, artifacts = run(diamond())
    assert made == ["a", "b", "c", "d"]
    assert artifacts["d"].manifest.summary == {"total": 1 + 1 + 10 + 100 + 1000}

    assert run(diamond())[0] == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"a": 2}, ["a", "b", "c", "d"]),
        ({"b": 11}, ["b", "d"]),
        ({"c": 101}, ["c", "d"]),
        ({"d": 1001}, ["d"]),
    ],
)
def test_a_changed_value_makes_its_stage_and_those_after_it_again(run, change, again):
    run(diamond())

    assert run(diamond(**change))[0] == again
    assert run(diamond())[0] == []  # the former artifacts are still there


def test_a_raised_version_makes_the_stage_again(run):
    stage = summing("a", 1)
    run(Graph(stages=(stage,)))

    newer = Stage(name="a", kind="sum", version=2, config=stage.config, run=write_sum)

    assert run(Graph(stages=(newer,)))[0] == ["a"]


def test_a_default_left_out_and_a_default_written_are_the_same_run():
    assert summing("a", 0).fingerprint({}) == Stage(
        name="a", kind="sum", version=1, config=Numbers(), run=write_sum
    ).fingerprint({})


def test_until_leaves_out_what_it_does_not_need(run):
    assert run(diamond(), until="b")[0] == ["a", "b"]


def test_from_needs_what_is_before_it(run):
    with pytest.raises(StageError, match=r"--from d needs a, which is not done \(never made\)"):
        run(diamond(), start="d")
    run(diamond())

    assert run(diamond(), start="b", force=True)[0] == ["b", "d"]


def test_forced_stage_keeps_the_old_folder_aside(run, tmp_path):
    run(diamond())

    assert run(diamond(), force=True)[0] == ["a", "b", "c", "d"]
    assert len(list((tmp_path / "run" / "a").glob("*.replaced-*"))) == 1


def test_unknown_stage_is_named_with_those_there_are(run):
    with pytest.raises(ConfigError, match="'e'; this run has: a, b, c, d"):
        run(diamond(), until="e")


def test_failed_stage_leaves_no_manifest_and_is_run_again(run, tmp_path):
    with pytest.raises(StageError, match="this one fails"):
        run(Graph(stages=(summing("a", 1, fails=True),)))

    resolved = Graph(stages=(summing("a", 1, fails=True),)).resolve(tmp_path / "run")
    assert (resolved["a"].state, resolved["a"].reason) == ("resume", "began, not finished")


def test_second_run_of_a_stage_says_so_and_stops(tmp_path):
    resolved = diamond().resolve(tmp_path)["a"]
    resolved.folder.mkdir(parents=True)

    with writing(resolved.folder), pytest.raises(ArtifactError, match="another run is writing"):
        run_stage(resolved, {}, runtime=Runtime(), progress=report_nothing)

    assert not (resolved.folder / "sum.txt").exists()


def test_stale_input_is_made_again_but_only_new_content_reaches_further(run):
    """As a source does: its photographs aren't in its config, but in its identity."""

    def listing(count: int, stamp: str) -> Graph:
        def write(job: Job) -> dict:
            (job.folder / "sum.txt").write_text(str(count))
            return {"identity": f"{count} photographs", "stamp": stamp}

        source = Stage(
            name="source",
            kind="source",
            version=1,
            config=Numbers(),
            run=write,
            stale=lambda config, manifest: (
                None if manifest.summary["stamp"] == stamp else "the folder changed"
            ),
        )
        return Graph(stages=(source, summing("b", 1, source)))

    assert run(listing(3, "monday"))[0] == ["source", "b"]
    assert run(listing(3, "monday"))[0] == []
    assert run(listing(3, "tuesday"))[0] == ["source"]
    assert run(listing(4, "friday"))[0] == ["source", "b"]


def test_log_of_a_stage_lies_beside_it(run, tmp_path):
    _, artifacts = run(diamond())

    log: Path = artifacts["a"].folder / "logs" / "log.txt"
    assert "a done in" in log.read_text()
