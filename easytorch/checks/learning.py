"""Checks of short trials: updates with the optimizer of the user, and a fit of one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from easytorch._utils.pytree import leaves
from easytorch.checks.base import Finding, check, error, info, warning
from easytorch.checks.gradients import non_finite_gradients
from easytorch.checks.labels import unscaled_targets
from easytorch.checks.outputs import expected_loss, lowest_loss
from easytorch.checks.probe import FIT_RATES, FIT_SAMPLES, FIT_STEPS, Probe, Row, final_loss
from easytorch.optimizers import SAM, needs_closure

# A trial of Adam must reduce the loss of one batch to less than this share.
FIT_SHARE = 0.9
MIN_STEPS = 20
# A trial that ended early, as on a busy machine, has not failed if it has reduced the loss to less than this share.
FALLING_SHARE = 0.98
# A trial with so few values of a sample, in which samples may hardly differ, must reduce the loss to less than this share.
FEW_VALUES, SLIGHT_SHARE = 4, 0.99
# A module with a smaller share of trained parameters need not fit a batch.
TRAINED_SHARE = 0.1
# The first loss, times this, is what a few updates on the same batch must not exceed.
DIVERGED = 3.0
# The first update in relation to the weights: about 0.001 is usual. Above 1 nothing of the initialization remains.
LARGE_UPDATE, SMALL_UPDATE = 1.0, 1e-5
# A weight of fewer values may be near 0 by chance.
MIN_VALUES = 16


@check
def cannot_fit_batch(probe: Probe) -> Iterator[Finding]:
    """Find a program that cannot fit even one batch."""
    curve = probe.fit_curve
    if len(curve) < 2:
        return
    first, last = curve[0], final_loss(curve)
    text = f"{len(curve)} steps of Adam on one batch change its loss from {first:.4g} to {last:.4g}"
    is_short = len(curve) < MIN_STEPS or (len(curve) < FIT_STEPS and last < FALLING_SHARE * first)
    if is_short and last > FIT_SHARE * first:
        yield info(f"{text}; that is too few steps to see whether the module can fit it.", last)
    elif last > FIT_SHARE * first and _has_few_parameters(probe):
        yield info(f"{text}; so few parameters cannot fit any batch.", last)
    elif SLIGHT_SHARE * first > last > FIT_SHARE * first and _has_few_inputs(probe):
        yield info(f"{text}; inputs of so few values may not distinguish the samples.", last)
    elif last > FIT_SHARE * first and _is_mostly_frozen(probe):
        yield info(f"{text}; most parameters are frozen, so the module need not be able to fit it.", last)
    elif (
        first > 0
        and _is_above(last, first, probe)
        and not _is_fitted(probe, first)
        and not any(unscaled_targets(probe))
    ):
        rates = ", ".join(f"{rate:g}" for rate in sorted(FIT_RATES))
        yield error(
            f"The module cannot fit one batch: {text}, with the best of the learning rates {rates}.",
            "Check that inputs and targets belong together, that forward() returns what the loss expects, and the findings about "
            "gradients.",
            last / first,
        )
    else:
        yield info(f"{text}.", last)


@check
def high_learning_rate(probe: Probe) -> Iterator[Finding]:
    """Find a learning rate with which updates on one batch raise its loss."""
    curve = probe.curve
    if len(curve) < 2 or not math.isfinite(curve[0]) or any(non_finite_gradients(probe)):
        return
    first, worst = curve[0], max(curve[1:], key=lambda value: value if math.isfinite(value) else math.inf)
    steps = len(curve) - 1
    excess = DIVERGED * max(first, 0.1) if first >= 0 else math.inf
    ratio = _largest_update(probe)
    if not math.isfinite(worst) or final_loss(curve) > excess:
        yield error(
            f"After {steps} update{'s' * (steps > 1)} with lr={_rates(probe)}, the loss of the same batch went from "
            f"{first:.4g} to {curve[-1]:.4g}.",
            "Use a lower learning rate, a tenth of it or less: model.find_lr(x, y).",
            curve[-1],
        )
    elif ratio is not None and ratio[1] > LARGE_UPDATE and probe.is_untrained and not _finds_steps(probe):
        yield warning(
            f"The first update with lr={_rates(probe)} changes {ratio[0]!r} by {ratio[1]:.2g} times its size; 0.001 is usual.",
            "Use a lower learning rate: model.find_lr(x, y).",
            ratio[1],
        )


@check
def low_learning_rate(probe: Probe) -> Iterator[Finding]:
    """Find a learning rate with which the weights hardly change."""
    ratio, curve = _largest_update(probe), probe.fit_curve
    can_learn = len(curve) > 1 and final_loss(curve) < FIT_SHARE * curve[0]
    # Momentum multiplies the updates that follow.
    if (
        ratio is not None
        and ratio[1] < SMALL_UPDATE * (1 - _momentum(probe))
        and can_learn
        and not probe.model.schedules
    ):
        yield warning(
            f"An update with lr={_rates(probe)} changes no weight by more than {ratio[1]:.1g} of its size; 0.001 is usual.",
            "Use a higher learning rate: model.find_lr(x, y).",
            ratio[1],
        )


def _largest_update(probe: Probe) -> tuple[str, float] | None:
    """Return the weights that the first update changes most in relation to their size, and that relation."""
    parameters = dict(probe.module.named_parameters())
    ratios = {
        name: row.ratio
        for name, row in probe.rows.items()
        if name in parameters
        and parameters[name].ndim > 1
        and row.gradient
        and row.size >= MIN_VALUES
        and not _is_small(row)
    }
    return max(ratios.items(), key=lambda item: item[1]) if ratios else None


def _is_small(row: Row) -> bool:
    """Return whether weights start near 0, as in a residual branch, where any update is large."""
    return row.weight / math.sqrt(row.size) < 1e-3


def _is_fitted(probe: Probe, loss: float) -> bool:
    """Return whether the batch was fitted before the trial."""
    expected = [expected_loss(head) for head in probe.heads]
    return len(expected) == 1 and expected[0] is not None and loss < 0.5 * expected[0][0]


def _is_above(last: float, first: float, probe: Probe) -> bool:
    """Return whether the loss ``last`` is too high after a trial, in relation to the lowest loss that is possible."""
    lowest = lowest_loss(probe.heads[0]) if len(probe.heads) == 1 else 0.0
    return last - lowest > FIT_SHARE * (first - lowest)


def _has_few_parameters(probe: Probe) -> bool:
    """Return whether the module has fewer parameters than a trial has targets, such as a linear model of one input."""
    return sum(p.numel() for p in probe.module.parameters() if p.requires_grad) < min(
        FIT_SAMPLES, probe.batch_size or 0
    )


def _has_few_inputs(probe: Probe) -> bool:
    """Return whether a sample has so few values that a small module cannot memorize the targets of a batch."""
    tensors = list(leaves(probe.batch.x)) if probe.batch is not None else []
    if not tensors or not all(isinstance(tensor, torch.Tensor) and tensor.ndim for tensor in tensors):
        return False
    values: int = sum(tensor[:1].numel() for tensor in tensors)
    return values <= FEW_VALUES


def _is_mostly_frozen(probe: Probe) -> bool:
    """Return whether few parameters are trained, such as those of adapters."""
    parameters = list(probe.module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad) < TRAINED_SHARE * sum(p.numel() for p in parameters)


def _momentum(probe: Probe) -> float:
    optimizer = probe.model.optimizer
    assert optimizer is not None
    return max(float(group.get("momentum", 0.0)) for group in optimizer.param_groups)


def _finds_steps(probe: Probe) -> bool:
    """Return whether the optimizer determines the length of its steps, as LBFGS does."""
    optimizer = probe.model.optimizer
    return needs_closure(optimizer) and not isinstance(optimizer, SAM)


def _rates(probe: Probe) -> str:
    optimizer = probe.model.optimizer
    assert optimizer is not None
    rates = dict.fromkeys(float(torch.as_tensor(group["lr"])) for group in optimizer.param_groups if "lr" in group)
    return ", ".join(f"{rate:g}" for rate in rates)
