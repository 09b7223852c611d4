"""Checks of a module before it is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from easytorch._utils.warnings import warn


def check_module(module: Any) -> None:
    """Refuse what is no module, and warn of layers in a plain list or dict, which torch does not see.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(module, nn.Module):
        cure = "It is a Model already." if hasattr(module, "module") else "Layers go into nn.Sequential(*layers)."
        cure = "Is it a class to be called first?" if isinstance(module, type) else cure
        raise TypeError(f"Model takes a torch.nn.Module, received {module!r}. {cure}")
    known = set(module.modules())
    for owner in known:
        for name, value in vars(owner).items():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
            hidden = [part for part in parts if isinstance(part, nn.Module) and part not in known]
            if not name.startswith("_") and any(p.requires_grad for part in hidden for p in part.parameters()):
                kind = "ModuleDict" if isinstance(value, dict) else "ModuleList"
                warn(
                    f"{type(owner).__name__}.{name} is a plain {type(value).__name__} of layers, which torch does not see: they "
                    f"will be neither trained nor saved. Use nn.{kind}; if they are meant to stay as they are, freeze them by "
                    "requires_grad_(False)."
                )
