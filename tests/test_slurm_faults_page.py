"""The page of what befalls jobs on SLURM, from pytest's own report."""

from pathlib import Path

from benchmarks.slurm_faults import failed, outcomes, page_of, summary

REPORT = """<testsuites><testsuite>
<testcase name="test_a_node_dies[first]" time="61.4"/>
<testcase name="test_a_limit" time="5.0"><failure message="no">trace</failure></testcase>
<testcase name="test_a_cut" time="0.1"><skipped message="no SLURM"/></testcase>
</testsuite></testsuites>"""


def test_only_what_passed_counts(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    record = {
        "since": "2026-01-02 03:04",
        "load": 0.25,
        "commit": "abc1234",
        "minutes": 41.2,
        "tests": outcomes(tmp_path / "report.xml"),
    }
    better = record | {"minutes": 30.0, "tests": record["tests"][:1]}

    page = page_of([record, better])

    assert failed(record) == ["test_a_limit", "test_a_cut"]
    assert failed(better) == []
    assert summary(record) == "1 of 3 passed in 41 min"
    assert "| run 1 | 2026-01-02 03:04 | abc1234 | 0.2 | 1 of 3 passed in 41 min |" in page
    assert "| a_node_dies[first] | 61 | 61 |" in page
    assert "| a_limit | **failure** | – |" in page
    assert "| a_cut | **skipped** | – |" in page
    assert "The limit of 40 minutes a run was missed: 41 at most." in page
