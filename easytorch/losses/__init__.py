"""Losses by name, function or object."""

from typing import Any

from easytorch._utils.api_errors import missing_class_error
from easytorch._utils.api_hints import LOSS_HINTS
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.losses.names import TABLE

__all__ = ["TABLE"]


def __dir__() -> list[str]:
    return __all__


@hide_internal_frames
def __getattr__(name: str) -> Any:
    usage = "compile(optimizer, {name!r}), or a loss of torch.nn"
    raise missing_class_error("easytorch.losses", name, LOSS_HINTS, TABLE, usage)
