"""Optimizers by name, with torch's own defaults, the fast implementation where there is one."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import profiler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from easytorch._utils.registry import find
from easytorch._utils.warnings import warn

TABLE: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): optimizer
    for name, optimizer in vars(torch.optim).items()
    if isinstance(optimizer, type)
    and issubclass(optimizer, torch.optim.Optimizer)
    and optimizer is not torch.optim.Optimizer
    and name != "LBFGS"  # needs a closure: override Model.update
}


def resolve(optimizer: Any, module: nn.Module, lr: float | None = None) -> torch.optim.Optimizer | None:
    """Return the optimizer for what the user passed to ``compile``.

    Args:
        optimizer: A name, a ``torch.optim`` instance, anything that makes one from parameters (a class, a
            ``functools.partial``, a function), or None for a model that is not trained.
        module: The module whose parameters it is to train.
        lr: The learning rate; None keeps the optimizer's own.

    Raises:
        ValueError: If the name is unknown or the module has nothing to train.
        TypeError: If it is none of these.
    """
    number = isinstance(lr, (numbers.Real, torch.Tensor)) and not isinstance(lr, bool)
    if lr is not None and not (number and lr >= 0):
        raise ValueError(f"lr must be a number of at least 0, received {lr!r}.")
    if optimizer is None:
        return None
    if not callable(optimizer) and not isinstance(optimizer, (str, torch.optim.Optimizer)):
        raise TypeError(
            f"Expected an optimizer, received {optimizer!r}. Pass a name such as 'adam', a torch.optim.Optimizer, or a "
            "function that makes one from parameters."
        )
    parameters = _trainable(module)
    if isinstance(optimizer, str):
        cls = find(
            "optimizer",
            optimizer,
            TABLE,
            otherwise="a torch.optim.Optimizer, or a function that makes one from parameters",
        )
        return cls(parameters, **({} if lr is None else {"lr": lr}), **_fast(cls, parameters, module))  # type: ignore[arg-type]  # each has others
    if isinstance(optimizer, torch.optim.Optimizer):
        return _with_lr(_check_owned(optimizer, module), lr)
    made = _make(optimizer, parameters, lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"{optimizer!r} was to make an optimizer from parameters, but it returned {made!r}.")
    return made


# The code of what torch wraps the step of every class in.
NOTED = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def step(optimizer: torch.optim.Optimizer) -> None:
    """Update the parameters, as ``optimizer.step()`` does, in two thirds of its time for a small network: it notes itself for a
    profiler, which is left out where nobody profiles, no hook listens, and the step is the class' own.
    """
    method: Any = type(optimizer).step
    watched = (
        profiler._is_profiler_enabled
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
    if watched or "step" in vars(optimizer) or getattr(method, "__code__", None) is not NOTED:
        optimizer.step()
    else:
        method.__wrapped__(optimizer)


def zero_grad(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients, as ``optimizer.zero_grad()`` does, in a tenth of its time: it notes itself for a profiler."""
    if "zero_grad" in vars(optimizer) or type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()  # its own
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _make(factory: Callable[..., Any], parameters: list[nn.Parameter], lr: float | None) -> Any:
    if lr is None:
        return factory(parameters)
    try:
        inspect.signature(factory).bind(parameters, lr=lr)
    except TypeError:
        raise ValueError(
            f"lr={lr} was given with a function that makes the optimizer and takes no lr. Set it in there, or let it take one: "
            "lambda parameters, lr: ..."
        ) from None
    except ValueError:  # a built-in, which tells nothing about itself
        return factory(parameters, lr=lr)
    return factory(parameters, lr=lr)


def _with_lr(optimizer: torch.optim.Optimizer, lr: float | None) -> torch.optim.Optimizer:
    if lr is not None:
        raise ValueError(
            f"lr={lr} was given with an optimizer that is already made. Set it there: "
            f"torch.optim.{type(optimizer).__name__}(net.parameters(), lr={lr})."
        )
    return optimizer


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    parameters = list(module.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(
            "The module has lazy layers, whose parameters have no shape yet. Run one batch through it before "
            "compile(), for example net(x[:2]), or call compile() after predict()."
        )
    if not parameters:
        raise ValueError(
            f"The module has no parameters, so there is nothing to train: {type(module).__name__}. Assign its layers in "
            "__init__ (layers kept in a plain list are not found; use nn.ModuleList), or compile with optimizer=None."
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError(
            "Every parameter of the module is frozen (requires_grad=False), so there is nothing to train. Unfreeze "
            "those to train before compile(), or compile with optimizer=None."
        )
    return parameters


def _check_owned(optimizer: torch.optim.Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    own = {id(p) for p in module.parameters()}
    foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise ValueError(
            f"{foreign} of the optimizer's parameters do not belong to the module, so training would not change it. "
            "Make the optimizer from the parameters of the module that was given to Model()."
        )
    return optimizer


def check_current(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Raise a ``ValueError`` where something was changed behind ``compile``, so that training would not do what it seems to."""
    for name in ("lr", "learning_rate"):
        if name in vars(optimizer):
            raise ValueError(
                f"optimizer.{name} was set, which torch does not read. Set it for each group, optimizer.param_groups[0]['lr'] = "
                f"{vars(optimizer)[name]!r}, or by compile(lr=...)."
            )
    used = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p): p.requires_grad for p in module.parameters()}
    if used - own.keys() and any(trained and one not in used for one, trained in own.items()):
        raise ValueError(
            "A part of the module was replaced after compile(): the optimizer still has the parameters of the old one, and not "
            "those of the new one. Call compile() again."
        )
    for name, part in module.named_modules():
        if vars(part).get("trainable") is False and any(p.requires_grad for p in part.parameters()):
            warn(
                f"trainable = False of {name or 'the module'} is read by nobody, and it will be trained. Freeze it by "
                "requires_grad_(False)."
            )


def _fast(cls: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], module: nn.Module) -> dict[str, bool]:
    """Return ``fused`` or ``foreach`` where torch has them for these parameters; they differ in the last bits only."""
    known = inspect.signature(cls).parameters
    sparse = any(getattr(part, "sparse", False) for part in module.modules())  # fused ones refuse such gradients
    plain = not sparse and all(type(p) is nn.Parameter and p.is_floating_point() for p in parameters)
    devices = {p.device.type for p in parameters}
    if cls is torch.optim.SGD and devices == {"cpu"}:
        return {}  # without momentum it is one addition for each tensor, which nothing makes faster
    if plain and "fused" in known and devices <= {"cpu", "cuda", "mps", "xpu"}:
        return {"fused": True}
    return {"foreach": True} if plain and "foreach" in known and devices != {"cpu"} else {}
