"""Runs of fit and of its script from the same state."""

from __future__ import annotations

import ast
import copy
from typing import Any

import pytest
import torch

from easytorch import Model
from tests.loops import same_weights

STANDARD = {"copy", "csv", "functools", "itertools", "math", "os", "torch"}


def check_imports(script: str) -> None:
    """Raise an error if ``script`` imports anything but torch and the standard library."""
    for node in ast.walk(ast.parse(script)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= STANDARD
    assert "easytorch" not in script


def run_script(script: str, **names: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the variables of ``script`` after its run with the variables ``names``, and the lines that it prints."""
    lines: list[str] = []
    namespace = {"__name__": "script", "print": lambda text: lines.append(text), **names}
    exec(compile(script, "script.py", "exec"), namespace)
    return namespace, lines


def format_row(epoch: int, total: int, row: dict[str, float]) -> str:
    values = "".join(f"  {name} {value:.4f}" for name, value in row.items() if not name.startswith("lr"))
    return f"Epoch {epoch + 1}/{total}{values}"


def fit_and_script(
    net: torch.nn.Module,
    compile_arguments: dict[str, Any],
    data: tuple[Any, ...],
    options: dict[str, Any],
    names: dict[str, Any],
    *,
    after: bool = True,
) -> str:
    """Compare ``fit(*data, **options)`` with its script, which finds ``names``, and return the script.

    Args:
        net: The module.
        compile_arguments: Those of ``compile``; a function is called with the module.
        data: The positional arguments of ``fit``.
        options: The others.
        names: The variables that the user of the script defines.
        after: Whether the script is that of the last fit; otherwise that of the arguments, before the fit.
    """
    twin = copy.deepcopy(net)
    model = Model(net, device="cpu").compile(**compile_arguments)
    options = {"verbose": 0, **options}
    state = torch.get_rng_state()
    before = None if after else model.to_script(*data, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(net, twin)
    torch.manual_seed(3)
    history = model.fit(*data, **options)
    script = model.to_script() if before is None else before
    assert model.to_script() == script
    check_imports(script)
    torch.manual_seed(3)
    namespace, lines = run_script(script, net=twin, **names)
    assert same_weights(net, twin), script
    total = options.get("epochs", 1)
    assert lines == [format_row(epoch, total, row) for epoch, row in enumerate(history.rows)], script
    for name, value in history.rows[-1].items():
        variable = name if name.startswith("val_") else f"train_{name}"
        if variable in namespace:
            assert namespace[variable] == pytest.approx(value, rel=1e-12), (name, script)
    return script
