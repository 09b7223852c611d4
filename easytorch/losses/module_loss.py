"""The loss that a module returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.pytree import describe, leaves
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.train_mode import in_loss_mode
from easytorch._utils.warnings import warn
from easytorch.data.batch import Window, from_numpy
from easytorch.data.sample_weights import IGNORE_INDEX, check_is_weight
from easytorch.losses.criterion import Counts, Criterion, Share, counts_or_sizes, get_logits, unpacked


class ModuleLoss(Criterion):
    """The loss that the module returns: alone, as ``loss`` in its output, as the one scalar of a tuple, or as a dict of scalars.

    It is a mean over the labels that are not -100, or over samples if the targets are not integers. Scalars of a dict without
    ``loss``, as detectors return, are added, and logged by their names.

    The targets are the argument ``labels`` or ``targets`` of the module, if it has such an optional argument.

    Args:
        shifts_labels: Whether the module compares each output with the label of the next token, so the first does not count.
            The first batch corrects it.
    """

    ignore_index = IGNORE_INDEX

    def __init__(self, shifts_labels: bool = False) -> None:
        self.shifts_labels = shifts_labels
        self._counts: Counts = {}
        self._model: Any = None
        self._checks_shift = True
        self._has_weighted = False  # whether batches of a window were weighted before the first check

    def bind(self, model: Any) -> None:
        """Let the loss use the arguments of the module of ``model``, and call it if it returns a loss in train mode only."""
        self._model = model

    def prepare(self, targets: Any, class_names: Any = None) -> None:
        """Compare the loss of the next batch with cross-entropy, which shows whether it shifts the labels."""
        self._checks_shift, self._has_weighted = True, False

    def inputs(self, x: Any, y: Any, batch: Any) -> Any:
        """Return the inputs ``x``, with the targets ``y`` as the argument ``labels`` or ``targets`` of the module."""
        return self._model.signature.with_label(x, y)

    def terms(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}``; of a module that returns a dict of losses, their sum and each of them."""
        if batch is not None and self._model is not None and _lacks_loss(y_pred) and not self._model.module.training:
            y_pred = self._outputs_with_loss(batch)
        parts = find_loss_parts(y_pred)
        loss = self(y_pred if parts is None else sum(parts.values()), y, sample_weight)
        return {"loss": loss, **(parts or {})}

    def _outputs_with_loss(self, batch: Any) -> Any:
        """Return the outputs of a module that computes its loss in train mode only, as detectors do.

        All layers compute as in eval mode. Random numbers that the module draws do not change those of training.
        """
        x, y, _ = self._model.unpack(batch)
        with in_loss_mode(self._model.module), preserve_rng_state():
            return self._model(self.inputs(x, y, batch))

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
        if self._checks_shift:
            self._check_shift(y_pred, y, loss)
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

    def _check_shift(self, y_pred: Any, y: Any, loss: Tensor) -> None:
        """Correct ``shifts_labels`` if the loss of the first batch shows that it is wrong."""
        self._checks_shift = False
        found = _shifts_labels(get_logits(y_pred), y, loss.detach())
        if found is None or found == self.shifts_labels:
            return
        self.shifts_labels = found
        if self._has_weighted:
            warn(
                "The first update weighted its batches by a wrong number of labels, since the module compares outputs with "
                f"{'the next label' if found else 'the label of the same position'}. All others are right. To make the first "
                "right too, call evaluate() before fit()."
            )

    def batch_weights(self, window: Window, share: Share) -> Iterable[Any]:
        """Return the factor of each batch's loss, so that the batches of a window count as one batch."""
        self._has_weighted = True
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
        """Return the ``logits`` in the module's output, or the one other tensor of a tuple, else all of it, and the targets.

        Raises:
            ValueError: If the output has only losses, as that of a detector in train mode.
        """
        if find_loss_parts(y_pred) is not None:
            raise ValueError(
                f"In train mode the module returns only losses, {describe(y_pred)}, so metrics can be measured in evaluations "
                "only. Pass their names in compile(..., validation_only=[...])."
            )
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


def _lacks_loss(y_pred: Any) -> bool:
    """Return whether the outputs are neither a loss nor contain one."""
    return not any(isinstance(leaf, Tensor) and not leaf.ndim and leaf.is_floating_point() for leaf in leaves(y_pred))


def find_loss_parts(y_pred: Any) -> dict[str, Tensor] | None:
    """Return the losses of a dict that has only scalars, none of them called ``loss``; else None."""
    if not isinstance(y_pred, Mapping) or not y_pred or "loss" in y_pred:
        return None
    are_losses = all(
        isinstance(part, Tensor) and not part.ndim and part.is_floating_point() for part in y_pred.values()
    )
    return dict(y_pred) if are_losses else None


def _shifts_labels(logits: Any, y: Any, loss: Tensor) -> bool | None:
    """Return whether ``loss`` is the cross-entropy of outputs and next labels; None if that is not certain.

    Args:
        logits: Outputs, ``[N, steps, classes]``.
        y: Labels, ``[N, steps]``.
        loss: A scalar.
    """
    are_tensors = isinstance(logits, Tensor) and isinstance(y, Tensor)
    if not are_tensors or logits.ndim != 3 or logits.shape[:2] != y.shape or y.is_floating_point() or y.shape[1] < 2:
        return None
    logits = logits.detach().float()
    found = []
    for outputs, labels in ((logits, y), (logits[:, :-1], y[:, 1:])):
        value = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten().long(), ignore_index=IGNORE_INDEX)
        found.append(bool(torch.isclose(value, loss.float(), rtol=1e-3, atol=1e-5)))
    return found[1] if found[0] != found[1] else None


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
