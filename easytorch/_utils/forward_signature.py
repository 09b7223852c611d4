"""The arguments of a module's forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

# Names of the targets, as an argument of a module or an entry of a batch.
LABEL_KEYS = ("labels", "label", "targets", "target", "y")


class ForwardSignature(NamedTuple):
    """The arguments of a module's ``forward``.

    Attributes:
        names: The names of the arguments.
        positional: The number of positional arguments; infinite with ``*args``.
        any_keyword: Whether it has ``**kwargs``.
        required: The number of arguments without a default.
        required_names: The names of these arguments.
        label: The name of an optional argument for the targets, with which the module computes its loss; None without one.
    """

    names: tuple[str, ...]
    positional: float = 1
    any_keyword: bool = False
    required: int = 1
    required_names: tuple[str, ...] = ()
    label: str | None = None

    @classmethod
    def of(cls, module: nn.Module) -> ForwardSignature:
        """Return the signature of ``module.forward``."""
        parameters = inspect.signature(module.forward).parameters.values()
        base = getattr(module, "get_base_model", None)
        if base is not None and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            # A wrapper of peft that passes all arguments on.
            return cls.of(base())
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        has_varargs = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        positional = float("inf") if has_varargs else sum(p.kind != p.KEYWORD_ONLY for p in named)
        any_keyword = any(p.kind == p.VAR_KEYWORD for p in parameters)
        required = tuple(p.name for p in named if p.default is p.empty)
        optional = [p.name for p in named[1:] if p.default is None]
        label = next((name for name in LABEL_KEYS if name in optional), None)
        return cls(tuple(p.name for p in named), positional, any_keyword, len(required), required, label)

    def takes(self, count: int) -> bool:
        """Return whether ``count`` positional arguments, and not fewer, are expected."""
        return count > 1 and (count == self.required or self.positional == float("inf"))

    def with_label(self, x: Any, y: Any) -> Any:
        """Return the inputs ``x`` with the targets ``y`` as the argument ``label``, unless it is among them."""
        if self.label is None or y is None:
            return x
        if isinstance(x, Mapping):
            return x if self.label in x else {**x, self.label: y}
        is_several = isinstance(x, tuple) and not hasattr(x, "_fields") and self.takes(len(x))
        return dict(zip(self.names, x if is_several else (x,), strict=False)) | {self.label: y}

    def call(self, function: Callable[..., Any], x: Any) -> Any:
        """Call ``function`` with the inputs ``x``.

        A tuple or list becomes positional arguments if ``forward`` takes that many. A list is one argument if the next argument
        is that for the targets: detectors take a list of images. A dict whose keys are arguments becomes keyword arguments.
        Everything else, such as a tensor, is the only argument.

        Args:
            function: The module or its compiled version.
            x: The inputs.
        """
        if isinstance(x, Tensor):
            return function(x)
        if isinstance(x, Mapping) and (self.any_keyword or set(x) <= set(self.names)):
            return function(**x)
        if isinstance(x, (tuple, list)) and not hasattr(x, "_fields") and len(x) <= self.positional:
            is_one = type(x) is list and self.label is not None and self.names[1] == self.label
            return function(x) if is_one else function(*x)
        return function(x)
