"""Functions behind the common metric names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from easytorch._utils.pytree import describe
from easytorch.losses.criterion import Criterion
from easytorch.losses.module_loss import ModuleLoss


class ClassMetric:
    """Base class of metrics that compare the classes of outputs and targets.

    Args:
        criterion: The loss, which determines the labels that do not count.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def check(self, name: str, y_pred: Any, y: Any) -> None:
        """Raise a ``ValueError`` if there is only one class, or if its dimension is ambiguous."""
        if not isinstance(y_pred, Tensor) or not isinstance(y, Tensor):
            return
        if y_pred.ndim < 2 or y_pred.shape[self.class_dimension(y_pred, y)] == 1:
            raise ValueError(
                f"{name!r} compares several classes, but the module has one output per sample, {describe(y_pred)}, so its value "
                "would always be 1. For two classes use 'binary_accuracy'; for a regression 'mae', 'rmse' or 'r2'."
            )
        if self.criterion.kind != "multiclass" and y.is_floating_point() and y.shape == y_pred.shape:
            _check_probabilities(name, y)
            if bool(((y.sum(self.class_dimension(y_pred, y)) - 1).abs() > 1e-3).any()):
                raise ValueError(
                    f"{name!r} compares the class with the largest output, but the targets, {describe(y)}, are not one-hot rows "
                    "or probabilities that sum to 1. For independent labels use 'binary_accuracy'; for a regression 'mae'."
                )
        is_ambiguous = y_pred.ndim > 2 and y.shape == y_pred.shape[:-1] == (len(y_pred), *y_pred.shape[2:])
        if is_ambiguous and self.criterion.kind is None and not isinstance(self.criterion, ModuleLoss):
            raise ValueError(
                f"{name!r} cannot find the classes in outputs of shape {list(y_pred.shape)}: dimension 1 and the last one fit "
                "targets of the same shape. Use loss='cross_entropy', or pass a function f(y_pred, y) as the metric."
            )

    def class_dimension(self, y_pred: Tensor, y: Tensor) -> int:
        """Return the dimension with the classes: 1, or the last one for outputs such as ``[N, tokens, classes]``."""
        if y_pred.ndim < 3 or y.shape != y_pred.shape[:-1]:
            return 1
        return 1 if self.criterion.kind == "multiclass" else -1

    def exclude_ignored(self, hits: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return ``hits``, and whether each target counts if some may be ignored."""
        index, ignored = self.criterion.ignore_index, self.criterion.ignored_count(y)
        if index is None or (not isinstance(ignored, Tensor) and not ignored):
            return hits
        counts = torch.ne(y, index)
        return hits & counts, counts


class MulticlassHits(ClassMetric):
    """Whether the largest output is the target."""

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return whether each prediction is right, and, with ignored labels, whether each one counts.

        Args:
            y_pred: Outputs, ``[N, classes, ...]``, or ``[N, ..., classes]`` if the loss is not that of torch.
            y: Class indices, ``[N, ...]``, or probabilities in the shape of the outputs.
        """
        if y.ndim == 1 and y_pred.ndim == 2:  # by far the most frequent case
            hits = y_pred.argmax(1) == y
            return self.exclude_ignored(hits, y) if self.criterion.may_ignore else hits
        dimension = self.class_dimension(y_pred, y)
        predicted = y_pred.argmax(dimension)
        if y.is_floating_point() and y.shape == y_pred.shape:
            return predicted == y.argmax(dimension)
        # Targets [N, 1] would be broadcast against [N] to [N, N].
        y = y if y.shape == predicted.shape else y.reshape(predicted.shape)
        return self.exclude_ignored(predicted == y, y)


class TopHits(ClassMetric):
    """Whether the target is among the ``k`` largest outputs.

    Args:
        k: Number of outputs.
        criterion: The loss, which determines the labels that do not count.
    """

    def __init__(self, k: int, criterion: Criterion) -> None:
        super().__init__(criterion)
        self.k = k

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return whether each prediction is right, and, with ignored labels, whether each one counts.

        Args:
            y_pred: Outputs, ``[N, classes, ...]``, or ``[N, ..., classes]`` if the loss is not that of torch.
            y: Class indices, ``[N, ...]``, or probabilities in the shape of the outputs.
        """
        dimension = self.class_dimension(y_pred, y)
        is_soft = y.is_floating_point() and y.shape == y_pred.shape
        largest = y_pred.topk(min(self.k, y_pred.shape[dimension]), dim=dimension).indices
        y = y.argmax(dimension) if is_soft else y.reshape(largest.select(dimension, 0).shape)
        hits = (largest == y.unsqueeze(dimension)).any(dimension)
        return hits if is_soft else self.exclude_ignored(hits, y)


class BinaryHits:
    """Whether each probability is on the same side of 0.5 as its target.

    Args:
        criterion: The loss, which converts outputs to probabilities.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def check(self, name: str, y_pred: Any, y: Any) -> None:
        """Raise a ``ValueError`` if there is not one target for each output."""
        if isinstance(y_pred, Tensor) and isinstance(y, Tensor) and y_pred.numel() != y.numel():
            raise ValueError(
                f"{name!r} compares each output with a target from 0 to 1, but the module's output is {describe(y_pred)} and "
                f"the targets are {describe(y)}. For class indices use 'multiclass_accuracy'."
            )
        if self.criterion.kind is None and isinstance(y, Tensor):
            _check_probabilities(name, y)

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return whether each prediction is right.

        Args:
            y_pred: Outputs, ``[N, ...]``.
            y: Targets from 0 to 1, with as many values.
        """
        probabilities = self.criterion.probabilities(y_pred) if self.criterion.kind is not None else y_pred
        return (probabilities > 0.5) == (y > 0.5).reshape(probabilities.shape)


def _check_probabilities(name: str, y: Tensor) -> None:
    """Raise a ``ValueError`` if targets are not between 0 and 1, so that they are numbers and not classes."""
    if y.numel() and not bool(((y >= 0) & (y <= 1)).all()):
        raise ValueError(
            f"{name!r} compares classes, but the targets go from {float(y.min()):.4g} to {float(y.max()):.4g}, so they are "
            "numbers. A regression has no accuracy: use 'mae', 'rmse' or 'r2'."
        )


def squared_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return ``(y_pred - y) ** 2`` of each value; for complex numbers the squared absolute value of the difference."""
    difference = _reshape_like(y_pred, y) - y
    return difference.abs().square() if difference.is_complex() else difference.square()


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
