"""The description of a loss: its expression, the conversion of targets, and what its mean is over."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import describe
from easytorch._utils.registry import get_name
from easytorch._utils.rng import preserve_rng_state
from easytorch.losses.criterion import Criterion
from easytorch.losses.multi_output_loss import MultiOutputLoss
from easytorch.losses.names import CALL_ADAPTERS
from easytorch.losses.single_loss import SingleLoss
from easytorch.scripts.description import LABELS, SAMPLES, LossInfo, RunDescription
from easytorch.scripts.expressions import InexpressibleError, literal, loss_expression, variable

if TYPE_CHECKING:
    from easytorch.scripts.describe import ExampleBatch


def describe_loss(criterion: Criterion, batch: ExampleBatch | None, targets: Sequence[Any]) -> LossInfo:
    """Return the description of ``criterion``.

    Args:
        criterion: The loss.
        batch: The first batch, which shows the conversion of the targets; None without data.
        targets: All targets of each data set, None for each that is unknown before training.
    """
    if isinstance(criterion, MultiOutputLoss):
        terms = tuple(f"{criterion.weights[name]:g} * {loss!r} of {name}" for name, loss in criterion.losses.items())
        return LossInfo(title=repr(criterion), terms=terms)
    if not isinstance(criterion, SingleLoss):
        return LossInfo(title=repr(criterion))
    function, per_sample, is_custom = _expressions(criterion)
    weight = None if not criterion.counts_labels or _are_shares(criterion, batch) else criterion._option("weight", None)
    may_ignore = batch is not None and _may_ignore(criterion, batch, targets)
    return LossInfo(
        title=repr(criterion),
        function=function,
        per_sample=per_sample,
        is_custom=is_custom,
        reduction=_reduction(criterion, batch),
        divisor=LABELS
        if criterion.family in (nn.CrossEntropyLoss, nn.NLLLoss) and (may_ignore or weight is not None)
        else SAMPLES,
        conversions=() if batch is None else _conversions(criterion, batch),
        ignore_index=criterion.ignore_index if may_ignore else None,
        losses_ndim=1 if batch is None else _losses_ndim(criterion, batch),
        class_weight="" if weight is None else _weight_expression(weight),
    )


def check_loss(criterion: Criterion, batch: ExampleBatch, targets: Any) -> None:
    """Raise an error if ``criterion`` cannot compare the outputs and targets of the first batch; see ``losses.checks``."""
    if not isinstance(criterion, SingleLoss) or criterion.arguments is not None:
        return
    checked = copy.copy(criterion)
    checked.targets = copy.deepcopy(criterion.targets)
    checked.prepare(targets, criterion.class_names)
    with preserve_rng_state(), torch.no_grad():
        checked(batch.outputs, batch.y)


def refuse_losses(run: RunDescription, criterion: Criterion, batch: ExampleBatch | None) -> None:
    """Add to ``run`` what no script can do with ``criterion``."""
    if not isinstance(criterion, SingleLoss):
        is_sum = isinstance(criterion, MultiOutputLoss)
        what = "losses of several outputs" if is_sum else "the loss that the module returns"
        run.refuse(what, "Write a loss function f(y_pred, y) that returns their sum, and pass it to compile()")
        return
    name, function = repr(criterion), run.loss.function
    pass_function = "Pass a loss function f(y_pred, y)"
    has_state = any(True for _ in criterion.modules.parameters()) or (
        criterion.is_custom and any(True for _ in criterion.modules.buffers())
    )
    has_tensors = function.startswith("functools") and "torch.tensor(" in function
    run.refuse_where(
        (criterion.arguments is not None, f"the arguments of {name} beyond (y_pred, y)", pass_function),
        (criterion.family in CALL_ADAPTERS, f"{name}, which gets several outputs", f"{pass_function} that calls it"),
        (has_state, f"the parameters and buffers of the loss {name}", pass_function),
        (has_tensors and run.device != "cpu", f"tensors in the arguments of {name}", "Pass a loss of torch.nn"),
        (criterion.is_keras, f"the loss {name} of Keras", pass_function),
        (not function, f"the loss {name}", "Pass it by name, or as a loss function f(y_pred, y) that has a name"),
    )
    if batch is None:
        return
    is_pair = isinstance(batch.raw, (tuple, list)) and len(batch.raw) in (2, 3)
    is_one_output = isinstance(batch.outputs, Tensor) or not criterion.takes_one_output
    is_one_hot = any("argmax" in end for end in run.loss.conversions)
    run.refuse_where(
        (not is_pair, f"batches that are {describe(batch.raw)}", "Let the loader return (x, y)"),
        (
            is_pair and not is_one_output,
            f"outputs that are {describe(batch.outputs)}",
            "Return one tensor from the module",
        ),
        (
            run.loss.reduction == "pair",
            f"a loss that returns (sum, count), {name}",
            "Return one value per sample",
        ),
        (
            is_one_hot and run.loss.divisor == LABELS,
            "one-hot targets whose labels are counted",
            "Pass class numbers",
        ),
    )


def _expressions(criterion: SingleLoss) -> tuple[str, str | None, bool]:
    """Return expressions of the loss and of the loss of each sample, and whether it is custom."""
    function = criterion.function
    try:
        expression = loss_expression(function)
        if expression is not None:
            return expression, loss_expression(function, reduction="none"), False
    except InexpressibleError:
        return "", None, False
    name = type(function).__name__ if isinstance(function, nn.Module) else get_name(function)
    return variable(name, "custom_loss"), None, True


def _weight_expression(weight: Tensor) -> str:
    try:
        return literal(weight)
    except InexpressibleError:
        return "loss_fn.weight"


def _reduction(criterion: SingleLoss, batch: ExampleBatch | None) -> str:
    """Return how the loss reduces; of a custom one, what it returns for the first batch."""
    if not criterion.is_custom or batch is None or criterion.arguments is not None:
        return criterion.reduction or "mean"
    try:
        with preserve_rng_state(), torch.no_grad():
            value = criterion.function(batch.outputs, batch.y)
    except Exception:  # an error of the user's function, which training reports with the place
        return "mean"
    if isinstance(value, tuple):
        return "pair"
    return "values" if isinstance(value, Tensor) and value.ndim else criterion.reduction or "mean"


def _losses_ndim(criterion: SingleLoss, batch: ExampleBatch) -> int:
    """Return the number of dimensions of the loss without reduction; 1 if that cannot be computed."""
    if not isinstance(batch.outputs, Tensor) or not isinstance(batch.y, Tensor) or criterion.arguments is not None:
        return 1
    try:
        with preserve_rng_state(), torch.no_grad():
            return criterion.unreduced(batch.outputs, copy.deepcopy(criterion.targets)(batch.outputs, batch.y)).ndim
    except Exception:  # there may be none, or training will report an error
        return 1


def _are_shares(criterion: SingleLoss, batch: ExampleBatch | None) -> bool:
    """Return whether the targets are shares of all classes: the mean of the loss is then over samples."""
    if batch is None or not isinstance(batch.outputs, Tensor) or not isinstance(batch.y, Tensor):
        return False
    return bool(copy.deepcopy(criterion.targets)(batch.outputs, batch.y).is_floating_point())


def _may_ignore(criterion: SingleLoss, batch: ExampleBatch, targets: Sequence[Any]) -> bool:
    """Return whether a data set may have labels that are ignored."""
    if criterion.ignore_index is None or not isinstance(batch.y, Tensor) or batch.y.is_complex():
        return False
    if batch.y.is_floating_point() and batch.y.shape == getattr(batch.outputs, "shape", None):
        return False
    if criterion.kind != "multiclass" and not criterion.is_custom:
        return False
    known = [part for part in targets if isinstance(part, Tensor) and part.numel()]
    return len(known) < len(targets) or any(bool((part == criterion.ignore_index).any()) for part in known)


def _conversions(criterion: SingleLoss, batch: ExampleBatch) -> tuple[str, ...]:
    """Return the ends of expressions that convert targets as ``criterion`` does, found with the first batch."""
    outputs, y = batch.outputs, batch.y
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        return ()
    converted = copy.deepcopy(criterion.targets)(outputs, y)
    ends = []
    if (
        converted.shape != y.shape
        and converted.ndim == y.ndim - 1
        and y.shape[1] != 1
        and converted.numel() != y.numel()
    ):
        return (".argmax(1)",) if y.dtype != torch.bool else (".byte()", ".argmax(1)")
    if converted.shape != y.shape:
        ends.append(".view_as(outputs)" if converted.shape == outputs.shape else _squeeze(y))
    if converted.dtype != y.dtype:
        names = {torch.float32: ".float()", torch.float64: ".double()", torch.int64: ".long()"}
        ends.append(names.get(converted.dtype, f".to({converted.dtype})"))
    return tuple(ends)


def _squeeze(y: Tensor) -> str:
    """Return what removes the dimensions of size 1 of ``y`` after the first."""
    ones = [i for i, size in enumerate(y.shape) if i and size == 1]
    return f".squeeze({ones[0]})" if len(ones) == 1 else f".squeeze({tuple(ones)})"
