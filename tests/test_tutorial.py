"""The README's tutorial, followed to the letter on a copy of the packages."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.shard_reader import open_shards

REPOSITORY = Path(__file__).parents[1]
PLACE = re.compile(r"(above|in place of)\s+`([^`]+)`")


def tutorial() -> str:
    text = (REPOSITORY / "README.md").read_text()
    return text.split("## Adding a task\n")[1].split("\n## ")[0]


def steps() -> Iterator[tuple[str, str | None, str | None, str]]:
    """(file, above or in place of, what, code); for a new file the two in the middle are None."""
    text, blocks = [], []

    def of_step() -> Iterator[tuple[str, str | None, str | None, str]]:
        sentence = " ".join("".join(text).split())
        found = re.search(r"In `([\w/.]+)`, (.*)", sentence)
        if found is None:
            return
        places = PLACE.findall(found[2])
        if not places:
            assert found[2].startswith("a new file")
            places = [(None, None)]
        assert len(places) == len(blocks), f"{found[0]}: {len(blocks)} blocks"
        for (how, what), code in zip(places, blocks, strict=True):
            yield found[1], how, what, code

    parts = re.split(r"```(\w*)\n(.*?)```\n", tutorial(), flags=re.DOTALL)
    for number in range(0, len(parts) - 1, 3):
        if parts[number].strip():
            yield from of_step()
            text, blocks = [parts[number]], []
        if not parts[number + 2].startswith("python -m"):
            blocks.append(parts[number + 2])
    yield from of_step()


def apply(root: Path, file: str, how: str | None, what: str | None, code: str) -> None:
    path = root / file
    if how is None:
        assert not path.exists()
        path.write_text(code)
        return
    assert what is not None
    lines = path.read_text().splitlines(keepends=True)
    (place,) = (number for number, line in enumerate(lines) if line.strip().startswith(what))
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    if code.startswith("@"):  # a class, which two empty lines part from what follows
        code += "\n\n"
    new = [indent + line if line.strip() else line for line in code.splitlines(keepends=True)]
    lines[place : place + (how == "in place of")] = new
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to which the tutorial was applied."""
    root = tmp_path_factory.mktemp("tutorial")
    for name in ("pipeline", "stages", "launch", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    found = list(steps())
    assert len(found) == 7
    for step in found:
        apply(root, *step)
    return root


def test_the_tutorials_task_makes_shards(checkout: Path) -> None:
    (command,) = re.findall(r"^python -m launch .*$", tutorial(), re.MULTILINE)
    _, *arguments = shlex.split(command)

    subprocess.run([sys.executable, *arguments], cwd=checkout, check=True, timeout=120)

    (folder,) = (checkout / "runs" / "demo" / "corrupt-impulses@photos").glob("*/shards")
    reader = open_shards(folder, "train")
    shares = []
    for number, record in enumerate(reader.records):
        places = np.arange(record.samples)
        clean, corrupted = (
            reader.images(name, np.full_like(places, number), places)
            for name in ("clean", "corrupted")
        )
        changed = (clean != corrupted).any(axis=3)
        assert np.isin(corrupted[changed], (0, 255)).all()
        shares += changed.mean(axis=(1, 2)).tolist()
    # Each sample has a share of its own between 2 and 10 %, of 2,304 pixels.
    assert len(shares) == 3 * 96
    assert 0.055 < np.mean(shares) < 0.065
    assert min(shares) < 0.03
    assert max(shares) > 0.09


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_the_tutorials_code_passes_the_checks(checkout: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
