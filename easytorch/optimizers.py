"""Optimizers by name, in torch's fastest implementation."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from easytorch._utils.api_hints import OPTIMIZER_HINTS, missing_class_error
from easytorch._utils.registry import find
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.warnings import warn

# LBFGS needs a closure: override Model.update.
NEEDS_CLOSURE = ("LBFGS",)

TABLE: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): optimizer
    for name, optimizer in vars(torch.optim).items()
    if isinstance(optimizer, type)
    and issubclass(optimizer, torch.optim.Optimizer)
    and optimizer is not torch.optim.Optimizer
    and name not in NEEDS_CLOSURE
}


def resolve_optimizer(
    optimizer: Any, module: nn.Module, lr: float | None = None, loss_parameters: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer | None:
    """Return the optimizer for the argument of ``compile``.

    Args:
        optimizer: A name; a ``torch.optim.Optimizer``; a class, ``functools.partial`` or function that returns an optimizer
            for a list of parameters; or None for a model that is not trained.
        module: The module with the parameters to train.
        lr: The learning rate; None (default) uses the default of the optimizer.
        loss_parameters: Parameters of the loss, to train as well.

    Raises:
        ValueError: If the name is unknown, ``lr`` has no effect, or the module has no parameters to train.
        TypeError: If ``optimizer`` has another type.
    """
    _check_lr(lr)
    if optimizer is None:
        return None
    is_other_class = isinstance(optimizer, type) and not issubclass(optimizer, torch.optim.Optimizer)
    if is_other_class or (not callable(optimizer) and not isinstance(optimizer, (str, torch.optim.Optimizer))):
        raise TypeError(
            f"Expected an optimizer, received {optimizer!r}. Pass a name such as 'adam', a torch.optim.Optimizer, or a "
            "function such as lambda parameters: torch.optim.Adam(parameters)."
        )
    parameters = _check_parameters(module, loss_parameters)
    if isinstance(optimizer, str):
        return _create_by_name(optimizer, parameters, module, lr)
    if isinstance(optimizer, torch.optim.Optimizer):
        return _check_instance(optimizer, parameters, lr)
    return _call_factory(optimizer, parameters, lr)


def check_optimizer_is_current(
    optimizer: torch.optim.Optimizer, module: nn.Module, loss_parameters: Sequence[nn.Parameter] = ()
) -> None:
    """Warn or raise if a change after ``compile`` would make training differ from what the code suggests.

    Raises:
        ValueError: If a learning rate was set that torch does not read, or a layer was replaced.
    """
    _check_attributes(optimizer)
    _check_layers(optimizer, [*module.parameters(), *loss_parameters])
    _warn_of_trainable(module)


def _check_lr(lr: Any) -> None:
    is_number = isinstance(lr, (numbers.Real, torch.Tensor)) and not isinstance(lr, bool)
    if lr is not None and not (is_number and lr >= 0):
        raise ValueError(f"lr must be a number of at least 0, received {lr!r}. Use a number such as lr=0.001.")


def _check_attributes(optimizer: torch.optim.Optimizer) -> None:
    for name in ("lr", "learning_rate"):
        if name in vars(optimizer):
            value = vars(optimizer)[name]
            raise ValueError(
                f"optimizer.{name} = {value!r} has no effect in torch. Set optimizer.param_groups[0]['lr'] = {value!r} for each "
                f"group, or call compile(lr={value!r})."
            )


def _check_layers(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in parameters if p.requires_grad}
    has_old_parameters = bool(optimized - {id(p) for p in parameters})
    if has_old_parameters and trainable - optimized:
        raise ValueError(
            "A layer of the module was replaced after compile(): the optimizer has the parameters of the old layer and lacks "
            "those of the new one. Call compile() again."
        )


def _warn_of_trainable(module: nn.Module) -> None:
    """Warn of layers with Keras' ``trainable = False``."""
    for name, layer in module.named_modules():
        if vars(layer).get("trainable") is False and any(p.requires_grad for p in layer.parameters()):
            path = f"module.{name}" if name else "module"
            warn(
                f"{path}.trainable = False has no effect in torch, so its parameters will be trained. "
                f"Freeze them: {path}.requires_grad_(False)."
            )


def _check_parameters(module: nn.Module, loss_parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of ``module`` and of the loss; raise a ``ValueError`` if none of them can be trained."""
    parameters = [*module.parameters(), *loss_parameters]
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(
            "The module has lazy layers, whose parameters have no shape yet. Run one batch through it before "
            "compile(), for example net(x[:2]), or call compile() after predict()."
        )
    if not parameters:
        raise ValueError(
            f"The module {type(module).__name__} has no parameters, so there is nothing to train. Assign its layers in "
            "__init__ (use nn.ModuleList instead of a list), or compile with optimizer=None."
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError(
            "All parameters of the module are frozen (requires_grad=False), so there is nothing to train. Call "
            "requires_grad_(True) on the layers to train before compile(), or compile with optimizer=None."
        )
    return parameters


def _create_by_name(
    name: str, parameters: list[nn.Parameter], module: nn.Module, lr: float | None
) -> torch.optim.Optimizer:
    cls: Any = find(
        "optimizer",
        name,
        TABLE,
        otherwise="a torch.optim.Optimizer, or a function such as lambda parameters: torch.optim.Adam(parameters)",
    )
    options: dict[str, Any] = {} if lr is None else {"lr": lr}
    optimizer: torch.optim.Optimizer = cls(parameters, **options, **_fast_options(cls, parameters, module))
    return optimizer


def _fast_options(
    cls: type[torch.optim.Optimizer], parameters: list[nn.Parameter], module: nn.Module
) -> dict[str, bool]:
    """Return ``fused`` or ``foreach`` where torch supports them; results differ from the default in the last bits only."""
    devices = {p.device.type for p in parameters}
    # Without momentum, SGD on a CPU is one addition per tensor: the default is as fast.
    if not _support_fast_options(parameters, module) or (cls is torch.optim.SGD and devices == {"cpu"}):
        return {}
    known = inspect.signature(cls).parameters
    if "fused" in known and devices <= {"cpu", "cuda", "mps", "xpu"}:
        return {"fused": True}
    return {"foreach": True} if "foreach" in known and devices != {"cpu"} else {}


def _support_fast_options(parameters: list[nn.Parameter], module: nn.Module) -> bool:
    """Return whether all parameters are ordinary floating-point tensors with dense gradients."""
    has_sparse_gradients = any(getattr(layer, "sparse", False) for layer in module.modules())
    return not has_sparse_gradients and all(type(p) is nn.Parameter and p.is_floating_point() for p in parameters)


def _check_instance(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], lr: float | None
) -> torch.optim.Optimizer:
    """Return ``optimizer``; raise a ``ValueError`` if it ignores ``lr`` or has parameters of another module."""
    known = {id(p) for p in parameters}
    foreign = sum(id(p) not in known for group in optimizer.param_groups for p in group["params"])
    if foreign:
        is_sharded = any(hasattr(parameter, "to_local") for parameter in parameters)
        raise ValueError(
            f"{foreign} of the optimizer's parameters do not belong to the module or to the loss, so training would not "
            "change them. "
            + (
                "The first compile() with strategy='fsdp' replaced them by shards: create the optimizer from "
                "model.module.parameters() now."
                if is_sharded
                else "Create the optimizer from the parameters of the module that was given to Model()."
            )
        )
    if lr is not None:
        raise ValueError(
            f"lr={lr} has no effect on an optimizer that exists already. Set it there: "
            f"torch.optim.{type(optimizer).__name__}(net.parameters(), lr={lr})."
        )
    return optimizer


def _call_factory(
    factory: Callable[..., Any], parameters: list[nn.Parameter], lr: float | None
) -> torch.optim.Optimizer:
    if lr is not None and not _accepts_lr(factory, parameters, lr):
        raise ValueError(
            f"lr={lr} was passed with an optimizer function that takes no lr. Set it in the function, or add the argument: "
            "lambda parameters, lr: torch.optim.Adam(parameters, lr=lr)."
        )
    optimizer = factory(parameters) if lr is None else factory(parameters, lr=lr)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"The optimizer function {factory!r} must return a torch.optim.Optimizer, received {optimizer!r}."
        )
    return optimizer


def _accepts_lr(factory: Callable[..., Any], parameters: list[nn.Parameter], lr: float) -> bool:
    try:
        inspect.signature(factory).bind(parameters, lr=lr)
    except TypeError:
        return False
    except ValueError:
        # Built-in functions have no signature.
        return True
    return True


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return ``{"lr": ...}``, the rate of the first parameter group, and ``lr_1``, ``lr_2``, ... if the rates differ."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    others = {} if len(set(rates)) == 1 else {f"lr_{i}": rate for i, rate in enumerate(rates) if i}
    return {"lr": rates[0], **others}


@hide_internal_frames
def __getattr__(name: str) -> Any:
    usage = "compile({name!r}, loss, lr=0.001), or an optimizer of torch.optim"
    raise missing_class_error("easytorch.optimizers", name, OPTIMIZER_HINTS, TABLE, usage)
