"""Python expressions for values, losses, optimizers and schedulers of torch."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from easytorch._utils.registry import get_name, snake_case
from easytorch.losses.names import FUNCTION_FAMILIES, TORCH_LOSSES
from easytorch.optimizers import option_defaults, stock_class

# Numbers of a tensor that an expression contains at most.
MAX_NUMBERS = 1000


class InexpressibleError(ValueError):
    """A value that no expression makes; its text describes it."""


def literal(value: Any) -> str:
    """Return an expression that is equal to a plain value or a small tensor."""
    if isinstance(value, Tensor):
        return _tensor_literal(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, (tuple, list)):
        items = ", ".join(map(literal, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if value is None or isinstance(value, (bool, int, float, torch.dtype)):
        return repr(value)
    if isinstance(value, str):
        return quote(value)
    raise InexpressibleError(f"a value of type {type(value).__name__}")


def quote(text: str) -> str:
    """Return a literal of ``text`` in double quotes."""
    inner = repr(f"'{text}")[2:-1].replace('\\"', '"')
    return '"' + inner.replace('"', '\\"') + '"'


def _tensor_literal(tensor: Tensor) -> str:
    if tensor.numel() > MAX_NUMBERS:
        raise InexpressibleError(f"a tensor of {tensor.numel():,} numbers")
    dtype = "" if tensor.dtype in (torch.float32, torch.int64, torch.bool) else f", dtype={tensor.dtype}"
    return f"torch.tensor({literal(_shortest(tensor.detach().cpu().numpy()))}{dtype})"


def _shortest(values: Any) -> Any:
    """Return an array as nested lists, with the shortest numbers that are equal in its dtype."""
    if values.ndim:
        return [_shortest(value) for value in values]
    return float(str(values)) if values.dtype.kind == "f" else values.item()


def call(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any], first: str = "") -> str:
    """Return a call of ``name`` with all ``options`` that differ from their defaults.

    Args:
        name: The function.
        options: The arguments by name.
        defaults: The default of each argument that has one.
        first: Expressions of the positional arguments.
    """
    shown = [
        f"{key}={literal(value)}"
        for key, value in options.items()
        if key not in defaults or type(defaults[key]) is not type(value) or defaults[key] != value
    ]
    return f"{name}({', '.join(filter(None, [first, *shown]))})"


def identifier(text: str) -> str:
    """Return ``text`` as the name of a variable."""
    name = "".join(character if character.isalnum() else "_" for character in snake_case(text)).strip("_")
    return name if name.isidentifier() else f"value_{name}"


# Variables of a script, which no function of the user may have as its name.
VARIABLES = {
    "accumulation_steps", "batch_size", "batches", "best", "class_names", "class_weights", "cooldown", "count",
    "count_labels", "data", "device", "epoch", "epochs", "evaluate", "group", "inputs", "is_counted", "labels", "loader",
    "loss", "loss_fn", "loss_per_sample", "losses", "message", "net", "nn", "optimizer", "order", "outputs", "rate",
    "rate_factor",
    "repeat", "samples", "sample_weight", "scaler", "scheduler", "size", "step", "steps_per_epoch", "targets", "torch",
    "total", "total_steps", "train_data", "train_loader", "val_data", "val_loader", "validates", "values", "wait",
    "warmup_steps", "weights", "window", "windows", "x", "x_val", "y", "y_val",
}  # fmt: skip


def variable(name: str, otherwise: str) -> str:
    """Return the variable for a function of the user, ``otherwise`` if it has no name."""
    if not name.isidentifier():
        return otherwise
    is_taken = name in VARIABLES or name.startswith(("train_", "val_", "best_", "plateau_")) or name.endswith("_sum")
    return f"{name}_function" if is_taken else name


# Losses


def loss_expression(function: Any, **overrides: Any) -> str | None:
    """Return an expression of a loss of torch, with options replaced by ``overrides``; None for a custom one.

    Raises:
        InexpressibleError: If it is an object of torch with other attributes than its constructor sets.
    """
    if isinstance(function, nn.Module):
        return _loss_module_expression(function, overrides)
    base, options = function, dict[str, Any]()
    if isinstance(function, functools.partial) and not function.args:
        base, options = function.func, dict(function.keywords)
    if not any(base is known for known in FUNCTION_FAMILIES):
        return None
    name, options = f"F.{base.__name__}", options | overrides
    return call("functools.partial", options, {}, name) if options else name


def _loss_module_expression(loss: nn.Module, overrides: Mapping[str, Any]) -> str | None:
    cls = TORCH_LOSSES.get(snake_case(type(loss).__name__.removesuffix("Loss")))
    if cls is not type(loss):
        return None
    parameters = inspect.signature(cls).parameters
    options = {name: getattr(loss, name) for name in parameters if hasattr(loss, name)}
    known = {*vars(cls(**options)), "training"}
    if set(vars(loss)) - known or loss._forward_hooks or loss._forward_pre_hooks:
        raise InexpressibleError(f"the loss {type(loss).__name__} with other attributes")
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    shown = {
        name: value for name, value in options.items() if defaults.get(name, value) is not value or value is not None
    }
    return call(f"nn.{cls.__name__}", shown | dict(overrides), defaults)


# Optimizers


def optimizer_options(optimizer: Optimizer) -> dict[str, Any]:
    """Return the arguments of the constructor of ``optimizer``, without the parameters.

    Raises:
        InexpressibleError: If the constructor has other arguments than the optimizer has defaults.
    """
    cls: Any = stock_class(optimizer) or getattr(type(optimizer), "rate_base", type(optimizer))
    names = option_defaults(cls)
    missing = [name for name, default in names.items() if default is inspect.Parameter.empty]
    if any(name not in optimizer.defaults for name in missing):
        raise InexpressibleError(f"the optimizer {cls.__name__}, whose arguments are unknown")
    return {name: optimizer.defaults[name] for name in names if name in optimizer.defaults}


def optimizer_title(optimizer: Optimizer) -> tuple[str, bool]:
    """Return the name of the class of ``optimizer`` as an expression, and whether it is one of torch."""
    cls: Any = stock_class(optimizer) or getattr(type(optimizer), "rate_base", type(optimizer))
    return (f"torch.optim.{cls.__name__}", True) if stock_class(optimizer) else (cls.__name__, False)


# Schedulers

# The constructor arguments of each scheduler, and the attribute that stores each.
SCHEDULERS: dict[type[Any], dict[str, str]] = {
    lr_scheduler.StepLR: {"step_size": "step_size", "gamma": "gamma"},
    lr_scheduler.MultiStepLR: {"milestones": "milestones", "gamma": "gamma"},
    lr_scheduler.ExponentialLR: {"gamma": "gamma"},
    lr_scheduler.ConstantLR: {"factor": "factor", "total_iters": "total_iters"},
    lr_scheduler.LinearLR: {"start_factor": "start_factor", "end_factor": "end_factor", "total_iters": "total_iters"},
    lr_scheduler.PolynomialLR: {"total_iters": "total_iters", "power": "power"},
    lr_scheduler.CosineAnnealingLR: {"T_max": "T_max", "eta_min": "eta_min"},
    lr_scheduler.CosineAnnealingWarmRestarts: {"T_0": "T_0", "T_mult": "T_mult", "eta_min": "eta_min"},
    lr_scheduler.ReduceLROnPlateau: {
        name: name for name in ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
    },
}  # fmt: skip
PREFIX = "torch.optim.lr_scheduler."


def scheduler_expression(scheduler: Any, optimizer: Optimizer, rates: tuple[float, ...]) -> str:
    """Return an expression that creates ``scheduler`` from a variable ``optimizer`` with these initial ``rates``.

    Raises:
        InexpressibleError: If an expression would create another one.
    """
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        parts = ", ".join(_plain_scheduler(part, optimizer, rates) for part in scheduler._schedulers)
        milestones = literal(list(scheduler._milestones))
        return f"{PREFIX}SequentialLR(optimizer, [{parts}], milestones={milestones})"
    return _plain_scheduler(scheduler, optimizer, rates)


def _plain_scheduler(scheduler: Any, optimizer: Optimizer, rates: tuple[float, ...]) -> str:
    cls = type(scheduler)
    if cls is lr_scheduler.LambdaLR or cls is lr_scheduler.MultiplicativeLR:
        names = list(map(get_name, scheduler.lr_lambdas))
        if len(set(map(id, scheduler.lr_lambdas))) != 1 or not names[0].isidentifier():
            raise InexpressibleError(f"the function of {cls.__name__}, which has no name: define it with def")
        return f"{PREFIX}{cls.__name__}(optimizer, {names[0]})"
    options = _one_cycle_options(scheduler, optimizer) if cls is lr_scheduler.OneCycleLR else _stored_options(scheduler)
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    _check_twin(scheduler, optimizer, rates, options)
    return call(f"{PREFIX}{cls.__name__}", options, defaults, "optimizer")


def _stored_options(scheduler: Any) -> dict[str, Any]:
    cls = type(scheduler)
    if cls not in SCHEDULERS:
        raise InexpressibleError(f"the scheduler {cls.__name__}")
    options = {name: getattr(scheduler, attribute) for name, attribute in SCHEDULERS[cls].items()}
    if "milestones" in options:
        options["milestones"] = sorted(options["milestones"].elements())
    if cls is lr_scheduler.ReduceLROnPlateau and len(set(scheduler.min_lrs)) == 1:
        options["min_lr"] = scheduler.min_lrs[0]
    return options


def _one_cycle_options(scheduler: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Return the arguments of a ``OneCycleLR``, which it stores in the parameter groups."""
    group, total = optimizer.param_groups[0], scheduler.total_steps
    rates = [float(each["max_lr"]) for each in optimizer.param_groups]
    options: dict[str, Any] = {"max_lr": rates[0] if len(set(rates)) == 1 else rates, "total_steps": total}
    options["pct_start"] = round((scheduler._schedule_phases[0]["end_step"] + 1) / total, 12)
    options["anneal_strategy"] = scheduler._anneal_func_type
    if not scheduler.cycle_momentum:
        options["cycle_momentum"] = False
    options["div_factor"] = round(group["max_lr"] / group["initial_lr"], 9)
    options["final_div_factor"] = round(group["initial_lr"] / group["min_lr"], 6)
    if scheduler.cycle_momentum:
        options |= {"base_momentum": group["base_momentum"], "max_momentum": group["max_momentum"]}
    if len(scheduler._schedule_phases) == 3:
        options["three_phase"] = True
    return options


# What changes while a scheduler runs.
PROGRESS = {
    "last_epoch", "_step_count", "_last_lr", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter", "_is_initial",
    "optimizer", "verbose", "base_lrs", "_get_lr_called_within_step", "mode_worse",
}  # fmt: skip


def _check_twin(scheduler: Any, optimizer: Optimizer, rates: tuple[float, ...], options: Mapping[str, Any]) -> None:
    """Raise an ``InexpressibleError`` unless ``options`` create a scheduler with the attributes of ``scheduler``."""
    groups = [
        {"params": [nn.Parameter(torch.zeros(()))], "lr": rate, **_constant_options(group)}
        for rate, group in zip(rates, optimizer.param_groups, strict=True)
    ]
    cls: Any = stock_class(optimizer)
    twin_optimizer = cls(groups) if cls is not None else torch.optim.SGD(groups)
    twin = type(scheduler)(twin_optimizer, **options)
    first, second = (
        {name: value for name, value in vars(each).items() if name not in PROGRESS and not callable(value)}
        for each in (scheduler, twin)
    )
    keys = ("max_lr", "min_lr", "initial_lr", "base_momentum", "max_momentum")
    pairs = zip(optimizer.param_groups, twin_optimizer.param_groups, strict=True)
    is_equal = all(a.get(key) == b.get(key) for a, b in pairs for key in keys)
    if not is_equal or first.keys() != second.keys() or any(first[name] != second[name] for name in first):
        raise InexpressibleError(f"this {type(scheduler).__name__}, whose arguments cannot be read from it")


def _constant_options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copy.copy(group[name]) for name in ("momentum", "betas") if name in group}
