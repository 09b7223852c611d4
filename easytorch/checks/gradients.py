"""Checks of the gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator

from easytorch._utils.registry import quote_list
from easytorch.checks.base import Finding, check, error, info, warning
from easytorch.checks.probe import Probe

# The elasticity of the loss is norm of the gradient * norm of the weights / loss. In a network of ReLU layers it is the same for
# each layer (S. Du, W. Hu and J. Lee, Algorithmic regularization in learning deep homogeneous models, 2018, theorem 2.1).
VANISHING, EXPLODING = 1e-5, 1e4
SHOWN_NAMES = 5


@check
def non_finite_gradients(probe: Probe) -> Iterator[Finding]:
    """Find gradients that are NaN or infinite."""
    names = [name for name, row in probe.rows.items() if row.gradient is not None and not math.isfinite(row.gradient)]
    if names:
        yield error(
            f"The first gradients of {quote_list(names, SHOWN_NAMES)} are NaN or infinite.",
            "Look for log(0), division by 0 or sqrt(0) in forward() and the loss. TerminateOnNaN() reports where they start.",
            names,
        )


@check
def zero_gradients(probe: Probe) -> Iterator[Finding]:
    """Find weights whose gradient is exactly 0, so that they do not learn."""
    parameters = dict(probe.module.named_parameters())
    names = [
        name for name, row in probe.rows.items()
        if row.gradient == 0 and row.largest == 0 and row.weight and name in parameters and parameters[name].ndim > 1
    ]  # fmt: skip
    if names:
        yield warning(
            f"The gradient of {quote_list(names, SHOWN_NAMES)} is 0 in the first updates.",
            "Look after the layer for functions without a gradient (argmax, round, sign), dead ReLUs and weights of 0.",
            names,
        )


@check
def vanishing_gradients(probe: Probe) -> Iterator[Finding]:
    """Find layers whose gradients are tiny in comparison with those of others."""
    values = _elasticities(probe)
    if not values or not probe.is_untrained:
        return
    smallest, largest = min(values, key=lambda name: values[name]), max(values.values())
    if 0 < values[smallest] < VANISHING * largest:
        yield warning(
            f"The gradient of {smallest!r} is {largest / values[smallest]:,.0g} times smaller than that of the layer with the "
            "largest one, in relation to the weights.",
            "Use nn.ReLU instead of sigmoid or tanh, a normalization layer, residual connections, or nn.init.kaiming_normal_.",
            values[smallest] / largest,
        )


@check
def exploding_gradients(probe: Probe) -> Iterator[Finding]:
    """Find gradients that are far too large for the weights."""
    values = _elasticities(probe)
    total = math.sqrt(sum(value**2 for value in values.values()))
    is_clipped = probe.model.clip_grad_norm is not None or probe.model.clip_grad_value is not None
    if total > EXPLODING and math.isfinite(total) and probe.is_untrained and not is_clipped:
        yield warning(
            f"A change of the weights by 1% would change the loss by about {total / 100:,.0f} times its value.",
            "Use a normalization layer, the default initialization, scaled inputs, or clip_grad_norm=1.0 in compile().",
            total,
        )


@check
def gradient_norm(probe: Probe) -> Iterator[Finding]:
    """Report the norm of all gradients of the first update."""
    norms = [row.gradient for row in probe.rows.values() if row.gradient is not None]
    if norms:
        norm = math.sqrt(sum(value**2 for value in norms))
        yield info(f"The norm of the gradients of the first update is {norm:.3g}, before clipping.", norm)


def _elasticities(probe: Probe) -> dict[str, float]:
    """Return how much the loss changes, in relation to its value, with a relative change of each weight matrix."""
    if probe.loss is None or not probe.loss or not math.isfinite(probe.loss):
        return {}
    parameters = dict(probe.module.named_parameters())
    return {
        name: row.gradient * row.weight / abs(probe.loss)
        for name, row in probe.rows.items()
        if row.gradient is not None and row.weight and name in parameters and parameters[name].ndim > 1
    }
