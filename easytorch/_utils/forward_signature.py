"""How a module's forward is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class ForwardSignature(NamedTuple):
    """The arguments that a module's ``forward`` takes."""

    names: tuple[str, ...]
    positional: float = 1
    any_keyword: bool = False
    required: int = 1  # arguments that have no default

    @classmethod
    def of(cls, module: nn.Module) -> ForwardSignature:
        """Read the signature of ``module.forward``."""
        parameters = inspect.signature(module.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        star = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        positional = float("inf") if star else sum(p.kind != p.KEYWORD_ONLY for p in named)
        keywords = any(p.kind == p.VAR_KEYWORD for p in parameters)
        return cls(tuple(p.name for p in named), positional, keywords, sum(p.default is p.empty for p in named))

    def call(self, function: Callable[..., Any], x: Any) -> Any:
        """Call ``function``, the module or its compiled twin, with whatever ``x`` is.

        A tensor is the only argument; a tuple or list is spread over as many arguments as it has parts, if the module
        takes that many; a dict whose keys are arguments is passed by name. Otherwise the module gets ``x`` itself.
        """
        if isinstance(x, Tensor):
            return function(x)
        if isinstance(x, Mapping) and (self.any_keyword or set(x) <= set(self.names)):
            return function(**x)
        if isinstance(x, (tuple, list)) and not hasattr(x, "_fields") and len(x) <= self.positional:
            return function(*x)
        return function(x)
