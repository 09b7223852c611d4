"""Metrics by name, function or object."""

from typing import Any

from easytorch._utils.api_errors import missing_class_error
from easytorch._utils.api_hints import METRIC_HINTS
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.metrics.names import NAMES

__all__ = ["NAMES"]


def __dir__() -> list[str]:
    return __all__


@hide_internal_frames
def __getattr__(name: str) -> Any:
    usage = "compile(..., metrics=[{name!r}])"
    raise missing_class_error("easytorch.metrics", name, METRIC_HINTS, NAMES, usage)
