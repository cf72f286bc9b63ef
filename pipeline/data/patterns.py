"""From a pattern, such as data/train-{000..146}.tar, to the files or addresses that it names."""

import glob
from pathlib import Path

from braceexpand import braceexpand


class PatternError(ValueError):
    """A pattern that names nothing; the message says what is missing."""


def expand_braces(pattern: str) -> list[str]:
    """What the pattern stands for, as bash expands braces, each once."""
    try:
        return list(dict.fromkeys(braceexpand(pattern)))
    except ValueError:
        raise PatternError(
            f"{pattern}: a brace is not closed; write it as name-{{000..146}}.tar"
        ) from None


def matching_files(pattern: str) -> list[Path]:
    """The files that the pattern names, sorted; each of its alternatives must be there."""
    if Path(pattern).exists():  # a name that only looks like a pattern
        return [Path(pattern)]
    found: set[str] = set()
    missing = []
    for each in expand_braces(pattern):
        files = glob.glob(each, recursive=True)
        found.update(files)
        if not files:
            missing.append(each)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PatternError(f"{missing[0]}{more}: no such file; set the path of the source to yours")
    return [Path(file) for file in sorted(found)]
