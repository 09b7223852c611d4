"""The hyperparameters of a run as plain values."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils.registry import get_name

if TYPE_CHECKING:
    from easytorch.model import Model

# Longest text of a value.
MAX_LENGTH = 500
# Entries of the record of a fit that are hyperparameters.
FIT_ARGUMENTS = (
    "epochs", "shuffle", "steps_per_epoch", "validation_split", "validation_freq", "validation_steps", "class_weight",
)  # fmt: skip


def describe_run(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a fit by name, as numbers, bools and text; those that are None are left out.

    They are the class and the number of parameters of the module, the arguments of ``compile``, the options of the optimizer,
    the arguments of ``fit`` that are no data, and device, precision and the version of torch.

    Args:
        model: The model that is trained.
        params: The ``params`` of the callbacks of the fit.
    """
    parameters = list(model.module.parameters())
    config: dict[str, Any] = {
        "module": type(model.module).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }
    for name, value in (model.compile_args or {}).items():
        if name == "optimizer_options":
            config |= {f"optimizer_{option}": _as_plain(setting) for option, setting in value.items()}
        elif value is not None and (name != "loss_weights" or value) and not (isinstance(value, tuple) and not value):
            config[name] = _as_plain(value)
    optimizer = model.require_optimizer("fit")
    if len(optimizer.param_groups) == 1:
        config["lr"] = float(optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"]))
    record = params.get("record")
    if record is not None:
        config |= {name: _as_plain(getattr(record, name)) for name in FIT_ARGUMENTS}
        config["callbacks"] = ", ".join(callback.name for callback in record.callbacks) or None
    loader = getattr(model.train_data, "loader", None)
    config["batch_size"] = _as_plain(getattr(loader, "batch_size", None))
    config |= {
        "device": str(model.device),
        "precision": str(getattr(model.strategy, "precision", None) or "fp32"),
        "processes": model.strategy.group.world_size,
        "torch": str(torch.__version__),
    }
    return {name: value for name, value in config.items() if value is not None}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``values`` as numbers, bools and text, with nested names joined by points: ``{"model": {"depth": 3}}`` becomes
    ``{"model.depth": 3}``.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = _as_plain(value)
    return flat


def merge_config(described: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the hyperparameters of a fit and those of the user, and a warning, or no text, about those that differ.

    The names of the fit keep their true values. Another value of the user is under ``config.<name>``.

    Args:
        described: What ``describe_run`` has returned.
        given: The hyperparameters of the user, flat.
    """
    config, different = dict(described), []
    for name, value in given.items():
        if name not in described:
            config[name] = value
        elif value != described[name] and str(value) != str(described[name]):
            config[f"config.{name}"] = value
            different.append(f"{name}={value!r} (the fit has {described[name]!r})")
    if not different:
        return config, ""
    warning = (
        f"config has other values than the fit: {', '.join(different)}. The run keeps the true values, and has those of config "
        f"as {', '.join(name for name in config if name.removeprefix('config.') in described and name not in described)}. "
        "Remove or rename them."
    )
    return config, warning


def _as_plain(value: Any) -> Any:
    """Return ``value`` as a number, a bool or text; None stays None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return _as_text(value)[:MAX_LENGTH]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_as_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
        return json.dumps([as_jsonable(part) for part in value])
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(_as_text, value))
    if isinstance(value, torch.optim.Optimizer):
        return type(value).__name__
    if isinstance(value, torch.nn.Module):
        return repr(value).partition("\n")[0] if value.extra_repr() else type(value).__name__
    return get_name(value) if callable(value) else str(value)


def as_jsonable(value: Any) -> Any:
    """Return ``value`` with its lists and dicts, as what JSON holds."""
    if isinstance(value, Mapping):
        return {str(name): as_jsonable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_jsonable(part) for part in value]
    return _as_plain(value)
