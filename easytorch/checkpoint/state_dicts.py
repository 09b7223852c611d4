"""Matching of state dicts with a module or an optimizer."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from easytorch._utils.paths import printable
from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn
from easytorch.errors import FileError

MAX_ROWS = 20
MAX_NAME_LENGTH = 200
# The wrapped module by attribute name, and the types of wrappers that have it. Only torch.compile adds "_orig_mod".
WRAPPERS: dict[str, tuple[type, ...]] = {
    "module": (nn.DataParallel, nn.parallel.DistributedDataParallel),
    "_orig_mod": (nn.Module,),
}


def check_optimizer(
    content: dict[str, Any],
    optimizer: torch.optim.Optimizer | None,
    path: str | os.PathLike[str],
    refuse: type[Exception] | None = None,
) -> None:
    """Remove the optimizer state from ``content`` with a warning if it does not match ``optimizer``.

    Args:
        content: The content of ``path``.
        optimizer: The optimizer that would load the state.
        path: The file, for the message.
        refuse: An exception type to raise instead of a warning.
    """
    if not content.get("optimizer") or optimizer is None:
        return
    has_same_kind = content.get("optimizer_kind", type(optimizer).__name__) == type(optimizer).__name__
    if has_same_kind and can_load(content["optimizer"], optimizer):
        return
    content["optimizer"] = None
    message = f"The optimizer state in {str(path)!r} is not that of {type(optimizer).__name__} with these parameters"
    if refuse is not None:
        raise refuse(f"{message}. Use the compile() arguments of that run, or start a new run in another folder.")
    warn(
        f"{message}, so the optimizer starts with an empty state; everything else is restored. "
        "To restore it, use the compile() arguments of the saved model."
    )


def unwrapped_state_dict(module: nn.Module) -> dict[str, Any]:
    """Return the state dict of ``module`` without the prefixes of wrappers (DataParallel, torch.compile) in it."""
    wrapped_names = {
        f"{name}.{attribute}".lstrip(".")
        for name, submodule in module.named_modules()
        for attribute, wrappers in WRAPPERS.items()
        if isinstance(submodule, wrappers) and hasattr(submodule, attribute)
    }

    def unwrap(name: str) -> str:
        keys = name.split(".")
        return ".".join(key for i, key in enumerate(keys) if ".".join(keys[: i + 1]) not in wrapped_names)

    state = module.state_dict()
    versions = {unwrap(name): value for name, value in get_versions(state).items()}
    return with_versions({unwrap(name): value for name, value in state.items()}, versions)


def get_versions(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions of the modules in a state dict, by which torch converts old ones; empty if it has none."""
    return dict(getattr(state, "_metadata", {}))


def with_versions(values: Mapping[str, Any], versions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with the ``versions`` of its modules."""
    state = OrderedDict(values)
    if versions:
        vars(state)["_metadata"] = dict(versions)
    return state


def match_state_dict(found: Any, module: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tensors ``found`` in a file under the names of ``module``, without the prefixes of wrappers.

    Raises:
        FileError: If names are missing or unexpected, or shapes differ, with a table of the differences.
    """
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise FileError(
            f"{str(path)!r} holds no weights: expected a state dict of names and tensors, received "
            f"{type(found).__name__}. Pass a file of save(), save_weights() or torch.save(net.state_dict(), path)."
        )
    expected = module.state_dict()
    tensors = rename(found, expected)
    mismatch = Mismatch(tensors, expected)
    if mismatch.count and not _can_load(module, tensors):
        raise FileError(
            f"{str(path)!r} belongs to another module: {mismatch.count} of {len({*expected, *tensors})} names do not match.\n"
            f"{mismatch.table()}\nBuild the module with the layers and sizes that were saved, or load only the weights that fit: "
            "load_weights(path, strict=False). Nothing was changed."
        )
    return tensors


def merge_state_dict(
    found: Any, module: nn.Module, current: Mapping[str, Any], path: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return ``current`` with those tensors ``found`` in a file that fit. Warn of all others, with a table.

    Args:
        found: The state dict in the file.
        module: The module.
        current: Its state dict, with complete tensors.
        path: The file, for the message.

    Raises:
        FileError: If no tensor fits.
    """
    try:
        return match_state_dict(found, module, path)
    except FileError:
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise
        tensors = rename(found, current)
        mismatch = Mismatch(tensors, current)
        skipped = {*mismatch.unexpected, *mismatch.reshaped}
        fitting = {name: value for name, value in tensors.items() if name not in skipped}
        if not fitting:
            raise
    warn(
        f"{len(mismatch.missing) + len(mismatch.reshaped)} of {len(current)} weights keep their values, because "
        f"{str(path)!r} does not fit the module (strict=False).\n{mismatch.table()}\n"
        "If they should have been loaded, build the module with the layers and sizes that were saved."
    )
    return {**current, **fitting}


def _can_load(module: nn.Module, tensors: Mapping[str, Any]) -> bool:
    """Return whether a copy of ``module`` loads ``tensors`` itself: hooks may rename them, and lazy modules take their shapes."""
    try:
        copy.deepcopy(module).load_state_dict(tensors, strict=True)
    except Exception:  # hooks and __deepcopy__ of a module may raise anything, and the mismatch is reported then
        return False
    return True


class Mismatch:
    """Differences between the state dict in a file and that of a module.

    Args:
        tensors: The state dict in the file.
        expected: The state dict of the module.
    """

    def __init__(self, tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        self.tensors, self.expected = tensors, expected
        self.missing = [name for name in expected if name not in tensors]
        self.unexpected = [name for name in tensors if name not in expected]
        shared = [name for name, value in expected.items() if name in tensors and isinstance(value, Tensor)]
        self.reshaped = [name for name in shared if not _has_same_shape(tensors[name], expected[name])]

    @property
    def count(self) -> int:
        """The number of names that do not match."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def table(self) -> str:
        """Return a table of at most ``MAX_ROWS`` rows: the problem, the name, the shape, and a similar name."""
        rows = _name_rows("missing in the file", self.missing, self.expected, self.unexpected)
        rows += _name_rows("not in the module", self.unexpected, self.tensors, self.missing)
        for name in self.reshaped:
            shapes = f"{_shape(self.tensors[name])} in the file", f"{_shape(self.expected[name])} in the module"
            rows.append(("another shape", printable(name, MAX_NAME_LENGTH), *shapes))
        rows = rows[:MAX_ROWS]
        widths = [max(len(row[i]) for row in rows) for i in range(3)] + [0]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if self.count > MAX_ROWS:
            lines.append(f"... and {self.count - MAX_ROWS} more")
        return "\n".join("  " + line.rstrip() for line in lines)


def _name_rows(
    problem: str, names: list[str], values: Mapping[str, Any], candidates: list[str]
) -> list[tuple[str, str, str, str]]:
    shown = [(printable(name, MAX_NAME_LENGTH), _shape(values[name])) for name in names[:MAX_ROWS]]
    similar = [printable(candidate, MAX_NAME_LENGTH) for candidate in candidates[:MAX_ROWS]]
    return [(problem, name, shape, did_you_mean(name, similar).strip()) for name, shape in shown]


def rename(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``found`` under the names of ``expected`` that are equal except for the prefixes of wrappers."""
    versions = get_versions(found)
    if set(found) == set(expected):
        return with_versions(found, versions)
    values = {_strip_wrappers(name): value for name, value in found.items()}
    names = {_strip_wrappers(name): name for name in expected}
    if len(values) < len(found) or len(names) < len(expected):
        return with_versions(found, versions)
    stripped = {_strip_from_module(name): value for name, value in versions.items()}
    modules = {name: _strip_from_module(name) for name in get_versions(expected)}
    of_modules = {name: stripped[key] for name, key in modules.items() if key in stripped}
    return with_versions({names.get(name, name): value for name, value in values.items()}, of_modules)


def _strip_wrappers(name: str) -> str:
    keys = [key for key in name.split(".") if key != "_orig_mod"]
    while keys[0] == "module" and len(keys) > 1:
        del keys[0]
    return ".".join(keys)


def _strip_from_module(name: str) -> str:
    """Return the name of a weight of the module ``name`` without the prefixes of wrappers."""
    return _strip_wrappers(f"{name}.weight".lstrip("."))


def _has_same_shape(value: Any, expected: Tensor) -> bool:
    if is_lazy(expected):  # it has no shape yet
        return False
    return isinstance(value, Tensor) and value.shape == expected.shape and value.layout == expected.layout


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def has_own_state_format(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``optimizer`` defines what its state dict contains, as those that wrap another optimizer do."""
    return type(optimizer).state_dict is not torch.optim.Optimizer.state_dict


def can_load(state: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``optimizer`` can load ``state``; the format of some custom optimizers is unknown."""
    fits_state = getattr(optimizer, "fits_state", None)
    if fits_state is not None:
        return bool(fits_state(state))
    return has_own_state_format(optimizer) or fits_optimizer(state, optimizer)


def fits_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Return whether everything in the state dict ``state`` belongs to a parameter of its shape.

    ``load_state_dict`` does not check shapes, and a fused optimizer would write outside the memory of the state.
    """
    try:
        groups, states = state["param_groups"], state["state"]
        return (
            [len(group["params"]) for group in groups] == [len(group["params"]) for group in optimizer.param_groups]
            and _has_all_settings(groups, optimizer)
            and _fits_parameters(states, _parameters_by_number(groups, optimizer), optimizer)
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        return False


def _has_all_settings(groups: Iterable[Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``groups`` have every setting of ``optimizer`` after its ``__setstate__``."""
    filled = [dict(group) for group in groups]
    # An older torch has fewer settings. __setstate__ adds the new ones, in load_state_dict and in this copy.
    copy = type(optimizer).__new__(type(optimizer))
    copy.__setstate__({**vars(optimizer), "state": {}, "param_groups": filled, "defaults": dict(optimizer.defaults)})
    return all(group.keys() >= optimizer.defaults.keys() for group in filled)


def _parameters_by_number(groups: Iterable[Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> dict[Any, Tensor]:
    numbers = [number for group in groups for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return dict(zip(numbers, parameters, strict=True))


def _fits_parameters(
    states: Mapping[Any, Mapping[str, Any]], parameters: Mapping[Any, Tensor], optimizer: torch.optim.Optimizer
) -> bool:
    """Return whether each value in ``states`` is a number, None, or a tensor of the shape of its parameter."""
    torch_types = [kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch.optim.")]
    # The state of a custom optimizer or of LBFGS may have any shape.
    if torch_types == [torch.optim.Optimizer] or isinstance(optimizer, torch.optim.LBFGS):
        return set(states) <= set(parameters)
    # Adafactor stores the means of rows and columns.
    has_any_shape = isinstance(optimizer, torch.optim.Adafactor)

    def fits(value: Any, parameter: Tensor) -> bool:
        if not isinstance(value, Tensor):
            return value is None or isinstance(value, (int, float))
        return value.ndim == 0 or value.shape == parameter.shape or has_any_shape

    return all(fits(value, parameters[number]) for number, values in states.items() for value in values.values())
