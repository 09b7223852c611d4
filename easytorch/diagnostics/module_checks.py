"""Checks of a module before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from easytorch._utils.warnings import warn


def check_module(module: Any) -> None:
    """Check that ``module`` is an ``nn.Module``, and warn about layers in a plain list or dict.

    Raises:
        TypeError: If it is not an ``nn.Module``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"Model expects a torch.nn.Module, received {module!r}. {_module_fix(module)}")
    if "_modules" not in vars(module):
        name = type(module).__name__
        raise TypeError(
            f"{name}.__init__ does not call super().__init__(). Add this call as its first line, before layers are assigned."
        )
    registered = set(module.modules())
    for parent in module.modules():
        for name, value in vars(parent).items():
            if not name.startswith("_") and _has_unregistered_layer(value, registered):
                warn(_unregistered_message(parent, name, value))


def _module_fix(value: Any) -> str:
    if isinstance(value, type):
        return f"Create an object of the class first: {value.__name__}()."
    if isinstance(getattr(value, "module", None), nn.Module):
        return "It is a Model already: call its methods, or pass its module."
    if isinstance(value, str):
        return f"Create the module by a function, such as torchvision.models.{value}() or timm.create_model({value!r})."
    return "Combine layers with nn.Sequential(*layers)."


def _has_unregistered_layer(value: Any, registered: set[nn.Module]) -> bool:
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    layers = [layer for layer in values if isinstance(layer, nn.Module) and layer not in registered]
    return any(parameter.requires_grad for layer in layers for parameter in layer.parameters())


def _unregistered_message(parent: nn.Module, name: str, value: Any) -> str:
    container = "ModuleDict" if isinstance(value, Mapping) else "ModuleList"
    return (
        f"{type(parent).__name__}.{name} is a plain {type(value).__name__} of layers. torch does not register them: they are "
        f"neither trained nor saved. Use nn.{container}. If they are meant to stay fixed, call requires_grad_(False) on them."
    )
