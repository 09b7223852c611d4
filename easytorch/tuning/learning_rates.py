"""The learning rate that a range test suggests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easytorch._utils.integers import non_negative_int, positive_int
from easytorch.callbacks.lr_schedulers import Schedule
from easytorch.data.loader import ACCEPTED
from easytorch.optimizer_group import OptimizerGroup
from easytorch.optimizers import SAM, needs_closure
from easytorch.training.trial import trial
from easytorch.tuning.base import Measurement, Row
from easytorch.tuning.loaders import check_data
from easytorch.tuning.progress import StepDisplay
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
# Without short trainings: the suggestion, divided by the rate with the lowest loss.
SHARE = 0.25
# The factor between the rates of two short trainings. The first has the rate with the lowest loss.
FACTOR = 2.5
# With a constant rate, the loss stays above its minimum by a value that is proportional to the rate (L. Bottou, F. Curtis and
# J. Nocedal, Optimization methods for large-scale machine learning, 2018, section 4.2). A short training does not get there, so
# that its best rate is too large for a long one. The suggestion is half of a step below it, unless a schedule lowers the rate.
MARGIN = math.sqrt(FACTOR)
# Two short trainings are equal if their losses differ by less than this share of the loss, or of its fall if that is smaller.
FLAT = 0.05
# A short training has learned nothing if its loss falls by less than this share of the fall in the range test.
NO_FALL = 0.1
# The last share of the losses of a short training, whose mean is compared.
LAST = 0.3
# Updates without which there is no curve.
MIN_UPDATES = 20


class LearningRates(Measurement):
    """The losses of a learning rate range test and of short trainings, and the rate that follows; ``find_lr`` returns it.

    Attributes:
        suggestion: The learning rate of the first parameter group, ``model.optimizer.lr``.
        reason: Why, in a sentence.
        rates: The learning rate of each update of the range test, of the first parameter group.
        losses: The loss after each of these updates.
        smoothed: The losses, smoothed over neighboring rates.
        diverged: Whether the range test ended because training diverged.
        scores: The loss at the end of each short training, by its rate; infinite if it diverged.
        group_rates: The suggested rate of each parameter group, by its name in the logs.

    Examples:
        >>> found = model.find_lr(x, y)
        >>> model.optimizer.lr = found.suggestion
    """

    title = "Learning rates"

    def __init__(
        self,
        curve: Curve,
        scores: Mapping[float, float],
        *,
        updates: int = 100,
        ratios: Sequence[float] = (1.0,),
        names: Sequence[str] = ("lr",),
        can_assign: bool = True,
        has_schedule: bool = False,
    ) -> None:
        self.rates, self.losses, self.smoothed = curve.rates, curve.losses, curve.smoothed
        self.diverged, self.scores = curve.diverged, dict(sorted(scores.items()))
        self._curve, self._ratios, self._updates = curve, list(ratios), updates
        self._best = min(scores, key=lambda key: scores[key]) if scores else SHARE * curve.best_rate
        self._is_lowered = bool(scores) and not has_schedule
        suggestion = round_rate(self._best / MARGIN if self._is_lowered else self._best)
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

        Examples:
            >>> model.find_lr(x, y, verbose=0).apply(model)
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
        """Return the rows of the printed table: the short trainings, or the points of the curve that matter."""
        if not self.scores:
            return self._curve.points()
        return [
            {
                "lr": rate,
                f"loss after {self._updates} updates": loss if math.isfinite(loss) else "diverged",
                "": "lowest loss" if rate == self._best else "",
            }
            for rate, loss in self.scores.items()
        ]

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return the panel of the curve."""
        return [(self.title, self._draw)]

    def to_dict(self) -> dict[str, Any]:
        """Return the curve, the short trainings, the suggestion and the reason as plain values.

        Examples:
            >>> scores = model.find_lr(x, y, verbose=0).to_dict()
        """
        scores = [{"lr": rate, "loss": loss} for rate, loss in self.scores.items()]
        return super().to_dict() | {"scores": scores, "group_rates": dict(self.group_rates), "diverged": self.diverged}

    def _draw(self, axes: Any) -> None:
        axes.plot(self.rates, self.losses, ".", alpha=0.4, label="range test")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        finite = {rate: loss for rate, loss in self.scores.items() if math.isfinite(loss)}
        if finite:
            axes.plot(finite.keys(), finite.values(), "s", label=f"after {self._updates} updates")
        axes.axvline(self.suggestion, color="C3", linestyle="--", label=f"suggestion {self.suggestion:g}")
        axes.set_xscale("log")
        low, high = min(*self.smoothed, *finite.values()), max(self._curve.first_loss, *self.smoothed[:1])
        margin = 0.2 * ((high - low) or 1.0)
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.legend()

    def _explain(self, suggestion: float) -> str:
        curve = self._curve
        end = f"diverged at {self.rates[-1]:.2g}" if self.diverged else f"did not diverge up to {self.rates[-1]:.2g}"
        test = f"In the range test the loss was lowest at {curve.best_rate:.2g}, and training {end}."
        if not self.scores:
            return f"Suggestion: {suggestion:g}, a quarter of the rate with the lowest loss. {test}"
        if not self._is_lowered:
            return f"Suggestion: {suggestion:g}. It has the lowest loss after {self._updates} updates. {test}"
        return (
            f"Suggestion: {suggestion:g}, somewhat below {self._best:.2g}, which has the lowest loss after {self._updates} "
            f"updates: a longer training without a schedule needs a smaller rate. {test}"
        )

    def _usage(self, suggestion: float, can_assign: bool) -> str:
        if not can_assign:
            return f"Use it: compile(..., lr={suggestion:g}, scheduler=...)"
        if len(set(self._ratios)) == 1:
            return f"Use it: model.optimizer.lr = {suggestion:g}, or compile(..., lr={suggestion:g})"
        listed = ", ".join(f"{name} = {rate:.2g}" for name, rate in self.group_rates.items())
        return f"Use it: call .apply(model) of this result, which sets {listed}"


class Curve:
    """The curve of a range test.

    Args:
        rates: The rate of each update.
        losses: The loss after each of these updates.
        first_loss: The loss before the test.
        diverged: Whether the test ended because training diverged.

    Attributes:
        smoothed: The losses, smoothed over neighboring rates.

    Raises:
        ValueError: If the loss does not fall.
    """

    def __init__(
        self, rates: Sequence[float], losses: Sequence[float], first_loss: float, diverged: bool = False
    ) -> None:
        self.rates, self.losses, self.first_loss, self.diverged = list(rates), list(losses), first_loss, diverged
        self.smoothed: list[float] = smooth(losses, rates).tolist()
        self._lowest = int(np.argmin(self.smoothed))
        if self._lowest == 0 or self.smoothed[self._lowest] >= first_loss:
            raise ValueError(
                "find_lr() found no rate at which the loss falls. Check that the parameters are trained and that the labels "
                "belong to the inputs, or pass a smaller min_lr."
            )

    @property
    def lowest_loss(self) -> float:
        """The lowest smoothed loss."""
        return self.smoothed[self._lowest]

    @property
    def best_rate(self) -> float:
        """The rate with the lowest smoothed loss."""
        return self.rates[self._lowest]

    def points(self) -> list[Row]:
        """Return the rows of the points that matter."""
        points = {"start": 0, "lowest loss": self._lowest, "diverged" if self.diverged else "end": len(self.rates) - 1}
        return [
            {"point": name, "lr": self.rates[i], "loss": self.losses[i], "smoothed": self.smoothed[i]}
            for name, i in points.items()
        ]


def find_lr(
    model: Model,
    x: Any = None,
    y: Any = None,
    *,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    updates: int = 100,
    runs: int = 6,
    verbose: int | str = "auto",
    **options: Any,
) -> LearningRates:
    """Return the learning rate that a range test and short trainings suggest; see ``Model.find_lr``."""
    count = positive_int("updates", updates)
    non_negative_int("runs", runs)
    _check_range(min_lr, max_lr, count)
    _check_optimizer(model)
    check_data("find_lr", x, y)
    base = find_base_rates(model)
    ratios = [rate / base[0] if base[0] else 1.0 for rate in base]

    def train(rates: Sequence[float]) -> RangeTest:
        # One more update, whose loss is that after the last rate.
        test = RangeTest([*rates, rates[-1]], ratios)
        with trial(model, *(value for value in (x, y) if value is not None), purpose="find_lr()"):
            suspend_schedules(model)
            model.fit(x, y, epochs=1, steps_per_epoch=len(test.rates), callbacks=[test], verbose=0, **options)
        return test

    with StepDisplay("find_lr", verbose, model.strategy.group.is_main) as display:
        display.show(f"range test of up to {count} updates, lr from {min_lr:g} to {max_lr:g}")
        curve = _read_curve(train(geometric_rates(min_lr, max_lr, count)), min_lr)

        def score(rate: float) -> float:
            display.show(f"short training of {count} updates with lr={rate:.2g}")
            return _score(train([rate] * count))

        scores = compare_rates(score, curve.best_rate, runs, start=curve.first_loss, lowest=curve.lowest_loss)
    names, can_assign = group_names(model.require_optimizer("find_lr")), _can_assign(model)
    return LearningRates(
        curve,
        scores,
        updates=count,
        ratios=ratios,
        names=names,
        can_assign=can_assign,
        has_schedule=bool(model.schedules),
    )


def compare_rates(
    score: Callable[[float], float], middle: float, runs: int, *, start: float = math.inf, lowest: float = -math.inf
) -> dict[float, float]:
    """Return the score of rates around ``middle``: from there toward the lowest score.

    The first rates are ``middle`` and the next smaller one. As long as the best rate is the smallest or the largest, another
    rate follows on its side. The comparison ends early if the best two scores are equal.

    Args:
        score: Returns the loss after a short training with a rate; infinite if it diverges.
        middle: The rate with the lowest loss in the range test.
        runs: Number of rates at most.
        start: The loss before training.
        lowest: The lowest loss of the range test.

    Raises:
        ValueError: If all trainings diverge.
    """
    highest = start - NO_FALL * (start - lowest) if math.isfinite(start - lowest) else math.inf
    scores: dict[int, float] = {}
    following = 0
    while len(scores) < runs:
        scores[following] = value = score(middle * FACTOR**following)
        others = [other for exponent, other in scores.items() if exponent != following]
        best = min(scores, key=lambda exponent: scores[exponent])
        # A training that has learned nothing had a rate that is too large.
        learns = scores[best] < highest
        if learns and others and abs(value - min(others)) < FLAT * min(abs(scores[best]), abs(start - scores[best])):
            break
        if not learns or best == min(scores):
            following = min(scores) - 1
        elif best == max(scores):
            following = max(scores) + 1
        else:
            break
    if scores and not any(map(math.isfinite, scores.values())):
        raise ValueError(
            f"find_lr() found no rate at which training converges: it diverged with all rates down to "
            f"{middle * FACTOR ** min(scores):.2g}. Check the data and the loss, or pass clip_grad_norm=1.0 to compile()."
        )
    return {middle * FACTOR**exponent: value for exponent, value in sorted(scores.items())}


def smooth(losses: Sequence[float], rates: Sequence[float]) -> Array:
    """Return the losses, each replaced by a weighted mean over neighboring rates.

    The weights are those of a Gaussian over the logarithm of the rate.
    """
    position = np.log10(np.asarray(rates))
    weights = np.exp(-0.5 * ((position[:, None] - position[None, :]) / SMOOTHING) ** 2)
    smoothed: Array = weights @ np.asarray(losses) / weights.sum(1)
    return smoothed


def round_rate(rate: float) -> float:
    """Return a rate with two significant digits."""
    return float(f"{rate:.2g}")


def _score(test: RangeTest) -> float:
    """Return the mean of the last losses of a short training; infinite if it diverged."""
    count = max(1, round(LAST * len(test.losses)))
    return math.inf if test.diverged else float(np.mean(test.losses[-count:]))


def _read_curve(test: RangeTest, min_lr: float) -> Curve:
    losses = [loss for loss in test.losses if math.isfinite(loss)]
    if len(losses) < MIN_UPDATES:
        raise ValueError(_short_message(test, min_lr))
    return Curve(test.rates[: len(losses) - 1], losses[1:], float(np.mean(losses[:5])), test.diverged)


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


def _short_message(test: RangeTest, min_lr: float) -> str:
    if test.diverged and len(test.rates) < 5 * MIN_UPDATES:
        return (
            f"find_lr() needs at least {MIN_UPDATES} updates before training diverges, and it diverged after "
            f"{len(test.losses)}, at a rate of {test.rates[len(test.losses) - 1]:.2g}. Pass updates={5 * MIN_UPDATES}."
        )
    if test.diverged and len(test.losses) <= 1:
        return (
            "find_lr() found no rate at which training converges: the loss of the first batch is not finite, before any update. "
            "Check the data and the loss with model.check(x, y)."
        )
    if test.diverged:
        return (
            f"find_lr() found no rate at which training converges: it diverged after {len(test.losses)} updates, with rates "
            f"from {min_lr:g}. Pass a smaller min_lr, such as min_lr={min_lr / 1000:g}."
        )
    return (
        f"find_lr() needs at least {MIN_UPDATES} updates, and the data ended after {len(test.losses)}. Pass {ACCEPTED}."
    )
