"""Functions behind the common metric names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from easytorch.losses.criterion import Criterion


class MulticlassHits:
    """Whether the largest output is the target.

    Args:
        ignore_index: The label that does not count, None if all count.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return whether each prediction is right, and, with ignored labels, whether each one counts.

        Args:
            y_pred: Outputs, ``[N, classes, ...]``.
            y: Class indices, ``[N, ...]``, or probabilities, ``[N, classes, ...]``.
        """
        predicted, y = y_pred.argmax(1), y.argmax(1) if y.is_floating_point() else y
        if y.shape != predicted.shape:
            # Targets [N, 1] would be broadcast against [N] to [N, N].
            y = y.reshape(predicted.shape)
        return _exclude_ignored(predicted == y, y, self.ignore_index)


class TopHits:
    """Whether the target is among the ``k`` largest outputs.

    Args:
        k: Number of outputs.
        ignore_index: The label that does not count, None if all count.
    """

    def __init__(self, k: int, ignore_index: int | None = None) -> None:
        self.k, self.ignore_index = k, ignore_index

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return whether each prediction is right, and, with ignored labels, whether each one counts.

        Args:
            y_pred: Outputs, ``[N, classes, ...]``.
            y: Class indices, ``[N, ...]``, or probabilities, ``[N, classes, ...]``.
        """
        y = y.argmax(1) if y.is_floating_point() else y
        largest = y_pred.topk(min(self.k, y_pred.shape[1]), dim=1).indices
        hits = (largest == y.reshape(largest[:, :1].shape)).any(1)
        return _exclude_ignored(hits, y.reshape(hits.shape), self.ignore_index)


class BinaryHits:
    """Whether each probability is on the same side of 0.5 as its target.

    Args:
        criterion: The loss, which converts outputs to probabilities.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return whether each prediction is right.

        Args:
            y_pred: Outputs, ``[N, ...]``.
            y: Targets from 0 to 1, with as many values.
        """
        probabilities = self.criterion.probabilities(y_pred) if self.criterion.kind == "binary" else y_pred
        return (probabilities > 0.5) == (y > 0.5).reshape(probabilities.shape)


def _exclude_ignored(hits: Tensor, y: Tensor, ignore_index: int | None) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``hits``, and whether each target counts if some may be ignored."""
    # A negative index, such as torch's default -100, marks tokens or pixels, never the label of a sample.
    if ignore_index is None or (y.ndim == 1 and ignore_index < 0):
        return hits
    counts = y != ignore_index
    return hits & counts, counts


def squared_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``(y_pred - y) ** 2`` of each value."""
    return (_reshape_like(y_pred, y) - y).square()


def absolute_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``|y_pred - y|`` of each value."""
    return (_reshape_like(y_pred, y) - y).abs()


def with_target_shape(function: Callable[[Tensor, Tensor], Tensor], y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``function(y_pred, y)`` with the predictions in the shape of the targets."""
    return function(_reshape_like(y_pred, y), y)


def square_root(mean: Any) -> Any:
    """Return the square root of ``mean``, a tensor or a number."""
    return mean**0.5


def _reshape_like(y_pred: Tensor, y: Tensor) -> Tensor:
    return y_pred.reshape(y.shape) if y_pred.shape != y.shape and y_pred.numel() == y.numel() else y_pred


# The function of each value, and the function of its mean.
ERRORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Any], Any] | None]] = {
    "mae": (absolute_error, None),
    "mean_absolute_error": (absolute_error, None),
    "mse": (squared_error, None),
    "mean_squared_error": (squared_error, None),
    "rmse": (squared_error, square_root),
    "root_mean_squared_error": (squared_error, square_root),
}
