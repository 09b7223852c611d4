"""The loss that explains the outputs of a module that returns its own loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.pytree import describe
from easytorch.data.batch import from_numpy
from easytorch.losses.criterion import get_logits
from easytorch.losses.module_loss import ModuleLoss
from easytorch.losses.single_loss import SingleLoss

FIX = (
    "Pass what belongs together, with a loss that names its meaning: outputs, targets = model.predict(data, targets=True); "
    "easytorch.reports.make_report(outputs[...], targets, 'cross_entropy')."
)


def infer_loss(loss: ModuleLoss, outputs: Any, y: Any) -> tuple[SingleLoss, Tensor, Tensor]:
    """Return the loss, the outputs and the targets of a report on a module that computes its loss.

    Integer targets are classes: of samples for outputs ``[N, classes]``, of positions for ``[N, positions, classes]``, as in the
    models of transformers, or ``[N, classes, ...]``. Causal language models compare each output with the next label. Float
    targets in the shape of the outputs are numbers.

    Raises:
        ValueError: If the meaning of the outputs is not certain.
    """
    if isinstance(outputs, (np.ndarray, Tensor)):
        raise ValueError(
            f"There is no report without a loss, which decides what the outputs, {describe(outputs)}, mean. Call compile(..., "
            "loss='cross_entropy'), or 'bce_with_logits' or 'mse'."
        )
    prediction, targets = _find_logits(outputs), _as_tensor(y)
    if prediction is None or targets is None:
        raise ValueError(
            f"The module computes its loss, and its outputs, {describe(outputs)}, have no single array of logits to compare with "
            f"the targets, {describe(y)}. {FIX}"
        )
    if targets.is_floating_point():
        return _of_numbers(prediction, targets)
    if loss.shifts_labels and prediction.ndim == 3:
        prediction, targets = prediction[:, :-1], targets[:, 1:]
    classes_are_last = prediction.shape[:-1] == targets.shape
    classes_are_second = prediction.ndim > 2 and (len(prediction), *prediction.shape[2:]) == targets.shape
    if classes_are_last == classes_are_second or prediction.shape[-1 if classes_are_last else 1] < 2:
        raise ValueError(
            f"The module computes its loss, so the meaning of its outputs, {describe(prediction)}, for the targets, "
            f"{describe(targets)}, is not known. {FIX}"
        )
    return SingleLoss("cross_entropy"), prediction.movedim(-1, 1) if classes_are_last else prediction, targets


def _of_numbers(prediction: Tensor, targets: Tensor) -> tuple[SingleLoss, Tensor, Tensor]:
    is_column = prediction.ndim == targets.ndim + 1 and prediction.shape[-1] == 1
    prediction = prediction[..., 0] if is_column else prediction
    may_be_labels = bool(((targets == 0) | (targets == 1)).all())
    if prediction.shape != targets.shape or may_be_labels:
        raise ValueError(
            f"The module computes its loss, so the meaning of its outputs, {describe(prediction)}, for the targets, "
            f"{describe(targets)}, is not known: they may be numbers ('mse') or labels ('bce_with_logits'). {FIX}"
        )
    return SingleLoss("mse"), prediction, targets


def _find_logits(outputs: Any) -> Tensor | None:
    """Return the ``logits`` in ``outputs``, or the one array with rows for samples."""
    logits = get_logits(outputs)
    if logits is None:
        values = list(outputs.values()) if isinstance(outputs, dict) else outputs
        arrays = values if isinstance(values, (tuple, list)) else [values]
        candidates = [array for array in arrays if getattr(array, "ndim", 0) > 1]
        logits = candidates[0] if len(candidates) == 1 else None
    return _as_tensor(logits)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if hasattr(value, "__array__"):
        return from_numpy(np.asarray(value))
    is_list = isinstance(value, list) and bool(value) and not isinstance(value[0], (list, tuple))
    return torch.as_tensor(value) if is_list and isinstance(value[0], (int, float)) else None
