"""Losses by name, function or object."""

from easytorch.losses.names import TABLE

__all__ = ["TABLE"]


def __dir__() -> list[str]:
    return __all__
