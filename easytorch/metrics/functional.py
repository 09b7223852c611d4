"""Functions behind the common metric names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from easytorch.losses.criterion import Criterion


class MulticlassHits:
    """How often the largest output is the target; targets may be class indices or probabilities."""

    def __init__(self, ignored: int | None = None) -> None:
        self.ignored = ignored

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return a hit or a miss for each target, and, where some may not count, which of them do."""
        best, y = y_pred.argmax(1), y.argmax(1) if y.is_floating_point() else y
        if y.shape != best.shape:  # one column, which would make pairs of all samples
            y = y.reshape(best.shape)
        return _counted(best == y, y, self.ignored)


def _counted(hits: Tensor, y: Tensor, ignored: int | None) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``hits``, and which of them count where some may not."""
    # -100 is torch's default for tokens or pixels that do not count; the label of a whole sample never is.
    if ignored is None or (y.ndim == 1 and ignored < 0):
        return hits
    counts = y != ignored
    return hits & counts, counts


class BinaryHits:
    """Whether each probability is on the right side of 0.5."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return a hit or a miss for each label."""
        probabilities = self.criterion.probabilities(y_pred) if self.criterion.kind == "binary" else y_pred
        return (probabilities > 0.5) == (y > 0.5).reshape(probabilities.shape)


class TopHits:
    """Whether the target is among the ``k`` largest outputs."""

    def __init__(self, k: int, ignored: int | None = None) -> None:
        self.k, self.ignored = k, ignored

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return a hit or a miss for each target, and, where some may not count, which of them do."""
        y = y.argmax(1) if y.is_floating_point() else y
        best = y_pred.topk(min(self.k, y_pred.shape[1]), dim=1).indices
        hits = (best == y.reshape(best[:, :1].shape)).any(1)
        return _counted(hits, y.reshape(hits.shape), self.ignored)


def squared_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return the squared difference of each value."""
    return (_reshape_like(y_pred, y) - y).square()


def absolute_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return the absolute difference of each value."""
    return (_reshape_like(y_pred, y) - y).abs()


def with_target_shape(function: Callable[[Tensor, Tensor], Tensor], y_pred: Tensor, y: Tensor) -> Tensor:
    """Return what ``function`` makes of predictions in the shape of the targets."""
    return function(_reshape_like(y_pred, y), y)


def root(mean: Any) -> Any:
    """Return the square root of a mean, a tensor or a number."""
    return mean**0.5


ERRORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Any], Any] | None]] = {
    "mae": (absolute_error, None),
    "mean_absolute_error": (absolute_error, None),
    "mse": (squared_error, None),
    "mean_squared_error": (squared_error, None),
    "rmse": (squared_error, root),
    "root_mean_squared_error": (squared_error, root),
}


def _reshape_like(y_pred: Tensor, y: Tensor) -> Tensor:
    return y_pred.reshape(y.shape) if y_pred.shape != y.shape and y_pred.numel() == y.numel() else y_pred
