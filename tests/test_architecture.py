"""Three layers, one direction; what starts fast stays fast; nothing grows too long."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for layer in ("pipeline", "stages", "launch") for path in (ROOT / layer).rglob("*.py")
)
TORCH_FREE = {
    "config",
    "config_file",
    "config_section",
    "tasks",
    "graph",
    "artifacts",
    "heartbeats",
    "locks",
    "model_configs",
    "corruptions",
}
HEAVY = {"torch", "accelerate", "deepspeed", "datasets", "webdataset", "tensorboard"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def first_party(path: Path) -> set[str]:
    """What a module imports of ours, as (package, part): pipeline.models, stages.source."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in ("pipeline", "stages", "launch") and len(parts) > 1:
            found.add(".".join(parts[:2]))
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    layer, *rest = name_of(path).split(".")
    ours = first_party(path)
    part = rest[0]
    if layer == "pipeline":
        assert not any(name.startswith(("stages.", "launch.")) for name in ours)
        if part in TORCH_FREE:
            allowed = {f"pipeline.{name}" for name in TORCH_FREE}
            assert ours <= allowed
            assert not {name.split(".")[0] for name in imports(path)} & HEAVY
        forbidden = {
            "models": {"pipeline.data", "pipeline.training"},
            "data": {"pipeline.models", "pipeline.training"},
            "training": {"pipeline.data", "pipeline.models", "pipeline.tasks"},
        }
        assert not ours & forbidden.get(part, set())
    if layer == "stages":
        assert not any(name.startswith("launch.") for name in ours)
        other_stages = {name for name in ours if name.startswith("stages.")}
        assert part == "recipe" or not other_stages
    if layer == "launch":
        of_stages = {name for name in ours if name.startswith("stages.")}
        assert of_stages <= {"stages.recipe"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            limit = 120 if name_of(path) == "pipeline.training.loop" else 60
            assert node.end_lineno - node.lineno < limit, f"{node.name}: {node.end_lineno}"


def test_names_say_something_and_the_whole_stays_small():
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "base", "manager"}
    assert not [path for path in MODULES if path.stem in vague]
    assert all(not path.read_text() for path in MODULES if path.name == "__init__.py")
    assert sum(len(path.read_text().splitlines()) for path in MODULES) <= 21_500


def test_only_the_engine_imports_deepspeed():
    importers = {
        name_of(path) for path in MODULES if "deepspeed" in {n.split(".")[0] for n in imports(path)}
    }

    assert importers == {"pipeline.training.engine"}


def test_there_is_one_psnr_and_one_ssim():
    definitions = [
        (name_of(path), node.name)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in ("psnr", "ssim", "luma")
    ]

    assert sorted(definitions) == [("pipeline.metrics", name) for name in ("luma", "psnr", "ssim")]


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=name_of)
def test_stage_modules_import_nothing_heavy_at_the_top(path):
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY


LOGIN_NODE = """
import sys
from launch.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
assert code == 0, code
print(*sys.modules)
"""


@pytest.mark.parametrize("command", ["plan", "status", "verify", "submit", "--help"])
def test_commands_of_a_login_node_import_nothing_heavy(command, tmp_path):
    arguments = [command]
    if command != "--help":
        arguments += ["demo", "--set", f"runtime.runs={tmp_path}"]
    if command == "submit":
        arguments += ["--cluster", "slurm/cpu", "--dry-run"]

    done = subprocess.run(
        [sys.executable, "-c", LOGIN_NODE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert not (HEAVY | {"numpy", "rich"}) & set(done.stdout.splitlines()[-1].split())
