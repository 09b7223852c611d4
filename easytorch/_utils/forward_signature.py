"""The arguments of a module's forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class ForwardSignature(NamedTuple):
    """The arguments of a module's ``forward``.

    Attributes:
        names: The names of the arguments.
        positional: The number of positional arguments; infinite with ``*args``.
        any_keyword: Whether it has ``**kwargs``.
        required: The number of arguments without a default.
        required_names: The names of these arguments.
    """

    names: tuple[str, ...]
    positional: float = 1
    any_keyword: bool = False
    required: int = 1
    required_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> ForwardSignature:
        """Return the signature of ``module.forward``."""
        parameters = inspect.signature(module.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        has_varargs = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        positional = float("inf") if has_varargs else sum(p.kind != p.KEYWORD_ONLY for p in named)
        any_keyword = any(p.kind == p.VAR_KEYWORD for p in parameters)
        required = tuple(p.name for p in named if p.default is p.empty)
        return cls(tuple(p.name for p in named), positional, any_keyword, len(required), required)

    def takes(self, count: int) -> bool:
        """Return whether ``count`` positional arguments, and not fewer, are expected."""
        return count > 1 and (count == self.required or self.positional == float("inf"))

    def call(self, function: Callable[..., Any], x: Any) -> Any:
        """Call ``function`` with the inputs ``x``.

        A tuple or list becomes positional arguments if ``forward`` takes that many. A dict whose keys are arguments becomes
        keyword arguments. Everything else, such as a tensor, is the only argument.

        Args:
            function: The module or its compiled version.
            x: The inputs.
        """
        if isinstance(x, Tensor):
            return function(x)
        if isinstance(x, Mapping) and (self.any_keyword or set(x) <= set(self.names)):
            return function(**x)
        if isinstance(x, (tuple, list)) and not hasattr(x, "_fields") and len(x) <= self.positional:
            return function(*x)
        return function(x)
