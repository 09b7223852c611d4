"""Metrics by name, function or object."""

from easytorch.metrics.names import NAMES

__all__ = ["NAMES"]


def __dir__() -> list[str]:
    return __all__
