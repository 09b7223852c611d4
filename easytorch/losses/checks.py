"""Checks of outputs and targets, most of them on the first batch.

The functions ``..._error`` and ``..._warning`` return what is wrong, or None. ``FirstBatchCheck`` raises and warns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easytorch._utils import torch_private
from easytorch._utils.pytree import describe
from easytorch._utils.warnings import warn
from easytorch.data.class_names import count_names
from easytorch.data.sample_weights import IGNORE_INDEX
from easytorch.losses.names import OUTPUT_PARTS, PAIR_LOSSES, SIGNED_TARGET_LOSSES

if TYPE_CHECKING:
    from easytorch.losses.single_loss import SingleLoss

# The label of pixels without a class in most data sets for segmentation.
VOID_LABEL = 255


class FirstBatchCheck:
    """Every check of the outputs and targets of a loss.

    The loss replaces it after the first batch by ``check_shapes`` or ``no_check``.

    Args:
        target_range: Lowest and highest target of all data, None if unknown. It covers the batches that follow.
    """

    def __init__(self, target_range: tuple[Any, Any] | None = None) -> None:
        self.target_range = target_range

    def __call__(self, loss: SingleLoss, y_pred: Any, y: Any) -> None:
        """Raise an error or warn if ``y_pred`` and ``y`` do not suit ``loss``."""
        if loss.family in OUTPUT_PARTS:
            check_parts(loss, y_pred, y)
        if loss.family in (*SIGNED_TARGET_LOSSES, *PAIR_LOSSES):
            check_signed_targets(loss, y)
        if loss.is_elementwise:
            check_shapes(loss, y_pred, y)
        if loss.kind == "binary":
            check_binary_targets(loss, y, self.target_range)
        if isinstance(y, Tensor) and isinstance(y_pred, Tensor):
            if loss.kind == "multiclass" and y_pred.ndim > 1:
                self._check_classes(loss, y_pred, y)
            messages = (
                last_layer_warning(loss.family, y_pred),
                soft_target_warning(loss.family, y_pred, y),
            )
            for message in filter(None, messages):
                warn(message)
        loss.end_first_batch()

    def _check_classes(self, loss: SingleLoss, y_pred: Tensor, y: Tensor) -> None:
        error = (
            _missing_flatten_error(y_pred, y)
            or single_class_error(y_pred)
            or class_count_error(loss.class_names, y_pred.shape[1])
        )
        if error is None and self.target_range is not None:
            error = label_range_error(*self.target_range, y_pred.shape[1])
        # On a GPU a wrong label aborts the process. On a CPU torch raises, and the error is translated.
        if error is None and y.device.type != "cpu":
            error = label_error(y_pred, y, loss.ignore_index)
        if error is not None:
            raise error


def check_binary_targets(loss: SingleLoss, y: Any, target_range: tuple[Any, Any] | None = None) -> None:
    """Raise a ``ValueError`` if targets of a binary loss are not between 0 and 1.

    Args:
        loss: The loss, for the message.
        y: Targets of a batch.
        target_range: Lowest and highest target of all data, None if unknown.
    """
    if not isinstance(y, Tensor) or not y.is_floating_point() or not y.numel():
        return
    low, high = target_range or map(float, y.aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"The targets go from {low:g} to {high:g}, but the loss, {loss!r}, expects probabilities, or 0 and 1 for two "
            "classes. Convert labels -1 and 1 with (y + 1) / 2, labels 1 and 2 with y - 1."
        )


def check_parts(loss: SingleLoss, y_pred: Any, y: Any) -> None:
    """Raise a ``ValueError`` unless the outputs, and for CTC the targets, are a tuple of the tensors that ``loss`` takes."""
    names = OUTPUT_PARTS[loss.family]
    subject, value = "module to return", y_pred
    if _has_parts(y_pred, len(names)) and loss.family is nn.CTCLoss:
        subject, value, names = "targets", y, ("labels", "label_lengths")
    if not _has_parts(value, len(names)):
        parts = f"({', '.join(names)})"
        fix = "Pass fit(x, (labels, label_lengths))." if value is y else f"Return {parts} from forward()."
        raise ValueError(f"The loss, {loss!r}, expects the {subject} {parts}, received {describe(value)}. {fix}")


def _has_parts(value: Any, count: int) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == count


def check_signed_targets(loss: SingleLoss, y: Any) -> None:
    """Raise a ``ValueError`` if all targets of a loss that expects -1 and 1 are 0 and 1, or booleans."""
    if not isinstance(y, Tensor) or not y.numel() or y.is_complex():
        return
    if y.dtype == torch.bool or (bool(((y == 0) | (y == 1)).all()) and bool((y == 0).any())):
        found, fix = ("booleans", "2 * y.float() - 1") if y.dtype == torch.bool else ("0 and 1", "2 * y - 1")
        raise ValueError(
            f"The targets are {found}, but the loss, {loss!r}, expects -1 and 1. Pass {fix}"
            + ("." if loss.family in PAIR_LOSSES else ", or use loss='hinge', which takes both.")
        )
    if loss.family is nn.CosineEmbeddingLoss and bool((y.abs() != 1).any()):
        other = float(y.flatten()[(y.flatten().abs() != 1).int().argmax()])
        raise ValueError(
            f"The targets contain {other:g}, but the loss, {loss!r}, expects -1 and 1, and is 0 for any other target. Pass 1 for "
            "pairs that belong together, and -1 for others."
        )


def check_shapes_and_targets(loss: SingleLoss, y_pred: Any, y: Any) -> None:
    """Raise an error if shapes are wrong, or if a binary target on the CPU is not between 0 and 1."""
    if loss.is_elementwise:
        check_shapes(loss, y_pred, y)
    if isinstance(y, Tensor) and y.device.type == "cpu":  # on an accelerator, reading the targets would wait for it
        check_binary_targets(loss, y)


def check_shapes(loss: SingleLoss, y_pred: Any, y: Any) -> None:
    """Raise an error if the targets of an elementwise loss have the wrong shape or dtype.

    Every batch is checked: torch broadcasts ``[N, 1]`` against ``[N]`` to ``[N, N]`` and only warns.
    """
    prediction = loss.compared_prediction(y_pred, None)
    if not isinstance(y, Tensor) or not isinstance(prediction, Tensor):
        return
    if prediction.shape == y.shape and (y.is_floating_point() or loss.takes_integers):
        return
    if y.is_complex():
        if loss.family is nn.L1Loss and prediction.shape == y.shape:
            return
        if loss.family is not nn.L1Loss:
            raise TypeError(
                f"torch has no {loss!r} for complex numbers, but the targets are {describe(y)}. Use 'mae', or a function such as "
                "lambda y_pred, y: (y_pred - y).abs().square()."
            )
    error = shape_error(repr(loss), prediction, y, floats=not loss.takes_integers)
    if error is not None:
        raise error


def no_check(loss: SingleLoss, y_pred: Any, y: Any) -> None:
    """Check nothing."""


def single_class_error(y_pred: Tensor) -> Exception | None:
    """Return the error of outputs ``[N, 1]`` for a loss that compares classes."""
    if y_pred.ndim < 2 or y_pred.shape[1] != 1:
        return None
    return ValueError(
        f"The module returned one output per sample, {describe(y_pred)}, but cross-entropy compares several classes. With one "
        "class the loss is always 0. For two classes, use loss='bce_with_logits' with targets 0 and 1. To predict a "
        "number, use loss='mse'. Otherwise, give the last layer one output per class."
    )


def _missing_flatten_error(y_pred: Tensor, y: Tensor) -> Exception | None:
    if y.ndim != 1 or y_pred.ndim < 3 or y.is_floating_point():
        return None
    if len(y_pred) != len(y):
        return rows_error(y_pred, y)
    fix = "Put nn.Flatten() before the first nn.Linear, and let it have one in_feature for each value of a sample."
    if y_pred.ndim > 3 and y_pred.shape[-1] == y_pred.shape[-2] and y_pred.shape[1] > 1:
        fix = f"After the last convolution put nn.AdaptiveAvgPool{y_pred.ndim - 2}d(1) and nn.Flatten()."
    if y_pred.ndim == 3:
        fix = (
            "If dimension 1 is time, as in the output of an LSTM, use the last step in forward(): output[:, -1]. Otherwise put "
            "nn.Flatten() before the first nn.Linear."
        )
    return ValueError(
        f"The module's output has the shape {list(y_pred.shape)}, but for one label per sample the loss expects [N, classes]. "
        f"{fix}"
    )


def class_count_error(names: Sequence[str] | None, outputs: int) -> Exception | None:
    """Return the error of a module that does not have one output for each class name."""
    if names is None or len(names) == outputs:
        return None
    return ValueError(
        f"The labels have {count_names(names)}, but the module has {outputs} outputs. Give the last layer {len(names)} outputs. "
        "If the names are wrong, set model.class_names; None removes them. A pandas categorical keeps unused categories: "
        "y.cat.remove_unused_categories() removes them."
    )


def label_error(y_pred: Tensor, y: Tensor, ignore_index: int) -> Exception | None:
    """Return the error of targets that are not classes of the outputs.

    Args:
        y_pred: Outputs, ``[N, classes, ...]``.
        y: Targets: class indices ``[N, ...]``, or probabilities ``[N, classes, ...]``.
        ignore_index: The label that the loss ignores.
    """
    error = (
        _argmax_error(y_pred)
        or rows_error(y_pred, y)
        or _class_dimension_error(y_pred, y)
        or _columns_error(y_pred, y)
        or _label_format_error(y_pred, y)
    )
    if error is not None or y.is_floating_point():
        return error
    bounds = label_range(y, ignore_index)
    return label_range_error(*bounds, y_pred.shape[1]) if bounds else None


def _argmax_error(y_pred: Tensor) -> Exception | None:
    if y_pred.is_floating_point() or y_pred.is_complex():
        return None
    return ValueError(
        f"The module returned class indices, {describe(y_pred)}, but the loss expects one output per class, [N, classes]. "
        "Remove argmax from forward(): predict_classes() applies it."
    )


def rows_error(y_pred: Tensor, y: Tensor) -> Exception | None:
    """Return the error of outputs with another number of rows than the batch has samples."""
    if not y.ndim or (y_pred.ndim and len(y_pred) == len(y)):
        return None
    if not y_pred.ndim:
        return ValueError(
            f"The module returned one number for a batch of {len(y)} samples. Remove sum() or mean() from forward(). If the "
            "module returns its own loss, compile it without a loss: compile('adam')."
        )
    if y_pred.ndim == 3 and y_pred.shape[1] == len(y):
        fix = "If it is the state of an LSTM or GRU, [layers, N, features], use the last layer in forward(): h[-1]."
    else:
        fix = (
            "Keep the first dimension in forward(): use x.flatten(1) instead of x.view(-1, ...), nn.Flatten() instead of "
            "nn.Flatten(0), and batch_first=True in nn.LSTM, nn.GRU and nn.Transformer."
        )
    return ValueError(f"The module returned {describe(y_pred)} for a batch of {len(y)} samples. {fix}")


def _columns_error(y_pred: Tensor, y: Tensor) -> Exception | None:
    if not y_pred.ndim == y.ndim == 2 or y.shape[1] in (1, y_pred.shape[1]):
        return None
    return ValueError(
        f"The targets have {y.shape[1]} columns, but the module has {y_pred.shape[1]} outputs per sample. For one column per "
        f"class, give the last layer {y.shape[1]} outputs. For several labels per sample, return a list of outputs and pass one "
        "loss for each: compile(optimizer, ['cross_entropy', 'cross_entropy'])."
    )


def _class_dimension_error(y_pred: Tensor, y: Tensor) -> Exception | None:
    if y_pred.ndim < 2:
        return ValueError(
            f"The loss expects one output per class, [N, classes], but the module returned {describe(y_pred)}. Give the last "
            "layer one output per class."
        )
    if 2 < y_pred.ndim == y.ndim + 1 and y.shape == y_pred.shape[:-1] != (len(y_pred), *y_pred.shape[2:]):
        move = "transpose(1, 2)" if y_pred.ndim == 3 else "movedim(-1, 1)"
        return ValueError(
            f"The loss expects the classes in dimension 1, [N, classes, ...], but the module returned {describe(y_pred)} for "
            f"targets of shape {list(y.shape)}. Let the module return y_pred.{move}. If each item of the dataset is a batch, "
            "pass DataLoader(dataset, batch_size=None)."
        )
    return None


def _label_format_error(y_pred: Tensor, y: Tensor) -> Exception | None:
    if y.ndim == y_pred.ndim and 1 < y.shape[1] != y_pred.shape[1] and y.shape[2:] == y_pred.shape[2:]:
        return ValueError(
            f"The targets are {describe(y)}, one column per class, but the module has {y_pred.shape[1]} outputs. Give the last "
            f"layer {y.shape[1]} outputs, or pass class indices, y.argmax(1)."
        )
    if y.shape == y_pred.shape:
        if y.is_floating_point():
            return None
        return TypeError(
            f"The targets are {describe(y)}, one column per class. Pass class indices, y.argmax(1), or probabilities, y.float()."
        )
    if not are_integers(y):
        fraction = float(y[y != y.round()][0])
        return ValueError(
            f"The targets are not integers (for example {fraction:.4g}), so they are not class indices. To predict a number, "
            "give the last layer one output and use loss='mse'."
        )
    if y.ndim == y_pred.ndim and y.shape[1] == 1:
        cast = "" if y.dtype == torch.int64 else ", then y.long() (NumPy: y.astype('int64'))"
        return ValueError(
            f"The targets are {describe(y)}, but the loss expects class indices as int64 with shape {list(y[:, 0].shape)}. Use "
            f"y.squeeze(1){cast}."
        )
    if y.dtype != torch.int64:
        return TypeError(
            f"The targets are {describe(y)}, but the loss expects class indices as int64. Use y.long(), or "
            "y.astype('int64') for NumPy arrays."
        )
    return None


def are_integers(y: Tensor) -> bool:
    """Return whether all values of ``y`` are integers, in an integer or a float dtype."""
    return not y.is_floating_point() or bool((y == y.round()).all())


def label_range(y: Tensor, ignore_index: int) -> tuple[int, int] | None:
    """Return the lowest and the highest label in ``y``, None if all are ignored."""
    y = y[y != ignore_index]
    return (int(y.min()), int(y.max())) if y.numel() else None


def label_range_error(low: int, high: int, classes: int) -> Exception | None:
    """Return the error of labels from ``low`` to ``high`` that are not in 0 to ``classes`` - 1."""
    if low >= 0 and high < classes:
        return None
    outputs = f"{classes} outputs, for classes 0 to {classes - 1}" if classes > 1 else "1 output, for class 0"
    if low == 1 and high == classes:
        fix = "Class indices start at 0. Use y - 1."
    elif low < 0:
        fix = (
            "Class indices start at 0. Renumber the labels, or exclude some with nn.CrossEntropyLoss(ignore_index=...)."
        )
    else:
        fix = f"Give the last layer {high + 1} outputs, or renumber the labels."
        if high == VOID_LABEL:
            fix += f" If {high} marks values without a label, use nn.CrossEntropyLoss(ignore_index={high})."
    return ValueError(f"The labels go from {low} to {high}, but the module has {outputs}. {fix}")


def shape_error(loss: str, y_pred: Tensor, y: Tensor, floats: bool) -> Exception | None:
    """Return the error of targets for a loss that compares value by value.

    Args:
        loss: Name of the loss, for the message.
        y_pred: Outputs, ``[N, ...]``.
        y: Targets, expected in the same shape.
        floats: Whether the loss takes floats only.
    """
    if y_pred.ndim == 2 and y_pred.shape[1] > 1 and y.shape == y_pred.shape[:1] and are_integers(y):
        return ValueError(
            f"The module has {y_pred.shape[1]} outputs per sample, but the targets have one integer per sample, {describe(y)}. "
            f"If they are class indices, use loss='cross_entropy'. For the loss, {loss}, give the last layer one output."
        )
    reshape = _reshape_fix(y_pred, y)
    if floats and not y.is_floating_point():
        both = f", then {reshape}" if reshape else ""
        return TypeError(
            f"The targets are {describe(y)}, but the loss, {loss}, expects floats. Use y.float(){both} (NumPy: "
            "y.astype('float32'))."
        )
    if y_pred.shape == y.shape:
        return None
    fix = f"Use {reshape} for the targets" if reshape else "Give both the same shape"
    return ValueError(
        f"The module's output has the shape {list(y_pred.shape)} but the targets have {list(y.shape)}. {fix}, or change the "
        "module so that its output has the shape of the targets."
    )


def _reshape_fix(y_pred: Tensor, y: Tensor) -> str | None:
    """Return the call that adds or removes a last dimension of size 1 in the targets."""
    if y_pred.ndim == y.ndim + 1 and y_pred.shape[-1] == 1:
        return f"y.unsqueeze({1 if y.ndim == 1 else -1})"
    if y_pred.ndim + 1 == y.ndim and y.shape[-1] == 1:
        return f"y.squeeze({1 if y.ndim == 2 else -1})"
    return None


SIGMOID_WARNING = (
    "The module ends in a sigmoid, and this loss applies a {activation} itself. Training will be slow and the model "
    "inaccurate. Remove the sigmoid from the module. predict_proba() applies the {activation}."
)
SOFTMAX_WARNING = (
    "The module's outputs are already probabilities, and cross-entropy applies a softmax itself. Training will be slow and "
    "the model inaccurate. Remove the softmax from the module. predict_proba() applies it."
)
BATCH_SOFTMAX_WARNING = (
    "The module's outputs are normalized over the samples of a batch instead of over the classes, so the model will be wrong. "
    "Remove nn.Softmax(0) and use loss='cross_entropy', or replace nn.LogSoftmax(0) by nn.LogSoftmax(1)."
)
RELU_WARNING = (
    "The module ends in a ReLU, but cross-entropy expects logits, which may be negative. An output that is always 0 has no "
    "gradient and does not learn. Remove the last ReLU from the module."
)
ONE_COLUMN_WARNING = (
    "The module's outputs are all 1, because it ends in a softmax over one column. The module cannot learn. End it with "
    "nn.Sigmoid(), or with nn.Linear and use loss='bce_with_logits'."
)


def last_layer_warning(family: type[Any], y_pred: Tensor) -> str | None:
    """Return the warning about a last layer that does not suit a loss of ``family``.

    A sigmoid is found in the autograd graph, because the values of logits may lie between 0 and 1 too.
    """
    operation, values = last_operation(y_pred), y_pred.detach()
    if family is nn.CrossEntropyLoss:
        return _cross_entropy_warning(operation, values)
    if operation.startswith("Softmax") and family in (nn.BCELoss, nn.BCEWithLogitsLoss) and bool((values == 1).all()):
        return ONE_COLUMN_WARNING
    if operation.startswith("Sigmoid") and family is nn.BCEWithLogitsLoss:
        return SIGMOID_WARNING.format(activation="sigmoid")
    if family is nn.NLLLoss and _are_normalized_over_batch(values.exp()):
        return BATCH_SOFTMAX_WARNING
    if family is nn.NLLLoss and values.numel() and (high := float(values.max())) > 1e-4:
        return (
            f"The module's outputs go up to {high:.3g}, but 'nll' expects log-probabilities, which are at most 0. The model "
            "will be inaccurate. End the module with nn.LogSoftmax(1), or end it with nn.Linear and use loss='cross_entropy'."
        )
    return None


def _cross_entropy_warning(operation: str, values: Tensor) -> str | None:
    if operation.startswith("Relu"):
        return RELU_WARNING
    if operation.startswith("Sigmoid"):
        return SIGMOID_WARNING.format(activation="softmax")
    if values.ndim == 2 and _are_probabilities(values):
        return SOFTMAX_WARNING
    return BATCH_SOFTMAX_WARNING if _are_normalized_over_batch(values) else None


def _are_normalized_over_batch(values: Tensor) -> bool:
    return values.ndim == 2 and values.shape[1] > 1 and _are_probabilities(values.T) and not _are_probabilities(values)


def _are_probabilities(values: Tensor) -> bool:
    return len(values) > 1 and bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-4).all())


# Names of autograd nodes that do not change values.
RESHAPING_NODES = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Alias")


def last_operation(y_pred: Tensor) -> str:
    """Return autograd's name of the last operation that changed values, "" without a gradient."""
    node: Any = y_pred.grad_fn
    while node is not None and node.name().startswith(RESHAPING_NODES):
        node = node.next_functions[0][0]
    return "" if node is None else str(node.name())


def soft_target_warning(family: type[Any], y_pred: Tensor, y: Tensor) -> str | None:
    """Return the warning about rows of targets that are not probabilities, for cross-entropy."""
    are_rows = family is nn.CrossEntropyLoss and y.is_floating_point() and y.ndim > 1 and y.shape == y_pred.shape
    if not are_rows or not y.numel():
        return None
    sums, lowest = y.float().sum(1), float(y.min())
    low, high = float(sums.min()), float(sums.max())
    if lowest >= 0 and low > 0.99 and high < 1.01:
        return None
    values = f"have values down to {lowest:.3g}" if lowest < 0 else f"sum to between {low:.3g} and {high:.3g}"
    return (
        f"The rows of the targets {values}, but cross-entropy expects probabilities that sum to 1. The predicted probabilities "
        "will be wrong. Divide each row by its sum, or use loss='bce_with_logits' if a sample may belong to several classes."
    )


def broadcast_warning(loss: str, value: Any, y_pred: Any, y: Any) -> str | None:
    """Return the warning about a custom loss that has broadcast ``[N, 1]`` and ``[N]`` to ``[N, N]``.

    The shapes do not show whether the loss reshapes its arguments; the graph of its value does.
    """
    shape = _pair_shape(y_pred, y)
    if shape is None or not torch_private.has_node_of_shape(getattr(value, "grad_fn", None), shape, y_pred.grad_fn):
        return None
    reshape = _reshape_fix(y_pred, y)
    fix = f", for example {reshape} for the targets" if reshape else ""
    return (
        f"The module's output is {list(y_pred.shape)} and the targets are {list(y.shape)}. The custom loss, {loss}, "
        f"broadcasts them to {list(shape)}, one value per pair of samples, and trains a wrong model. Give both the same "
        f"shape{fix}. If the pairs are intended, the same shape silences this warning."
    )


def _pair_shape(y_pred: Any, y: Any) -> torch.Size | None:
    """Return the shape with one value per pair of samples to which torch broadcasts outputs and targets; None if it does not."""
    if not isinstance(y_pred, Tensor) or not isinstance(y, Tensor):
        return None
    if abs(y_pred.ndim - y.ndim) != 1 or y_pred.numel() != y.numel():
        return None
    try:
        shape: torch.Size = torch.broadcast_shapes(y_pred.shape, y.shape)  # type: ignore[no-untyped-call]  # not annotated
    except RuntimeError:
        return None
    return shape if shape.numel() > y.numel() else None


def warn_if_labels_are_ignored(loss: str, y: Any) -> None:
    """Warn if a custom loss returns one number for targets of which some are -100, which most losses ignore."""
    if isinstance(y, Tensor) and y.dtype == torch.int64 and bool((y == IGNORE_INDEX).any()):
        warn(
            f"The custom loss, {loss}, returns one number per batch, and some targets are {IGNORE_INDEX}. Batches are weighted "
            "by their samples, which is wrong if the loss is a mean over the other targets. Return (sum, count) from the loss, "
            "or use loss='cross_entropy'."
        )
