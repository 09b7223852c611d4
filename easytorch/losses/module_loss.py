"""The loss that a module returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.pytree import describe, leaves
from easytorch.data.batch import Window, from_numpy
from easytorch.data.sample_weights import IGNORE_INDEX, check_is_weight
from easytorch.losses.criterion import Counts, Criterion, Share, counts_or_sizes, get_logits, unpacked


class ModuleLoss(Criterion):
    """The loss that the module returns: alone, as ``loss`` in its output, or as the one scalar of a tuple.

    It is a mean over the labels that are not -100, or over samples if the targets are not integers.

    Args:
        shifts_labels: Whether the module compares each output with the label of the next token, so the first does not count.
    """

    ignore_index = IGNORE_INDEX

    def __init__(self, shifts_labels: bool = False) -> None:
        self.shifts_labels = shifts_labels
        self._counts: Counts = {}

    def __call__(self, y_pred: Any, y: Any = None, sample_weight: Any = None, batch: Any = None) -> Tensor:
        """Return the loss in the module's output."""
        loss = _find_loss(y_pred)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ValueError(
                f"compile() has no loss, and the module's output, {describe(y_pred)}, contains no loss. Call compile(..., "
                "loss='cross_entropy'), or return a scalar, a tuple with one scalar or a dict with 'loss' from the module."
            )
        if sample_weight is not None:
            check_is_weight(sample_weight)
            raise ValueError(
                "Sample weights cannot be applied to the loss that the module returns. Leave the weights out, or pass a loss "
                "to compile()."
            )
        count = self.label_count(y)
        if count is None:
            return loss
        self._counts = {"loss": count}
        if isinstance(count, Tensor):
            return torch.where(count.to(loss.device) > 0, loss, 0.0)
        return loss if count else _zero_of(y_pred, loss)

    def take_counts(self) -> Counts:
        """Return what the last loss was divided by, and forget it."""
        counts, self._counts, self._counted_labels = self._counts, {}, None
        return counts

    def batch_weights(self, window: Window, share: Share) -> Iterable[Any]:
        """Return the factor of each batch's loss, so that the batches of a window count as one batch."""
        counts = (self.label_count(batch.y) for batch in unpacked(window))
        return share([counts_or_sizes(counts, window)])[0]

    def label_count(self, y: Any) -> Any:
        """Return the number of labels that are not ignored, also as a tensor; None if ``y`` are not integer labels."""
        y = from_numpy(y) if isinstance(y, np.ndarray) else y
        if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or not y.ndim:
            return None
        y = y[..., 1:] if self.shifts_labels else y
        return y.numel() - self.ignored_count(y)

    def select(self, y_pred: Any, y: Any, output: str | None) -> tuple[Any, Any]:
        """Return the ``logits`` in the module's output, or the one other tensor of a tuple, else all of it, and the targets."""
        logits = get_logits(y_pred)
        if logits is None and isinstance(y_pred, (tuple, list)):
            loss = _find_loss(y_pred)
            others = [item for item in y_pred if isinstance(item, Tensor) and item is not loss]
            logits = others[0] if len(others) == 1 and loss is not y_pred else None
        return y_pred if logits is None else logits, y

    def probabilities(self, y_pred: Any) -> Any:
        """Raise an error, because the meaning of the outputs is unknown."""
        raise ValueError(
            "easytorch cannot convert outputs to probabilities, because compile() has no loss. Call compile() with a loss, such "
            "as 'cross_entropy', or call predict() and apply an activation."
        )

    def __repr__(self) -> str:
        return "the module's own loss"


def _zero_of(y_pred: Any, loss: Tensor) -> Tensor:
    """Return 0 for a batch without labels that count; its gradient is 0, while that of the mean over nothing may be NaN."""
    outputs = [leaf for leaf in leaves(y_pred) if isinstance(leaf, Tensor) and leaf.requires_grad and leaf is not loss]
    zeros = [output.reshape(-1)[:0].sum() for output in outputs if output.is_floating_point()]
    return torch.stack(zeros).sum().to(loss.dtype) if zeros else torch.where(loss.isfinite(), loss, 0.0) * 0.0


def _find_loss(y_pred: Any) -> Any:
    """Return the loss in the module's output, or the output itself if there is none.

    Raises:
        ValueError: If a tuple has several scalars.
    """
    if isinstance(y_pred, Mapping):
        return y_pred.get("loss")
    if not isinstance(y_pred, (tuple, list)) or hasattr(y_pred, "loss"):
        return getattr(y_pred, "loss", y_pred)
    scalars = [item for item in y_pred if isinstance(item, Tensor) and not item.ndim and item.is_floating_point()]
    if len(scalars) > 1:
        raise ValueError(
            f"compile() has no loss, and the module's output, {describe(y_pred)}, has {len(scalars)} scalars that may be the "
            "loss. Return a dict from the module: {'loss': loss, 'logits': logits}."
        )
    return scalars[0] if scalars else y_pred
