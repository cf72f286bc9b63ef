"""From a pattern, such as data/train-{000..146}.tar, to the files or addresses that it names; and
from hf:owner/name:subset@split#revision to its parts."""

import glob
import os
import string
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from braceexpand import braceexpand


class PatternError(ValueError):
    """A pattern that names nothing; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """A split of a dataset of the Hugging Face Hub, or of a folder that is one."""

    name: str
    subset: str | None  # what `datasets` calls a configuration
    split: str
    revision: str | None  # a commit, tag or branch; None: main

    def __str__(self) -> str:
        subset = f":{self.subset}" if self.subset else ""
        revision = f"#{self.revision}" if self.revision else ""
        return f"hf:{self.name}{subset}@{self.split}{revision}"


def parse_dataset(path: str) -> NamedDataset:
    """What `hf:name`, `hf:name@split`, `hf:name:subset@split` or one of them, then `#revision`,
    names."""
    dataset, _, rest = path.removeprefix("hf:").partition("@")
    name, _, subset = dataset.partition(":")
    split, _, revision = rest.partition("#")
    split = split or "train"
    if not name:
        raise PatternError(f"{path}: names no dataset; write it as hf:owner/name@split")
    if "#" in dataset and not rest:
        raise PatternError(
            f"{path}: a revision comes after a split; write it as hf:owner/name@split#revision"
        )
    if "[" in split or "(" in split:  # rows, how to round their number
        arguments = ", ".join(map(repr, filter(None, (name, subset))))
        raise PatternError(
            f"{path}: only whole splits are read, such as hf:{dataset}@train; "
            f'save the part of one with datasets.load_dataset({arguments}, split="{split}")'
            '.to_parquet("part.parquet") and name that file'
        )
    return NamedDataset(name=name, subset=subset or None, split=split, revision=revision or None)


def expand_braces(pattern: str) -> list[str]:
    """What the pattern stands for, as bash expands braces, each once."""
    try:
        return list(dict.fromkeys(braceexpand(pattern)))
    except ValueError:
        raise PatternError(
            f"{pattern}: a brace is not closed; write it as name-{{000..146}}.tar"
        ) from None


def ascii_url(url: str) -> str:
    """The URL as it is sent: the host in IDNA, what else isn't ASCII as UTF-8, quoted.

    Raises ValueError where it is none.
    """
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if not host:
        raise ValueError("it names no host")
    if not host.isascii():
        place = host.encode("idna").decode() + (f":{port}" if port else "")
        parts = parts._replace(netloc=place)
    return quote(parts.geturl(), safe=string.punctuation)  # % among it: what is quoted stays


def matching_files(pattern: str) -> list[Path]:
    """The files that the pattern names, sorted; each of its alternatives must be there. What is
    there under its very name is no pattern, only what follows it."""
    whole = Path(pattern)
    # Unlike pathlib's, these take a pattern that is too long for a name.
    if os.path.exists(whole):
        return [whole]
    folder = next(parent for parent in whole.parents if os.path.isdir(parent))
    found: set[Path] = set()
    missing = []
    for each in expand_braces(str(whole.relative_to(folder))):
        files = glob.glob(each, root_dir=folder, recursive=True)
        found.update(folder / file for file in files)
        if not files:
            missing.append(str(folder / each))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PatternError(f"{missing[0]}{more}: no such file; set the path of the source to yours")
    return sorted(found, key=str)
