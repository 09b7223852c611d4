"""Losses that follow the definitions of Keras."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def mean_absolute_percentage_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``100 * |y - y_pred| / |y|`` of each value, as Keras defines it."""
    return 100 * ((y - y_pred) / y.abs().clamp(min=1e-7)).abs()


def mean_squared_logarithmic_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``(log(y + 1) - log(y_pred + 1)) ** 2`` of each value, as Keras defines it."""
    return (y.clamp(min=1e-7).log1p() - y_pred.clamp(min=1e-7).log1p()).square()


def log_cosh(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``log(cosh(y_pred - y))`` of each value, in a form that does not overflow."""
    x = y_pred - y
    return x + nn.functional.softplus(-2.0 * x) - math.log(2.0)


def poisson(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``y_pred - y * log(y_pred)`` of each value, as Keras defines it."""
    return y_pred - y * (y_pred + 1e-7).log()


def kl_divergence(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``sum(y * log(y / y_pred))`` of each sample, of probabilities, as Keras defines it."""
    y_pred, y = y_pred.clamp(1e-7, 1), y.clamp(1e-7, 1)
    return (y * (y / y_pred).log()).sum(-1)


def hinge(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``max(1 - y * y_pred, 0)`` of each value, as Keras defines it: labels 0 and 1 count as -1 and 1."""
    y = y.to(y_pred.dtype)
    binary = ((y == 0) | (y == 1)).all()  # of the batch; it stays on the device
    return (1 - torch.where(binary, 2 * y - 1, y) * y_pred).clamp(min=0)


def squared_hinge(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return the square of ``hinge``, as Keras defines it."""
    return hinge(y_pred, y).square()


KERAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # which torch has not, or defines otherwise
    "hinge": hinge,
    "kl_divergence": kl_divergence,
    "kld": kl_divergence,
    "log_cosh": log_cosh,
    "mape": mean_absolute_percentage_error,
    "mean_absolute_percentage_error": mean_absolute_percentage_error,
    "mean_squared_logarithmic_error": mean_squared_logarithmic_error,
    "msle": mean_squared_logarithmic_error,
    "poisson": poisson,
    "squared_hinge": squared_hinge,
}
