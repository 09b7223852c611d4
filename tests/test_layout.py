"""The house: a file imports only from floors below, and importing it brings torch and little else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "easytorch"
FLOORS = [
    ["clock", "generators", "launcher", "logs", "lookup", "modes", "notice", "state", "tree", "verify"],
    ["batch", "batchnorm", "calls", "files", "misuse", "optimizers", "order", "processes", "results", "sizes"],
    ["arrays", "callbacks.callback", "losses", "memory", "outputs", "parts", "shards"],
    [
        "callbacks.averaging",
        "callbacks.loggers",
        "callbacks.monitors",
        "callbacks.nan",
        "callbacks.progress",
        "fetch",
        "hints",
        "metric",
        "slices",
        "splits",
        "summary",
    ],
    ["callbacks.checkpoint", "callbacks.pruning", "callbacks.schedules", "feed", "torchmetric", "weights"],
    ["callbacks", "metrics", "strategy"],
    ["data", "explain", "parallel", "saving"],
    ["looking", "session", "sharded"],
    ["model"],
    [""],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def rooms():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path):
    """Yield the rooms that ``path`` takes something from, in whatever function it does; types alone do not count."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] == "easytorch":
            room = node.module.removeprefix("easytorch").lstrip(".")
            for alias in node.names:
                inner = f"{room}.{alias.name}".lstrip(".")
                yield inner if inner in rooms() else room


def test_every_room_has_a_floor():
    assert set(rooms()) == set(FLOOR)


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_only_from_floors_below(room):
    for other in imports(rooms()[room]):
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def test_importing_brings_torch_and_little_else():
    program = (
        "import sys, torch; before = set(sys.modules); import easytorch; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    brought = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "torchmetrics",
        "matplotlib",
        "optuna",
        "pandas",
        "rich",
        "torchinfo",
        "tensorboard",
        "safetensors",
        "sklearn",
        "torchvision",
    }
    assert not heavy & set(brought)


def test_model_py_can_be_read_in_ten_minutes():
    assert len((PACKAGE / "model.py").read_text().splitlines()) <= 450


def test_callbacks_know_the_model_only_by_type():
    for room, path in rooms().items():
        if room.startswith("callbacks"):
            assert "model" not in set(imports(path)), room
