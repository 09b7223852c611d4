"""The learning rate that a range test suggests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easytorch._utils.integers import positive_int
from easytorch.callbacks.lr_schedulers import Schedule
from easytorch.data.loader import ACCEPTED
from easytorch.optimizer_group import OptimizerGroup
from easytorch.optimizers import SAM, needs_closure
from easytorch.training.trial import trial
from easytorch.tuning.base import Measurement, Row
from easytorch.tuning.range_test import (
    RangeTest,
    find_base_rates,
    geometric_rates,
    group_names,
    set_rates,
)
from easytorch.tuning.timing import suspend_schedules

if TYPE_CHECKING:
    from easytorch.model import Model

Array = np.ndarray[Any, Any]

# Standard deviation of the Gaussian that smooths the losses, in decades of the rate.
SMOOTHING = 0.2
# The share of the fall of the loss at the suggested rate. docs/guides/find-lr.md compares it with other rules.
SHARE = 0.8
# Updates without which there is no curve.
MIN_UPDATES = 20


class LearningRates(Measurement):
    """The losses of a learning rate range test, and the rate that follows from them; ``find_lr`` returns it.

    Attributes:
        suggestion: The learning rate of the first parameter group, ``model.optimizer.lr``.
        reason: Why, in a sentence.
        rates: The learning rate of each update, of the first parameter group.
        losses: The loss after each of these updates.
        smoothed: The losses, smoothed over neighboring rates.
        diverged: Whether the test ended because training diverged.
        group_rates: The suggested rate of each parameter group, by its name in the logs.

    Examples:
        >>> found = model.find_lr(x, y)
        >>> model.optimizer.lr = found.suggestion
    """

    title = "Learning rate range test"

    def __init__(
        self,
        rates: Sequence[float],
        losses: Sequence[float],
        first_loss: float,
        *,
        diverged: bool = False,
        ratios: Sequence[float] = (1.0,),
        names: Sequence[str] = ("lr",),
        can_assign: bool = True,
    ) -> None:
        self.rates, self.losses, self.diverged = list(rates), list(losses), diverged
        self._ratios = list(ratios)
        self.smoothed = smooth(self.losses, self.rates).tolist()
        self._lowest = int(np.argmin(self.smoothed))
        self._first_loss = first_loss
        self._index = find_index(self.smoothed, first_loss)
        suggestion = float(f"{self.rates[self._index]:.2g}")
        self.group_rates = {name: suggestion * ratio for name, ratio in zip(names, ratios, strict=True)}
        rows = [
            {"lr": rate, "loss": loss, "smoothed": smoothed}
            for rate, loss, smoothed in zip(self.rates, self.losses, self.smoothed, strict=True)
        ]
        super().__init__(rows, suggestion, self._explain(suggestion), [self._usage(suggestion, can_assign)])

    def apply(self, model: Model) -> None:
        """Set the rates of all parameter groups of the model, also if they differ.

        Args:
            model: The model.

        Raises:
            ValueError: If the model has other parameter groups, or a scheduler object computes its rates.
        """
        groups = model.require_optimizer("apply").param_groups
        if len(groups) != len(self._ratios):
            raise ValueError(
                f"The range test had {len(self._ratios)} parameter groups, and the optimizer has {len(groups)}. Call "
                "find_lr() again."
            )
        if not _can_assign(model):
            raise ValueError(
                "The scheduler computes the learning rate from the one with which it was created. Compile again: "
                f"compile(..., lr={self.suggestion}, scheduler=...)."
            )
        set_rates(groups, [self.suggestion * ratio for ratio in self._ratios])

    def shown_rows(self) -> list[Row]:
        """Return the rows of the points that matter."""
        points = {"start": 0, "suggestion": self._index, "lowest loss": self._lowest}
        points["diverged" if self.diverged else "end"] = len(self.rates) - 1
        return [
            {"point": name, "lr": self.rates[i], "loss": self.losses[i], "smoothed": self.smoothed[i]}
            for name, i in points.items()
        ]

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return the panel of the curve."""
        return [(self.title, self._draw)]

    def to_dict(self) -> dict[str, Any]:
        """Return the curve, the suggestion and the reason as plain values."""
        return super().to_dict() | {"group_rates": dict(self.group_rates), "diverged": self.diverged}

    def _draw(self, axes: Any) -> None:
        axes.plot(self.rates, self.losses, ".", alpha=0.4, label="loss")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, color="C3", linestyle="--", label=f"suggestion {self.suggestion:g}")
        axes.set_xscale("log")
        low, high = min(self.smoothed), max(self._first_loss, *self.smoothed[: self._lowest + 1])
        margin = 0.2 * ((high - low) or 1.0)
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.legend()

    def _explain(self, suggestion: float) -> str:
        low, rate = self.smoothed[self._lowest], self.rates[self._lowest]
        end = f"diverged at {self.rates[-1]:.2g}" if self.diverged else f"did not diverge up to {self.rates[-1]:.2g}"
        return (
            f"Suggestion: {suggestion:g}. There the loss has fallen by {SHARE:.0%} of its fall from {self._first_loss:.4g} to "
            f"{low:.4g}, which it reaches at {rate:.2g}. Training {end}."
        )

    def _usage(self, suggestion: float, can_assign: bool) -> str:
        if not can_assign:
            return f"Use it: compile(..., lr={suggestion:g}, scheduler=...)"
        if len(set(self._ratios)) == 1:
            return f"Use it: model.optimizer.lr = {suggestion:g}, or compile(..., lr={suggestion:g})"
        listed = ", ".join(f"{name} = {rate:.2g}" for name, rate in self.group_rates.items())
        return f"Use it: call .apply(model) of this result, which sets {listed}"


def find_lr(
    model: Model,
    x: Any = None,
    y: Any = None,
    *,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    updates: int = 100,
    **options: Any,
) -> LearningRates:
    """Return the learning rate that a range test suggests; see ``Model.find_lr``."""
    count = positive_int("updates", updates)
    _check_range(min_lr, max_lr, count)
    _check_optimizer(model)
    rates = geometric_rates(min_lr, max_lr, count)
    base = find_base_rates(model)
    ratios = [rate / base[0] if base[0] else 1.0 for rate in base]
    test = RangeTest([*rates, rates[-1]], ratios)  # one more, whose loss is that after the last rate
    names, can_assign = group_names(model.require_optimizer("find_lr")), _can_assign(model)
    with trial(model, *_given(x, y), purpose="find_lr()"):
        suspend_schedules(model)
        model.fit(x, y, epochs=1, steps_per_epoch=count + 1, callbacks=[test], verbose=0, **options)
    losses = [loss for loss in test.losses if math.isfinite(loss)]
    if len(losses) < MIN_UPDATES:
        raise ValueError(_short_message(test, min_lr))
    return LearningRates(
        rates[: len(losses) - 1], losses[1:], float(np.mean(losses[:5])), diverged=test.diverged, ratios=ratios,
        names=names, can_assign=can_assign,
    )  # fmt: skip


def smooth(losses: Sequence[float], rates: Sequence[float]) -> Array:
    """Return the losses, each replaced by a weighted mean over neighboring rates.

    The weights are those of a Gaussian over the logarithm of the rate.
    """
    position = np.log10(np.asarray(rates))
    weights = np.exp(-0.5 * ((position[:, None] - position[None, :]) / SMOOTHING) ** 2)
    smoothed: Array = weights @ np.asarray(losses) / weights.sum(1)
    return smoothed


def find_index(smoothed: Sequence[float], first_loss: float) -> int:
    """Return the index of the first rate at which the loss has fallen by ``SHARE`` of its fall.

    Raises:
        ValueError: If the loss does not fall.
    """
    lowest = int(np.argmin(smoothed))
    fall = first_loss - smoothed[lowest]
    if fall <= 0 or lowest == 0:
        raise ValueError(
            "find_lr() found no rate at which the loss falls. Check that the parameters are trained and that the labels belong "
            "to the inputs, or pass a smaller min_lr."
        )
    threshold = first_loss - SHARE * fall
    return next(i for i, loss in enumerate(smoothed) if loss <= threshold)


def _check_range(min_lr: float, max_lr: float, updates: int) -> None:
    is_number = all(isinstance(value, (int, float)) and math.isfinite(value) for value in (min_lr, max_lr))
    if not is_number or not 0 < min_lr < max_lr:
        raise ValueError(
            f"min_lr and max_lr must be positive numbers, and max_lr the larger one, received {min_lr!r} and {max_lr!r}. Pass "
            "min_lr=1e-6, max_lr=10."
        )
    if updates < MIN_UPDATES:
        raise ValueError(f"updates must be at least {MIN_UPDATES}, received {updates}. Pass updates=100.")


def _check_optimizer(model: Model) -> None:
    """Raise a ``ValueError`` if no single loss and rate describe how the optimizer trains."""
    optimizer = model.require_optimizer("find_lr")
    if isinstance(optimizer, OptimizerGroup) and optimizer.steps:
        names = ", ".join(f"{name}_step" for name in optimizer.steps)
        raise ValueError(
            f"find_lr() needs one loss, but {names} have a loss each, and the lowest one is not the best where networks "
            "compete. Compare short fits with several rates."
        )
    if needs_closure(optimizer) and not isinstance(optimizer, SAM):
        raise ValueError(
            f"find_lr() cannot test {type(optimizer).__name__}, which evaluates the loss several times in each update and "
            "determines the length of its steps. Keep its lr, and for LBFGS pass line_search_fn='strong_wolfe'."
        )


def _can_assign(model: Model) -> bool:
    """Return whether the next fit uses a rate that is assigned to the optimizer."""
    return all(isinstance(schedule, Schedule) or not schedule.sets_rate for schedule in model.schedules)


def _given(*data: Any) -> list[Any]:
    return [value for value in data if value is not None]


def _short_message(test: RangeTest, min_lr: float) -> str:
    if test.diverged:
        return (
            f"find_lr() found no rate at which training converges: it diverged after {len(test.losses)} updates, with rates "
            f"from {min_lr:g}. Pass a smaller min_lr, such as min_lr={min_lr / 1000:g}."
        )
    return (
        f"find_lr() needs at least {MIN_UPDATES} updates, and the data ended after {len(test.losses)}. Pass {ACCEPTED}."
    )
