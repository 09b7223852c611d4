"""Checks of outputs and targets on the first batch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from easytorch._utils.pytree import describe
from easytorch._utils.warnings import warn


def single_class_error(y_pred: Tensor) -> Exception | None:
    """Return an error if a loss that compares classes is given the outputs of a single one."""
    if y_pred.ndim < 2 or y_pred.shape[1] != 1:
        return None
    return ValueError(
        f"The module's output, {describe(y_pred)}, is of one class, but cross-entropy compares several: of one alone it is "
        "always 0. For yes or no use loss='bce_with_logits', with floats [N, 1] as targets; to predict a number 'mse'; for "
        "classes give the last layer an output for each of them."
    )


def label_error(y_pred: Tensor, y: Tensor, ignored: int) -> Exception | None:
    """Return what is wrong with ``y`` as the classes of ``y_pred``, if anything is."""
    if y_pred.ndim < 2:
        return ValueError(
            f"The loss expects one output for each class, [N, classes]; the module returned {describe(y_pred)}."
        )
    if 2 < y_pred.ndim == y.ndim + 1 and y.shape == y_pred.shape[:-1] != (len(y_pred), *y_pred.shape[2:]):
        return ValueError(
            f"The module's output is {describe(y_pred)} for targets of {list(y.shape)}, but the loss takes the classes second, "
            f"[N, classes, ...]. Let the module return y_pred.{'transpose(1, 2)' if y_pred.ndim == 3 else 'movedim(-1, 1)'}."
        )
    if y.shape == y_pred.shape and not y.is_floating_point():
        return TypeError(
            f"The targets are {describe(y)}, one column for each class. Pass class numbers, y.argmax(1), or y.float()."
        )
    if y.is_floating_point() and y.shape != y_pred.shape and not are_integers(y):
        odd = float(y[y != y.round()][0])
        return ValueError(
            f"The targets are not whole numbers ({odd:.4g} is among them), so they are no classes. To predict a number, give the "
            "last layer one output and use loss='mse'."
        )
    if y.ndim == y_pred.ndim and y.shape[1] == 1:
        dtype = "" if y.dtype == torch.int64 else ", and y.long() of it"
        return ValueError(
            f"The targets are {describe(y)}, but the loss takes class numbers as int64, of shape {list(y[:, 0].shape)}. Use "
            f"y.squeeze(1){dtype}."
        )
    if y.dtype != torch.int64 and y.shape != y_pred.shape:
        return TypeError(f"The targets are {describe(y)}, but the loss takes class numbers as int64. Use y.long().")
    found = None if y.is_floating_point() else label_range(y, ignored)
    return label_range_error(*found, y_pred.shape[1]) if found else None


def are_integers(y: Tensor) -> bool:
    """Whether all values of ``y`` are whole numbers, as those of classes are, be they floats."""
    return not y.is_floating_point() or bool((y == y.round()).all())


def shape_error(loss: str, y_pred: Tensor, y: Tensor, floats: bool) -> Exception | None:
    """Return what is wrong with targets for a loss that compares value by value, if anything is.

    Args:
        loss: Its name.
        y_pred: What the module returned.
        y: The targets.
        floats: Whether the loss takes nothing but floats.
    """
    if y_pred.ndim == 2 and y_pred.shape[1] > 1 and y.shape == y_pred.shape[:1] and are_integers(y):
        return ValueError(
            f"The module has {y_pred.shape[1]} outputs for each sample, and the targets are one whole number each, "
            f"{describe(y)}. If they are class numbers, the loss is 'cross_entropy'. For the loss {loss} give the last layer one "
            "output, and the targets one column, y.unsqueeze(1)."
        )
    shape = None
    # Torch broadcasts (N, 1) against (N,) to (N, N) and only warns: the network then learns nothing.
    if y_pred.shape != y.shape:
        flat = y_pred.ndim == y.ndim + 1 and y_pred.shape[-1] == 1
        shape = "Use y.unsqueeze(1) for the targets" if flat else "Give both the same shape"
        if y_pred.ndim + 1 == y.ndim and y.shape[-1] == 1:
            shape = "Use y.squeeze(1) for the targets"
    if floats and not y.is_floating_point():
        both = f", and {shape[4:].removesuffix(' for the targets')} of it" if shape and shape.startswith("Use") else ""
        return TypeError(f"The targets are {describe(y)}, but the loss, {loss}, takes floats. Use y.float(){both}.")
    if shape is None:
        return None
    return ValueError(
        f"The module's output has the shape {list(y_pred.shape)} but the targets have {list(y.shape)}. "
        f"{shape}, or end the module so that its output has the targets' shape."
    )


def label_range(y: Tensor, ignored: int) -> tuple[int, int] | None:
    """Return the lowest and the highest label in ``y``, None where there is none."""
    y = y[y != ignored]
    return (int(y.min()), int(y.max())) if y.numel() else None


def label_range_error(low: int, high: int, classes: int) -> Exception | None:
    """Return an error if labels from ``low`` to ``high`` are not classes 0 to ``classes`` - 1."""
    if low >= 0 and high < classes:
        return None
    told = f"{classes} outputs, for classes 0 to {classes - 1}" if classes > 1 else "1 output, for class 0 alone"
    cure = f"Give the last layer {high + 1} outputs, or renumber the labels."
    if low == 1 and high == classes:
        cure = "Labels that start at 1 become right by y - 1."
    elif low < 0:
        cure = "Classes count from 0: renumber the labels, or leave some out by nn.CrossEntropyLoss(ignore_index=...)."
    return ValueError(f"The labels go from {low} to {high}, but the module has {told}. {cure}")


SIGMOID = (
    "The module ends in a sigmoid, but this loss applies a {activation} itself: the network learns slowly then, and badly. "
    "Leave the sigmoid out of the module; predict_proba() applies the {activation}."
)
SOFTMAX = (
    "The module's outputs are probabilities already, but cross-entropy applies a softmax itself: the network learns slowly "
    "then, and badly. Leave the softmax out of the module; predict_proba() applies it."
)
RELU = (
    "The module ends in a ReLU, but cross-entropy takes logits, which may be negative: an output that is always 0 learns "
    "nothing. Leave the last ReLU out of the module."
)
ONE_COLUMN = (
    "The module's outputs are all 1, as a softmax makes of a single column: the network learns nothing. End the module with "
    "nn.Sigmoid(), or with the nn.Linear and use 'bce_with_logits'."
)


def last_layer_warning(family: type[Any], y_pred: Tensor) -> str | None:
    """Return what is wrong with the last layer for a loss of ``family``, if anything is known to be.

    Values alone cannot tell a sigmoid, for logits may lie between 0 and 1 as well.
    """
    last, values = _last_operation(y_pred), y_pred.detach()
    if family is nn.CrossEntropyLoss:
        if last.startswith("Relu"):
            return RELU
        if last.startswith("Sigmoid"):
            return SIGMOID.format(activation="softmax")
        return SOFTMAX if y_pred.ndim == 2 and _are_probabilities(values) else None
    if last.startswith("Softmax") and family in (nn.BCELoss, nn.BCEWithLogitsLoss) and bool((values == 1).all()):
        return ONE_COLUMN
    if last.startswith("Sigmoid") and family is nn.BCEWithLogitsLoss:
        return SIGMOID.format(activation="sigmoid")
    if family is nn.NLLLoss and values.numel() and (high := float(values.max())) > 1e-4:
        return (
            f"The module's outputs go up to {high:.3g}, but 'nll' takes log-probabilities, which are never above 0. End the "
            "module with nn.LogSoftmax(1), or end it with the nn.Linear and use 'cross_entropy'."
        )
    return None


def soft_target_warning(family: type[Any], y_pred: Tensor, y: Tensor) -> str | None:
    """Return what is wrong with rows of targets as the probabilities that cross-entropy takes, if anything is."""
    rows = family is nn.CrossEntropyLoss and y.is_floating_point() and y.ndim > 1 and y.shape == y_pred.shape
    if not rows or not y.numel():
        return None
    sums, lowest = y.float().sum(1), float(y.min())
    low, high = float(sums.min()), float(sums.max())
    if lowest >= 0 and low > 0.99 and high < 1.01:
        return None
    found = f"hold values down to {lowest:.3g}" if lowest < 0 else f"sum to between {low:.3g} and {high:.3g}"
    return (
        f"The rows of the targets {found}, but cross-entropy takes probabilities, which sum to 1. Divide each row by its sum, "
        "or use 'bce_with_logits' where a sample may be of several classes."
    )


class PairsNotice(TorchFunctionMode):
    """Warns when outputs ``[N, 1]`` and targets ``[N]`` become ``[N, N]`` inside, which the shapes alone cannot tell."""

    def __init__(self, loss: str, y_pred: Tensor, y: Tensor) -> None:
        super().__init__()
        self.loss, self.y_pred, self.y = loss, y_pred, y
        self.pairs: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the shapes of what ``func`` takes and returns."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() > self.y.numel():
            taken = {value.shape for value in args if isinstance(value, Tensor)}
            self.pairs = list(result.shape) if taken == {self.y_pred.shape, self.y.shape} else self.pairs
        return result

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Warn of what was seen."""
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]  # torch has no types here
        while traceback is not None:  # what fails is a line of the loss, not one of this file
            if traceback.tb_next is not None and traceback.tb_next.tb_frame.f_globals is globals():
                traceback.tb_next = None
            traceback = traceback.tb_next
        if self.pairs:
            warn(
                f"The loss, {self.loss}, makes {self.pairs} of the module's output, {list(self.y_pred.shape)}, and the targets, "
                f"{list(self.y.shape)}: a value for each pair of samples. Unless that is meant, give both the same shape."
            )


def pairs_notice(loss: str, y_pred: Any, y: Any) -> contextlib.AbstractContextManager[Any]:
    """Return what watches a loss of the user's own, where the shapes are such that torch may broadcast them."""
    tensors = isinstance(y_pred, Tensor) and isinstance(y, Tensor)
    alike = tensors and abs(y_pred.ndim - y.ndim) == 1 and y_pred.numel() == y.numel() > 1
    return PairsNotice(loss, y_pred, y) if alike else contextlib.nullcontext()


def _are_probabilities(y_pred: Tensor) -> bool:
    return len(y_pred) > 1 and bool((y_pred >= 0).all()) and bool(((y_pred.sum(1) - 1).abs() < 1e-4).all())


def _last_operation(y_pred: Tensor) -> str:
    """Return what autograd calls the last calculation, but for the shape; nothing where no gradient is computed."""
    node: Any = y_pred.grad_fn
    while node is not None and node.name().startswith(RESHAPING):
        node = node.next_functions[0][0]
    return "" if node is None else str(node.name())


RESHAPING = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Alias")
