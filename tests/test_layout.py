"""Imports between packages, and modules that importing easytorch loads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path


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


def test_the_import_loads_no_heavy_package_but_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import easytorch; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    imported_packages = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
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
    assert not heavy & set(imported_packages)


def test_the_import_loads_no_compiler():
    program = "import sys, easytorch; print('torch._dynamo' in sys.modules, 'torch.distributed.fsdp' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
