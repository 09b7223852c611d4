"""Learning rate range test: training with a rate that grows exponentially."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from easytorch.callbacks.advice import WarnOnNonFiniteLoss
from easytorch.callbacks.base import Callback
from easytorch.callbacks.lr_schedulers import Schedule
from easytorch.optimizer_group import members_of

if TYPE_CHECKING:
    import torch

    from easytorch.model import Model

# The running mean of the loss that decides when to stop: the weight of the earlier losses.
MEMORY = 0.8
# Training has diverged if this mean has risen by so many times the largest of the lowest loss and the fall of the loss.
RISE = 2.0
# Losses whose mean is the loss before the test.
FIRST = 3


class RangeTest(Callback):
    """Multiplies the rates of all parameter groups in each update, and records the losses.

    Args:
        rates: The rate of the first parameter group in each update.
        ratios: The rate of each group, divided by that of the first.

    Attributes:
        losses: The loss after the update with each rate, up to the one at which training diverged.
        diverged: Whether training diverged before the last rate.
    """

    priority = -1000  # no other callback reads a loss of several updates

    def __init__(self, rates: Sequence[float], ratios: Sequence[float]) -> None:
        self.rates, self.ratios = rates, ratios
        self.losses: list[float] = []
        self.diverged = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Prevent the warning of a loss that is not finite, which ends the test as it should."""
        for callback in self.model.callbacks.callbacks:
            if isinstance(callback, WarnOnNonFiniteLoss):
                callback.has_warned = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the rates of this update, and measure its loss alone."""
        groups = self.model.require_optimizer("find_lr").param_groups
        set_rates(groups, [self.rates[batch] * ratio for ratio in self.ratios])
        self.model.metrics.reset()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record the loss, and stop when training diverges."""
        merged = self.model.strategy.merge_metrics(self.model.metrics).logs
        if "loss" not in merged:
            raise ValueError(
                "find_lr() needs the loss of each update. Let the custom update() record it: "
                "self.metrics.record({'loss': loss}, size)."
            )
        self.losses.append(float(merged["loss"]))
        self.diverged = has_diverged(self.losses)
        self.model.stop_training |= self.diverged or len(self.losses) == len(self.rates)


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether a loss is not finite, or the running mean has risen far above its minimum."""
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) <= FIRST:
        return False
    first = sum(losses[:FIRST]) / FIRST
    means = [first]
    for loss in losses[FIRST:]:
        means.append(MEMORY * means[-1] + (1 - MEMORY) * loss)
    lowest = min(means)
    return means[-1] > lowest + RISE * max(abs(lowest), first - lowest)


def geometric_rates(lowest: float, highest: float, count: int) -> list[float]:
    """Return ``count`` rates from ``lowest`` to ``highest``, each the same multiple of the one before."""
    factor = highest / lowest
    return [lowest * factor ** (i / max(count - 1, 1)) for i in range(count)]


def find_base_rates(model: Model) -> list[float]:
    """Return the rate of each parameter group without the effect of a schedule."""
    optimizer = model.require_optimizer("find_lr")
    rates = {id(group): float(group["lr"]) for group in optimizer.param_groups}
    for schedule in model.schedules:
        part = schedule.optimizer_in(optimizer)
        groups = part.param_groups
        if isinstance(schedule, Schedule):
            peaks = schedule.find_peaks(part)
        else:
            peaks = [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups]
        rates |= {id(group): rate for group, rate in zip(groups, peaks, strict=True)}
    return [rates[id(group)] for group in optimizer.param_groups]


def set_rates(groups: Sequence[dict[str, Any]], rates: Sequence[float]) -> None:
    """Set the rate of each parameter group."""
    for group, rate in zip(groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def group_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return a name for each parameter group, as in the logs: ``lr``, ``lr_1``, or ``lr_head``."""
    names = []
    for member, part in members_of(optimizer).items():
        prefix = f"lr_{member}" if member else "lr"
        names += [f"{prefix}_{i}" if i else prefix for i in range(len(part.param_groups))]
    return names
