"""Imports between packages, and modules that importing easytorch loads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import easytorch


def test_packages_import_only_from_lower_layers():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or "lint-imports"
    result = subprocess.run([linter], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_design_page_shows_the_checked_layers():
    root = Path(__file__).parents[1]
    contract = re.search(r"^layers = \[(.*?)^\]", (root / "pyproject.toml").read_text(), re.M | re.S)
    page = re.search(r"## Layers.*?```text\n(.*?)```", (root / "docs/design.md").read_text(encoding="utf-8"), re.S)
    # A name in parentheses is that of a package that may not exist yet.
    lines = [re.sub(r" \| \(\w+\)|\(\w+\)( \| )?", "", line) for line in re.findall(r'"(.+)"', contract[1])]
    assert page[1].splitlines() == list(filter(None, lines))


@pytest.fixture(scope="module")
def imported_modules():
    """Return the modules that ``import easytorch`` loads in addition to those of torch."""
    program = (
        "import sys, torch; before = set(sys.modules); import easytorch; print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_import_loads_no_heavy_package_but_torch(imported_modules):
    heavy = {
        "torchmetrics",
        "matplotlib",
        "optuna",
        "mlflow",
        "trackio",
        "wandb",
        "pandas",
        "rich",
        "torchinfo",
        "tensorboard",
        "safetensors",
        "sklearn",
        "torchvision",
    }
    assert not heavy & {name.partition(".")[0] for name in imported_modules}


def test_the_import_loads_no_compiler(imported_modules):
    assert not {"torch._dynamo", "torch.distributed.fsdp"} & imported_modules


def test_the_import_loads_no_tool(imported_modules):
    tools = ("checks", "export", "integrations", "reports", "scripts", "tuning", "typing")
    assert not [name for name in imported_modules if name.startswith(tuple(f"easytorch.{tool}" for tool in tools))]


def test_the_import_loads_at_most_190_modules(imported_modules):
    # A module that training does not need is imported where it is used.
    assert len(imported_modules) <= 190


@pytest.mark.parametrize("name", ["checks", "reports", "scripts", "tuning", "typing"])
def test_a_package_of_tools_is_an_attribute_of_easytorch(name, monkeypatch):
    monkeypatch.delattr(easytorch, name, raising=False)
    assert getattr(easytorch, name).__name__ == f"easytorch.{name}"
