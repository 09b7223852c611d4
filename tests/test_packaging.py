"""Wheels and editable installs with the files of the source tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import easytorch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "easytorch"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def pip(*arguments: str | Path, cwd: Path) -> str:
    return run(sys.executable, "-m", "pip", *arguments, "--no-deps", "--quiet", cwd=cwd)


def source_files() -> set[str]:
    return {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.suffix == ".py" or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Copy the files that a build needs, so that the build writes nothing into the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("above") / "easytorch"
    shutil.copytree(PACKAGE, folder / "easytorch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", clone, "--no-build-isolation", "--wheel-dir", folder, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_has_every_module_of_the_source_tree(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == source_files()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_has_the_version_of_the_package(wheel):
    assert wheel.name == f"easytorch_fit-{easytorch.__version__}-py3-none-any.whl"


def test_version_is_read_without_importing_torch(clone):
    """Build in an interpreter that cannot import torch, as in an isolated build environment."""
    program = (
        "import sys; sys.modules['torch'] = None; "
        "from setuptools.config.pyprojecttoml import read_configuration; "
        "print(read_configuration('pyproject.toml')['project']['version'])"
    )
    assert run(sys.executable, "-W", "ignore", "-c", program, cwd=clone) == easytorch.__version__


# Other installations of easytorch, such as the checkout itself, would hide a problem.
HIDE_OTHERS = (
    "import os, sys; sys.path[:] = [p for p in sys.path if not os.path.exists(f'{p}/easytorch/__init__.py')]; "
)


def test_installed_wheel_is_imported_without_the_checkout(wheel, tmp_path):
    pip("install", wheel, "--target", tmp_path / "site", cwd=tmp_path)
    program = HIDE_OTHERS + (
        f"sys.path.insert(0, {str(tmp_path / 'site')!r}); import importlib, pkgutil, easytorch; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(easytorch.__path__, 'easytorch.')]; "
        "print(easytorch.__file__)"
    )
    path_of_import = run(sys.executable, "-c", program, cwd=tmp_path)
    assert path_of_import == str(tmp_path / "site" / "easytorch" / "__init__.py")


def test_editable_install_works_from_the_folder_above(clone, tmp_path):
    """Import outside the clone, whose folder easytorch must not act as a namespace package."""
    pip("install", "--editable", clone, "--no-build-isolation", "--target", tmp_path, cwd=tmp_path)
    program = HIDE_OTHERS + (
        f"import site; site.addsitedir({str(tmp_path)!r}); import easytorch; print(easytorch.Model.__module__)"
    )
    assert run(sys.executable, "-c", program, cwd=clone.parent) == "easytorch.model"
