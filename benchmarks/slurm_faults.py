"""What befalls jobs on a real SLURM, several times in a row: tests/test_slurm_faults.py.

    python -m benchmarks.slurm_faults [--runs 5] [--record FILE] [--out benchmarks/slurm_faults.md]

Every run is recorded as it ends, passed or failed; --record goes on from those of an earlier call.
Exit code 1 where a test failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.measuring import circumstances, processor, table
from benchmarks.pages import write_page

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/test_slurm_faults.py"
LONGEST = 40.0  # minutes that a run may take

Outcome = Mapping[str, Any]  # of a test: its name, what came of it, seconds
Record = Mapping[str, Any]  # of a run
WORSE = ("failure", "error", "skipped")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="in all (default: 5)")
    parser.add_argument("--record", type=Path, default=ROOT / "runs" / "slurm_faults.jsonl")
    parser.add_argument("--out", type=Path, help="also write the page here")
    options = parser.parse_args()
    options.record.parent.mkdir(parents=True, exist_ok=True)
    records = read(options.record)
    while len(records) < options.runs:
        record = run()
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
        print(f"run {len(records)}: {summary(record)}", file=sys.stderr, flush=True)
    page = page_of(records)
    write_page(page, options.out)
    return int(any(failed(record) for record in records))


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run() -> Record:
    """Run the tests once."""
    load, began, since = os.getloadavg()[0], time.monotonic(), time.strftime("%Y-%m-%d %H:%M")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "chaos", TESTS]
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
        tests = outcomes(report)
    minutes = (time.monotonic() - began) / 60
    commit = ["git", "rev-parse", "--short", "HEAD"]
    code = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {
        "since": since,
        "load": load,
        "commit": code.strip(),
        "minutes": minutes,
        "tests": tests,
    }


def outcomes(report: Path) -> list[Outcome]:
    """What came of each test, by pytest's report in the form of JUnit."""
    return [
        {
            "name": case.attrib["name"],
            "outcome": next((each.tag for each in case if each.tag in WORSE), "passed"),
            "seconds": float(case.attrib["time"]),
        }
        for case in ElementTree.parse(report).iter("testcase")
    ]


def failed(record: Record) -> list[str]:
    """The tests that did not pass; one that was skipped shows nothing either."""
    return [each["name"] for each in record["tests"] if each["outcome"] != "passed"]


def summary(record: Record) -> str:
    tests, lost = record["tests"], failed(record)
    return f"{len(tests) - len(lost)} of {len(tests)} passed in {record['minutes']:.0f} min"


def page_of(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(test["name"] for each in records for test in each["tests"]))
    found = [{test["name"]: test for test in each["tests"]} for each in records]
    numbers = [f"run {number}" for number in range(1, len(records) + 1)]
    runs = [
        [name, each["since"], each["commit"], f"{each['load']:.1f}", summary(each)]
        for name, each in zip(numbers, records, strict=True)
    ]
    rows = [
        [name.removeprefix("test_"), *(cell(tests.get(name)) for tests in found)] for name in names
    ]
    longest = max(each["minutes"] for each in records)
    kept = "kept" if longest <= LONGEST else "missed"
    return (
        f"# Jobs on a real SLURM, and what befalls them\n\n{circumstances(processor())}\n"
        f"`pytest -m chaos {TESTS}`, {len(records)} times in a row: slurmctld, slurmd and munge of "
        "this machine, nodes in namespaces with addresses of their own. Every run stands here.\n\n"
        f"{table(('run', 'since', 'commit', 'load before', 'came to'), runs)}\n"
        f"The limit of {LONGEST:.0f} minutes a run was {kept}: {longest:.0f} at most.\n\n"
        f"Seconds of each test, where it passed:\n\n{table(('test', *numbers), rows)}"
    )


def cell(test: Outcome | None) -> str:
    if test is None:
        return "–"
    return f"{test['seconds']:.0f}" if test["outcome"] == "passed" else f"**{test['outcome']}**"


if __name__ == "__main__":
    sys.exit(main())
