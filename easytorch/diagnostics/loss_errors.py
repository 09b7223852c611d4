"""Errors of losses, metrics and gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.internal import is_internal
from easytorch._utils.patterns import matches
from easytorch._utils.pytree import describe
from easytorch._utils.registry import get_name, quote_list
from easytorch._utils.rng import preserve_rng_state
from easytorch.data.class_names import is_text
from easytorch.diagnostics.frames import Failure, calls_of
from easytorch.losses.checks import label_error
from easytorch.losses.single_loss import SingleLoss
from easytorch.metrics.base import MeanMetric, Metric
from easytorch.metrics.collection import MetricCollection
from easytorch.strategies.base import Strategy

SINGLE_SAMPLES = (
    "If the data are single samples instead of batches, pass fit(x, y) with arrays, or DataLoader(samples, 32)."
)
CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)


def loss_error(failure: Failure) -> Exception | None:
    """Return why a loss cannot compare the outputs with the targets."""
    for loss, y_pred, y, *_ in calls_of(failure.frames, SingleLoss.__call__, SingleLoss.terms):
        # A message of this package is clear, except where a sample lost its batch dimension.
        if is_internal(failure.frames[-1]):
            return _squeeze_error(y_pred, y)
        return (
            _targets_error(loss, y_pred, y, failure)
            or _numpy_error(f"loss, {loss!r},", failure, "A loss needs gradients.")
            or _swapped_error("loss", loss.function if loss.is_custom else None, y_pred, y)
            or ValueError(
                f"The loss, {loss!r}, failed on the module's output, {describe(y_pred)}, and the targets, {describe(y)}: "
                f"{failure.error}"
            )
        )
    return None


def metric_error(failure: Failure) -> Exception | None:
    """Return which metric cannot compare the outputs with the targets."""
    for metrics, metric, y_pred, y, *_ in calls_of(failure.frames, MetricCollection._update_metric):
        loss, error = metrics.criterion, failure.error
        explanation = _missing_error(f"metric {metric.name!r}", y_pred, y, failure) or _several_outputs_error(
            metric, y_pred
        )
        if isinstance(loss, SingleLoss) and explanation is None:
            explanation = _squeeze_error(y_pred, y) or _value_error(loss, y_pred, y)
        function = metric.function if isinstance(metric, MeanMetric) else None
        advice = f"For a function of NumPy or scikit-learn, pass easytorch.EpochMetric({get_name(function)})."
        explanation = explanation or _numpy_error(f"metric {metric.name!r}", failure, advice if function else "")
        explanation = explanation or _swapped_error("metric", function, y_pred, y)
        return explanation or ValueError(
            f"The metric {metric.name!r} failed on the module's output, {describe(y_pred)}, and the targets, {describe(y)}: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Remove it from compile(metrics=...), or use a metric for these "
            "shapes."
        )
    return None


def backward_error(failure: Failure) -> Exception | None:
    """Return why the gradients of a loss cannot be computed."""
    if is_internal(failure.frames[-1]):
        return None
    for _, loss, *_ in calls_of(failure.frames, Strategy.backward):
        return _shape_error(loss) or _gradient_error(str(failure.error), loss)
    return None


def optimizer_error(failure: Failure) -> Exception | None:
    """Return which optimizers can use sparse gradients, if this one cannot."""
    if not re.search(r"sparse", str(failure.error), re.IGNORECASE):
        return None
    for strategy, optimizer, *_ in calls_of(failure.frames, Strategy.step):
        name = type(optimizer).__name__
        layers = [key for key, value in strategy.module.named_modules() if getattr(value, "sparse", False) is True]
        other = "adam" if name == "SparseAdam" else name.lower()
        hint = _sparse_hint(strategy.module, layers, other)
        if isinstance(optimizer, torch.optim.SparseAdam):
            fix = hint or repr(other)
            return TypeError(f"{name} is only for sparse gradients, but some gradients are dense. Use {fix}.")
        found = f", such as that of {layers[0]!r}" if layers else ""
        decays = name in ("SGD", "Adagrad") and any(group["weight_decay"] for group in optimizer.param_groups)
        fix = "weight_decay=0" if decays else "an optimizer that can: 'sgd' or 'adagrad'"
        return TypeError(
            f"{name}{' with weight_decay' * decays} cannot use sparse gradients{found}. Use nn.Embedding(sparse=False), {fix}, "
            f"or {hint or 'torch.optim.SparseAdam for these parameters alone'}."
        )
    return None


def _sparse_hint(module: nn.Module, layers: Sequence[str], other: str) -> str:
    """Return how to train ``layers`` with SparseAdam and all others with the optimizer ``other``; empty without layers."""
    names = [name for name, _ in module.named_parameters()]
    sparse = [name for name in names if any(matches(name, layer) for layer in layers if layer)]
    if not sparse or len(sparse) == len(names):
        return ""
    by_layer = dict.fromkeys(layers, "sparse_adam") | {"*": other}
    return f"one optimizer for each kind: compile({by_layer}, ...)"


def closure_error(failure: Failure) -> Exception | None:
    """Return how an optimizer gets the closure that its step asks for."""
    if "closure" not in str(failure.error).lower():
        return None
    for strategy, optimizer, *_ in calls_of(failure.frames, Strategy.step):
        if strategy.evaluations is None:
            return RuntimeError(
                f"{type(optimizer).__name__}.step() needs a closure, but its signature does not require one. Declare it before "
                "compile(): optimizer.needs_closure = True. A custom update(window) calls self.optimizer.step(closure) itself."
            )
    return None


def evaluation_error(failure: Failure) -> Exception | None:
    """Return how to evaluate a step that computes gradients itself."""
    if not failure.without_gradients or "does not require grad" not in str(failure.error):
        return None
    return RuntimeError(
        "Evaluation runs test_step without gradients, but this step computes gradients. Override test_step without the part "
        "that is for training only, or compute the gradients inside `with torch.enable_grad():`."
    )


def _targets_error(loss: SingleLoss, y_pred: Any, y: Any, failure: Failure) -> Exception | None:
    """Return what is wrong with the outputs or the targets for ``loss``, None if nothing is known."""
    return (
        _missing_error(f"loss, {loss!r},", y_pred, y, failure)
        or _squeeze_error(y_pred, y)
        or _value_error(loss, y_pred, y)
    )


def _swapped_error(kind: str, function: Any, y_pred: Any, y: Any) -> Exception | None:
    """Return that a custom function, which has failed, expects the targets first, if it can be called so."""
    if is_internal(function) or not callable(function) or not isinstance(y_pred, Tensor) or not isinstance(y, Tensor):
        return None
    try:
        with torch.no_grad(), preserve_rng_state():
            value = function(y, y_pred)
    except Exception:  # of any kind: the answer is no
        return None
    if not isinstance(value, (Tensor, float, int)):
        return None
    name = get_name(function) if get_name(function).isidentifier() else "f"
    return ValueError(
        f"The {kind}, {get_name(function)}, fails as f(y_pred, y), and works with the targets first, as in Keras. easytorch "
        f"passes the predictions first, as torch does. Swap the arguments, or pass lambda y_pred, y: {name}(y, y_pred)."
    )


def _numpy_error(subject: str, failure: Failure, advice: str) -> Exception | None:
    """Return that a function of NumPy was called with tensors, if this is what failed."""
    module = str(failure.frames[-1].f_globals.get("__name__")).partition(".")[0]
    if module != "numpy" and "call numpy() on Tensor" not in str(failure.error):
        return None
    text = f"The {subject} calls a function of NumPy on tensors. Use that of torch, such as torch.mean for np.mean. {advice}"
    return TypeError(text.rstrip())


def _several_outputs_error(metric: Metric, y_pred: Any) -> Exception | None:
    """Return how to measure one of several outputs, for a metric that takes one tensor."""
    if metric.takes_all_outputs or isinstance(y_pred, Tensor):
        return None
    key = f"[{next(iter(y_pred))!r}]" if isinstance(y_pred, Mapping) and y_pred else "[0]"
    return TypeError(
        f"The metric {metric.name!r} expects one tensor, but the module returned {describe(y_pred)}. Pass a function that "
        f"selects an output, such as metrics=[lambda y_pred, y: (y_pred{key}.argmax(1) == y).float()]; or one loss and one list "
        "of metrics for each output: compile(..., loss=[...], metrics=[[...], ...])."
    )


def _missing_error(subject: str, y_pred: Any, y: Any, failure: Failure) -> Exception | None:
    batch = next((batch for _, _, batch in calls_of(failure.frames, Strategy.run)), None)
    if y is None and isinstance(batch, Mapping):
        return ValueError(
            f"The {subject} needs targets, but the batch has none: its entries are {quote_list(batch)}, and the targets are the "
            "entry 'label'. Rename the column of the targets: dataset.rename_column('column', 'label') of Hugging Face, or "
            "{'label': y} in the dict."
        )
    if y is None:
        return ValueError(
            f"The {subject} needs targets, but the batch has none. Pass (x, y), or batches of them. To reconstruct the "
            "inputs, pass (x, x)."
        )
    if y_pred is None:
        return TypeError("The module returned None. Add the missing return statement to its forward().")
    return None


def _squeeze_error(y_pred: Any, y: Any) -> Exception | None:
    """Return an error if the output for one sample lacks the batch dimension."""
    if not isinstance(y_pred, Tensor) or not isinstance(y, Tensor) or y.shape[:1] != (1,) or y_pred.shape[:1] == (1,):
        return None
    return _batch_of_one_error(describe(y_pred))


def _batch_of_one_error(output: str) -> Exception:
    return ValueError(
        f"For a batch of one sample the module returned {output}, without the batch dimension. squeeze() in forward() removes "
        "it. Use squeeze(1) in forward(), or drop_last=True in the DataLoader."
    )


def _value_error(loss: SingleLoss, y_pred: Any, y: Any) -> Exception | None:
    # A custom loss may take any outputs and targets.
    if loss.is_custom:
        return None
    if isinstance(y_pred, np.ndarray):
        return TypeError(
            f"The module returned {describe(y_pred)}, which has no gradient. Return a tensor: remove .detach() and .numpy() from "
            "forward()."
        )
    if not isinstance(y_pred, Tensor):
        return TypeError(
            f"The loss, {loss!r}, expects one tensor, but the module returned {describe(y_pred)}. Pass one loss for each output, "
            f"{_example_of_losses(y_pred)}, or a function f(y_pred, y) that takes all outputs."
        )
    if not isinstance(y, Tensor):
        if is_text(y):
            return ValueError(
                f"The targets of a batch are text, {y[0]!r} and others, which are not all in model.class_names. Before fit(), "
                "set model.class_names = [...], with the name of each class, or let the data yield class numbers."
            )
        fix = SINGLE_SAMPLES if isinstance(y, (int, float, np.generic)) else "Pass numbers."
        return TypeError(f"The loss, {loss!r}, expects targets as one tensor, received {describe(y)}. {fix}")
    if not y.ndim and y_pred.ndim:
        return ValueError(f"The targets of a batch are one number, {describe(y)}. {SINGLE_SAMPLES}")
    if loss.family in CLASS_LOSSES:
        return label_error(y_pred, y, loss.ignore_index)
    return _probability_error(loss, y_pred) if loss.family is nn.BCELoss and y_pred.numel() else None


def _example_of_losses(outputs: Any) -> str:
    """Return an argument of ``compile`` with a loss for each of several outputs."""
    if isinstance(outputs, Mapping):
        return "loss={" + ", ".join(f"{key!r}: 'cross_entropy'" for key in [*outputs][:2]) + "}"
    return "loss=['cross_entropy', ...]"


def _probability_error(loss: SingleLoss, y_pred: Tensor) -> Exception | None:
    low, high = float(y_pred.detach().min()), float(y_pred.detach().max())
    if low >= 0 and high <= 1:
        return None
    return ValueError(
        f"The loss, {loss!r}, expects probabilities from 0 to 1, but the module's outputs go from {low:.3g} to {high:.3g}. "
        "Use loss='bce_with_logits', or add nn.Sigmoid() as the last layer."
    )


def _shape_error(loss: Tensor) -> Exception | None:
    if loss.ndim:
        return ValueError(
            f"The loss is {describe(loss)}, not one number. Return a mean from the loss or train_step: loss.mean()."
        )
    return None


def _gradient_error(text: str, loss: Tensor) -> Exception | None:
    # Cross-entropy does not notice a missing batch dimension before its backward pass.
    if match := re.search(r"got input: (\[\d+\]), target: \[1\]", text):
        return _batch_of_one_error(match[1])
    if "modified by an inplace operation" in text:
        return RuntimeError(
            "An in-place operation in forward() or the loss changed a tensor that the gradient needs. Replace operations such as "
            f"x += y, x.relu_() or nn.ReLU(inplace=True) by x = x + y, x.relu() and nn.ReLU(). ({text.partition('. Hint')[0]})"
        )
    if "second time" in text:
        return RuntimeError(
            "Part of this loss belongs to an earlier backward pass. If the module stores a tensor between batches, such as the "
            "state of an LSTM or GRU, detach it: state.detach(). Leave backward(), "
            "optimizer.step() and zero_grad() out of train_step, or override update()."
        )
    if not loss.requires_grad:
        return ValueError(
            "The loss has no gradient, because it depends on no trainable parameter. Unfreeze frozen parameters by "
            "requires_grad_(True), or remove .detach(), .item(), torch.no_grad() or argmax from forward() and the loss."
        )
    return None
