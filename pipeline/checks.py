"""What was verified of a benchmark, as scores.json has it. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import JSON

State = Literal["verified", "differs", "not checked"]
KNOWN_PART = "the part that is known too"


@dataclass(frozen=True, kw_only=True)
class Check:
    what: str
    state: State
    expected: str
    found: str

    def __str__(self) -> str:
        if self.state == "differs":
            return f"{self.what}: differs: expected {self.expected}, found {self.found}"
        return f"{self.what}: {self.state} ({self.found or self.expected})"


def differing(checks: Sequence[Mapping[str, JSON]]) -> list[str]:
    """What is not as in the benchmark, nor as in its part that is known too, a sentence each."""
    return [
        f"{each['what']}: expected {each['expected']}, found {each['found']}"
        for each in checks
        if each["state"] == "differs" and not str(each["found"]).endswith(KNOWN_PART)
    ]
