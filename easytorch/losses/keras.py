"""Losses with the definitions of Keras.

Each function takes predictions and targets of one shape and returns one value per element.
``kl_divergence`` is the exception: it reduces the last dimension.
The formulas are those of the Keras documentation, https://keras.io/api/losses/.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Keras clamps values to this distance from 0, so that quotients and logarithms stay finite.
EPSILON = 1e-7


def mean_absolute_percentage_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``100 * |y - y_pred| / |y|`` of each value, in percent.

    Args:
        y_pred: Predictions, ``[N, ...]``.
        y: Targets, ``[N, ...]``. Their absolute value is at least 1e-7.

    Source: Keras documentation, ``MeanAbsolutePercentageError``.
    """
    return 100 * ((y - y_pred) / y.abs().clamp(min=EPSILON)).abs()


def mean_squared_logarithmic_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``(log(y + 1) - log(y_pred + 1)) ** 2`` of each value.

    Args:
        y_pred: Predictions, ``[N, ...]``, at least 1e-7.
        y: Targets, ``[N, ...]``, at least 1e-7.

    Source: Keras documentation, ``MeanSquaredLogarithmicError``.
    """
    return (y.clamp(min=EPSILON).log1p() - y_pred.clamp(min=EPSILON).log1p()).square()


def log_cosh(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``log(cosh(y_pred - y))`` of each value.

    The form ``x + softplus(-2 * x) - log(2)`` is equal and does not overflow.

    Args:
        y_pred: Predictions, ``[N, ...]``.
        y: Targets, ``[N, ...]``.

    Source: Keras documentation, ``LogCosh``.
    """
    x = y_pred - y
    return x + nn.functional.softplus(-2.0 * x) - math.log(2.0)


def poisson(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``y_pred - y * log(y_pred + 1e-7)`` of each value.

    Args:
        y_pred: Predicted rates, ``[N, ...]``, positive.
        y: Counts, ``[N, ...]``.

    Source: Keras documentation, ``Poisson``.
    """
    return y_pred - y * (y_pred + EPSILON).log()


def kl_divergence(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``sum(y * log(y / y_pred))`` over the last dimension.

    Args:
        y_pred: Predicted probabilities, ``[N, ..., classes]``, clamped to 1e-7 and 1.
        y: Target probabilities, ``[N, ..., classes]``, clamped to 1e-7 and 1.

    Source: Keras documentation, ``KLDivergence``.
    """
    y_pred, y = y_pred.clamp(EPSILON, 1), y.clamp(EPSILON, 1)
    return (y * (y / y_pred).log()).sum(-1)


def hinge(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``max(1 - y * y_pred, 0)`` of each value.

    Args:
        y_pred: Scores, ``[N, ...]``.
        y: Labels, ``[N, ...]``, -1 and 1. If all labels of the batch are 0 and 1, 0 counts as -1.

    Source: Keras documentation, ``Hinge``.
    """
    y = y.to(y_pred.dtype)
    # The test stays on the device, so it does not wait for it.
    is_binary = ((y == 0) | (y == 1)).all()
    return (1 - torch.where(is_binary, 2 * y - 1, y) * y_pred).clamp(min=0)


def squared_hinge(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``max(1 - y * y_pred, 0) ** 2`` of each value.

    Args:
        y_pred: Scores, ``[N, ...]``.
        y: Labels, ``[N, ...]``, as in ``hinge``.

    Source: Keras documentation, ``SquaredHinge``.
    """
    return hinge(y_pred, y).square()


# Losses that torch does not have, or defines in another way.
KERAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
