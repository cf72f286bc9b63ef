"""Generic package names are safe only under guards: these."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_tests_run_this_checkout():
    for package in ("pipeline", "stages", "launch"):
        spec = importlib.util.find_spec(package)
        assert Path(spec.origin).parents[1] == ROOT


def test_project_can_not_be_uploaded_by_accident():
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_no_script_in_launch_shadows_a_package():
    """Run as a script, Python puts launch/ first on its path."""
    needed = {
        name.split(">")[0].split(";")[0].strip().replace("-", "_").lower()
        for name in PROJECT["project"]["dependencies"]
    }
    taken = needed | {"yaml", "PIL", "huggingface_hub"} | set(sys.stdlib_module_names)

    assert not {path.stem for path in (ROOT / "launch").glob("*.py")} & taken


@pytest.mark.parametrize("script", ["pretrain.py", "stage.py"])
def test_entry_scripts_find_the_checkout_from_anywhere(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "config" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_has_the_packages_configs_and_assets_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    folders = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert folders == {"pipeline", "stages", "launch"}
    for name in (
        "pipeline/_configs/demo.yaml",
        "pipeline/_configs/imagenet.yaml",
        "pipeline/_configs/slurm/gpu.yaml",
        "launch/stage.sbatch.j2",
        "pipeline/assets/photos/chelsea.png",
        "pipeline/assets/photos/LICENSES.md",
    ):
        assert name in names
    assert not [name for name in names if "/test_" in name or "conftest" in name]


def test_installed_wheel_plans_the_demo_away_from_any_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from launch.__main__ import main; "

    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(['plan', 'demo']))"],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "source@photos" in done.stdout


def test_installed_wheel_renders_batch_scripts_away_from_any_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from launch.__main__ import main; "
    arguments = ["submit", "demo", "--cluster", "slurm/cpu", "--dry-run"]

    done = subprocess.run(
        [sys.executable, "-c", code + f"sys.exit(main({arguments}))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert f"{site}/launch/stage.py" in done.stdout
