"""Checks of the outputs and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import leaves
from easytorch.checks.base import Finding, check, error, info, split_message, warning
from easytorch.checks.labels import DISTANCES
from easytorch.checks.probe import Head, Probe
from easytorch.losses.checks import last_layer_warning, last_operation

# Outputs that differ by less than this share of their size come from rounding.
EQUAL_OUTPUTS = 1e-6
# Rounding of the same samples in batches of other sizes, in relation to the largest output.
ROUNDING = 1e-3
# The same in mixed precision, and on accelerators, which may compute in TF32.
COARSE_ROUNDING = 3e-2
# Probabilities above this are certain; a model without training should not have many.
CERTAIN, CERTAIN_SHARE = 0.99, 0.9
# A loss above EXCESS times its expected value, plus 1 for logits of a standard deviation above 1.
EXCESS = 2.0
# The same for a distance, whose expected value is that of the mean.
DISTANCE_EXCESS = 5.0
MIN_TARGETS = 8


@check
def training_step(probe: Probe) -> Iterator[Finding]:
    """Report the error of the first training step."""
    if probe.failure is not None:
        message, fix = split_message(str(probe.failure) or type(probe.failure).__name__)
        yield error(
            f"The training step fails with {type(probe.failure).__name__}: {message}",
            fix or "Call fit() for the traceback.",
        )


@check
def double_activation(probe: Probe) -> Iterator[Finding]:
    """Find an activation at the end of the module that the loss applies too, or that does not suit the loss."""
    for head in probe.heads:
        if head.loss is None:
            continue
        text = last_layer_warning(head.loss.family, head.y_pred)
        operation = last_operation(head.y_pred)
        if text is None and head.loss.family is nn.CrossEntropyLoss and operation.startswith("Softmax"):
            text = "The module ends in a softmax, and cross-entropy applies one itself. Remove the softmax from the module."
        if text is not None:
            message, fix = split_message(text)
            yield error(f"{message} (The {head.title}.)" if head.name else message, fix)


@check
def softmax_over_samples(probe: Probe) -> Iterator[Finding]:
    """Find a softmax over the samples of a batch."""
    layers = [] if probe.recording is None else probe.recording.batch_softmaxes
    if layers:
        yield error(
            f"The softmax in {layers[0]!r} is over the samples of the batch, so that they influence each other.",
            "Use dim=1, or dim=-1, instead of dim=0.",
        )


@check
def non_finite_outputs(probe: Probe) -> Iterator[Finding]:
    """Find outputs or a loss that are NaN or infinite."""
    for head in probe.heads:
        if not bool(head.y_pred.detach().isfinite().all()):
            yield error(
                f"The {head.title} of the module has values that are NaN or infinite.",
                "Look for log(0), division by 0 or an overflow in forward(), and check the inputs.",
            )
            return
    if probe.loss is not None and not math.isfinite(probe.loss):
        yield error(f"The loss of the first batch is {probe.loss}.", "Look for log(0) or division by 0 in the loss.")


@check
def constant_outputs(probe: Probe) -> Iterator[Finding]:
    """Find outputs that are the same for all samples."""
    for head in probe.heads:
        values = head.y_pred.detach().float()
        if len(values) < 2 or not values.numel() or not bool(values.isfinite().all()) or _has_equal_inputs(probe):
            continue
        spread, size = float(values.std(0).max()), float(values.abs().max())
        if spread <= EQUAL_OUTPUTS * size and not _differ(probe.later_outputs):
            yield error(
                f"The {head.title} is the same for all {len(values)} samples of the batch: {float(values.flatten()[0]):.4g}, ...",
                "Look for dead ReLUs, weights of 0, an average over the wrong dimension, or inputs that forward() does not use.",
            )


@check
def saturated_outputs(probe: Probe) -> Iterator[Finding]:
    """Find probabilities of a model without training that are almost all 0 or 1."""
    for head in probe.heads:
        if not probe.is_untrained or head.loss is None or head.loss.activation is None:
            continue
        probabilities = head.loss.activation(head.y_pred.detach().float())
        if head.loss.kind == "multiclass" and probabilities.ndim > 1:
            certain = probabilities.amax(1) > CERTAIN
        else:
            certain = (probabilities - 0.5).abs() > CERTAIN - 0.5
        share = float(certain.float().mean())
        if share > CERTAIN_SHARE:
            yield warning(
                f"The model has not been trained, but {share:.0%} of its predictions have a probability above {CERTAIN}.",
                "Scale the inputs, and use the default initialization of the last layer.",
                share,
            )


@check
def loss_at_start(probe: Probe) -> Iterator[Finding]:
    """Compare the loss of a model without training with that of a constant prediction."""
    for head in probe.heads:
        expected = expected_loss(head)
        if expected is None or not probe.is_untrained or head.loss is None or head.y is None:
            continue
        value, (expected_value, description) = _loss_of(head), expected
        if value is None or not math.isfinite(value):
            continue
        limit = DISTANCE_EXCESS * expected_value if head.loss.family in DISTANCES else EXCESS * expected_value + 1
        name = f" of {head.name!r}" * bool(head.name)
        text = f"The loss{name} before training is {value:.4g}; {description} has {expected_value:.4g}."
        if value > limit:
            fix = (
                "Scale the targets, set the bias of the last layer to their mean, or use smaller initial weights."
                if head.loss.family in DISTANCES
                else "Scale the inputs, and use smaller weights in the last layer. Check that outputs and labels have one order."
            )
            yield warning(text, fix, value)
        else:
            yield info(text, value)


@check
def output_range(probe: Probe) -> Iterator[Finding]:
    """Find targets that the last activation of the module cannot reach."""
    for head in probe.heads:
        if (
            head.loss is None
            or head.loss.family not in DISTANCES
            or head.y is None
            or head.y.shape != head.y_pred.shape
        ):
            continue
        operation = last_operation(head.y_pred)
        low, high = _range_of(operation)
        y = head.y if head.labels is None or head.labels.is_complex() else head.labels
        lowest, highest = float(y.min()), float(y.max())
        margin = 1e-3 * (highest - lowest)
        if lowest < low - margin or highest > high + margin:
            name, function = f" of {head.name!r}" * bool(head.name), operation.partition("Backward")[0].lower()
            yield error(
                f"The targets{name} go from {lowest:.4g} to {highest:.4g}, but the module ends in a {function}, whose values go "
                f"from {low:g} to {high:g}.",
                "Remove the last activation from the module, or scale the targets to its range.",
            )


@check
def mixed_samples(probe: Probe) -> Iterator[Finding]:
    """Find a module in which the output of a sample depends on the other samples of the batch, in eval mode."""
    strategy = probe.model.strategy
    tolerance = ROUNDING if strategy.precision == "fp32" and strategy.device.type == "cpu" else COARSE_ROUNDING
    if probe.eval_outputs is None or not _are_close(*probe.eval_outputs, slice(None), tolerance / 10):
        return
    for half, outputs in probe.halves:
        if isinstance(outputs, Exception) or _are_close(probe.eval_outputs[0], outputs, half, tolerance):
            continue
        yield error(
            "The outputs of a sample depend on the other samples of its batch, in eval mode too.",
            "Look in forward() for view(), reshape(), mean(), softmax() or norm() over dimension 0, for nn.LSTM or attention "
            "without batch_first=True, and for F.batch_norm(training=True).",
        )
        return


@check
def fixed_batch_size(probe: Probe) -> Iterator[Finding]:
    """Find a module that runs with one batch size only."""
    for _, outputs in probe.halves:
        if isinstance(outputs, Exception):
            yield error(
                f"The module runs with {probe.batch_size} samples, but not with half of them: {str(outputs).splitlines()[0]}",
                "Use x.shape[0], or view(len(x), ...), in forward() instead of a number. The last batch may be smaller.",
            )
            return


@check
def dropout_in_eval_mode(probe: Probe) -> Iterator[Finding]:
    """Find dropout that stays active in eval mode."""
    layers = [] if probe.eval_recording is None else probe.eval_recording.random_layers
    if layers:
        yield error(
            f"Dropout is active in eval mode, in {layers[0]!r}: evaluate() and predict() are random.",
            "Pass the mode: F.dropout(x, p, training=self.training); or use nn.Dropout.",
        )


@check
def evaluation_gap(probe: Probe) -> Iterator[Finding]:
    """Find a trained model whose outputs in eval mode are far from those in train mode."""
    if probe.is_untrained or probe.eval_outputs is None or len(probe.heads) != 1 or probe.loss is None:
        return
    head, outputs = probe.heads[0], [leaf for leaf in leaves(probe.eval_outputs[0]) if isinstance(leaf, Tensor)]
    if head.loss is None or head.y is None or len(outputs) != 1 or outputs[0].shape != head.y_pred.shape:
        return
    in_eval = _loss_of(Head(head.name, head.loss, outputs[0], head.y, None))
    in_train = _loss_of(head)
    if in_eval is not None and in_train is not None and in_eval > EXCESS * in_train + 0.5 * (1 + in_train):
        yield warning(
            f"The loss of the same batch is {in_train:.4g} in train mode and {in_eval:.4g} in eval mode.",
            "Look at batch normalization: use larger batches, a momentum of 0.1, or nn.GroupNorm.",
            in_eval / in_train if in_train else None,
        )


@check
def other_warnings(probe: Probe) -> Iterator[Finding]:
    """Report the warnings that fit would give."""
    known = {text for head in probe.heads if head.loss for text in [last_layer_warning(head.loss.family, head.y_pred)]}
    for text in dict.fromkeys(probe.messages):
        if text not in known:
            yield warning(*split_message(text))


def _differ(outputs: Any) -> bool:
    """Return whether one of ``outputs`` differs between samples."""
    parts = [leaf.float() for leaf in leaves(outputs) if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) > 1]
    return any(float(part.std(0).max()) > EQUAL_OUTPUTS * float(part.abs().max()) for part in parts)


def _has_equal_inputs(probe: Probe) -> bool:
    parts = [leaf for leaf in leaves(probe.batch.x if probe.batch else None) if isinstance(leaf, Tensor) and leaf.ndim]
    return bool(parts) and all(bool((part == part[:1]).all()) for part in parts)


def expected_loss(head: Head) -> tuple[float, str] | None:
    """Return the loss of a prediction that is the same for all samples, and its description; None if it is unknown."""
    loss, y = head.loss, head.y
    if loss is None or y is None or loss.reduction not in (None, "mean") or len(y) < 1:
        return None
    if loss.family in (nn.CrossEntropyLoss, nn.NLLLoss) and head.y_pred.ndim > 1:
        classes = head.y_pred.shape[1]
        return (
            (math.log(classes), f"equal probabilities of {classes} classes, log({classes}),") if classes > 1 else None
        )
    if loss.family in (nn.BCEWithLogitsLoss, nn.BCELoss):
        return math.log(2), "a probability of 0.5, log(2),"
    if loss.family in (nn.MSELoss, nn.L1Loss) and y.numel() >= MIN_TARGETS and y.is_floating_point():
        deviations = y.float() - y.float().mean()
        spread = deviations.square() if loss.family is nn.MSELoss else deviations.abs()
        value = float(spread.mean())
        return (value, "the mean of the targets") if value > 0 else None
    return None


def lowest_loss(head: Head) -> float:
    """Return the loss of outputs that equal the targets: the entropy of targets that are probabilities, else 0."""
    loss, y = head.loss, head.y
    if (
        loss is None
        or y is None
        or loss.reduction != "mean"
        or not y.is_floating_point()
        or y.shape != head.y_pred.shape
    ):
        return 0.0
    options = [getattr(loss.function, name, None) for name in ("weight", "pos_weight")]
    if any(option is not None for option in options) or bool((y < 0).any()) or bool((y > 1).any()):
        return 0.0
    entropy = -torch.xlogy(y.double(), y.double())
    if loss.family is nn.CrossEntropyLoss and y.ndim > 1:
        return float(entropy.sum(1).mean())
    if loss.family in (nn.BCEWithLogitsLoss, nn.BCELoss):
        return float((entropy - torch.xlogy(1 - y.double(), 1 - y.double())).mean())
    return 0.0


def _loss_of(head: Head) -> float | None:
    assert head.loss is not None
    with torch.no_grad():
        value: Any = head.loss.unreduced(head.y_pred.detach(), head.y)
    return float(value.float().mean()) if isinstance(value, Tensor) and value.numel() else None


def _range_of(operation: str) -> tuple[float, float]:
    ranges = {"Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Relu": (0.0, math.inf), "Softmax": (0.0, 1.0)}
    return next((limits for name, limits in ranges.items() if operation.startswith(name)), (-math.inf, math.inf))


def _are_close(first: Any, second: Any, rows: slice, tolerance: float) -> bool:
    """Return whether the rows of the outputs ``first`` equal ``second``; outputs without rows count as equal."""
    for whole, part in zip(leaves(first), leaves(second), strict=False):
        if (
            not isinstance(whole, Tensor)
            or not isinstance(part, Tensor)
            or not whole.is_floating_point()
            or not whole.ndim
        ):
            continue
        expected = whole[rows]
        if expected.shape != part.shape or not part.numel():
            continue
        if float((expected - part).abs().max()) > tolerance * max(float(expected.abs().max()), 1e-12):
            return False
    return True
