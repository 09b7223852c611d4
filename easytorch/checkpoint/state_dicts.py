"""Matching of state dicts with a module or an optimizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn
from easytorch.errors import FileError


def check_optimizer(
    content: dict[str, Any],
    optimizer: torch.optim.Optimizer | None,
    path: str | os.PathLike[str],
    refuse: type[Exception] | None = None,
) -> None:
    """Leave the optimizer's state out of ``content``, with a warning, where ``optimizer`` is of another kind.

    Args:
        content: What was read from ``path``.
        optimizer: The one that is to have the state.
        path: For the message.
        refuse: Raise this instead of warning.
    """
    state = content.get("optimizer")
    if not state or optimizer is None:
        return
    if _fits_optimizer(content, optimizer):
        return
    content["optimizer"] = None
    told = f"The optimizer's state in {str(path)!r} is not that of {type(optimizer).__name__} with these parameters"
    if refuse is not None:
        raise refuse(f"{told}. Compile as it was compiled, or begin anew in another folder.")
    warn(f"{told}, so it starts anew; all else is restored.")


def _fits_optimizer(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether every state in ``content`` belongs to a parameter of its shape: a fused optimizer writes without asking."""
    try:
        groups, states = content["optimizer"]["param_groups"], content["optimizer"]["state"]
        if content.get("optimizer_kind", type(optimizer).__name__) != type(optimizer).__name__:
            return False
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
            return False
        twin = type(optimizer).__new__(type(optimizer))
        filled = [dict(group) for group in groups]
        # An older torch knew fewer settings: this adds them, as load_state_dict will.
        twin.__setstate__(
            {**vars(optimizer), "state": {}, "param_groups": filled, "defaults": dict(optimizer.defaults)}
        )
        if any(not set(group) >= set(optimizer.defaults) for group in filled):
            return False
        parameters = dict(
            pair
            for group, own in zip(groups, optimizer.param_groups, strict=True)
            for pair in zip(group["params"], own["params"], strict=True)
        )
        known = [kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch.optim.")]
        if known == [torch.optim.Optimizer] or isinstance(optimizer, torch.optim.LBFGS):
            return set(states) <= set(parameters)  # what these keep need not be as large as the parameter
        loose = isinstance(optimizer, torch.optim.Adafactor)  # keeps the means of rows and columns alone
        return all(
            value.ndim == 0 or value.shape == parameters[number].shape or loose
            if isinstance(value, Tensor)
            else value is None or isinstance(value, (int, float))
            for number, values in states.items()
            for value in values.values()
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        return False


def unwrapped_state_dict(module: nn.Module) -> dict[str, Any]:
    """Return the module's state dict under its own names, without those of wrappers (DataParallel, torch.compile) in it."""
    wraps = set()
    for name, part in module.named_modules():
        for child in ("module", "_orig_mod"):
            if isinstance(part, WRAPPERS[child]) and hasattr(part, child):
                wraps.add(f"{name}.{child}".lstrip("."))

    def own(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in wraps)

    return {own(name): value for name, value in module.state_dict().items()}


def match_state_dict(found: Any, module: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tensors ``found`` in a file under the names of ``module``, wrappers stripped on either side.

    Raises:
        FileError: If a name is missing or too much, or a shape differs, with a table of what does not match.
    """
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        what = type(found).__name__
        raise FileError(f"{str(path)!r} holds no weights: it is {what}, not a state dict of names and tensors.")
    wanted, tensors = module.state_dict(), dict(found)
    if set(wanted) != set(tensors):
        short, names = {_short(name): value for name, value in tensors.items()}, {_short(name): name for name in wanted}
        if len(short) == len(tensors) and len(names) == len(wanted):
            tensors = {names.get(name, name): value for name, value in short.items()}
    rows = []
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    for what, some, others, shapes in (
        ("missing in the file", missing, unexpected[:ROWS], wanted),
        ("not in the module", unexpected, missing[:ROWS], tensors),
    ):
        hints = {name: did_you_mean(name[:200], others).strip() for name in some[:ROWS]}
        rows += [(what, name[:200], _shape(shapes[name]), hints.get(name, "")) for name in some]
    for name in wanted:
        if name in tensors and isinstance(wanted[name], Tensor) and not _same_kind(tensors[name], wanted[name]):
            there, here = _shape(tensors[name]), _shape(wanted[name])
            rows.append(("another shape", name, f"{there} in the file", f"{here} in the module"))
    if rows:
        raise FileError(
            f"{str(path)!r} belongs to another module: {len(rows)} of {len(set(wanted) | set(tensors))} names do not match.\n"
            + _table(rows)
            + "\nBuild the module with the layers and sizes that were saved. Nothing was changed."
        )
    return tensors


WRAPPERS: dict[str, tuple[type, ...]] = {
    "module": (nn.DataParallel, nn.parallel.DistributedDataParallel),
    "_orig_mod": (nn.Module,),  # nothing but torch.compile's wrapper has such a child
}


def _short(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return ".".join(parts)


def _same_kind(found: Any, wanted: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == wanted.shape and found.layout == wanted.layout


ROWS = 20


def _table(rows: list[tuple[str, str, str, str]], most: int = ROWS) -> str:
    widths = [max(len(row[i]) for row in rows[:most]) for i in range(3)] + [0]
    lines = ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)) for row in rows[:most]]
    more = [f"... and {len(rows) - most} more"] if len(rows) > most else []
    return "\n".join("  " + line.rstrip() for line in [*lines, *more])


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
