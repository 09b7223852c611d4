"""Metrics by name, function or object."""

from easytorch.metrics.names import NAMES

__all__ = ["NAMES"]
