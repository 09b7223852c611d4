"""Monitored values and early stopping."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from easytorch._utils.integers import boolean, non_negative_int
from easytorch._utils.registry import did_you_mean, find, quote_list
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.checkpoint.state_dicts import rename

if TYPE_CHECKING:
    from easytorch.model import Model

MODES = {mode: mode for mode in ("auto", "min", "max")}


class Monitor(Callback):
    """Base class of callbacks that act on one value of the logs.

    The name and the direction are checked before the first update.

    Args:
        monitor: Name of the value: ``"loss"``, a metric, or one of these with the prefix ``val_``.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is better, ``"auto"`` to ask the metric.
        min_delta: Smallest change that counts as an improvement.

    Attributes:
        best: The best value so far.
        direction: ``"min"`` or ``"max"``; known in ``on_train_begin``.

    Raises:
        TypeError: If ``monitor`` is not a string.
        ValueError: If ``mode`` is unknown; in ``fit``, if the logs will not contain the value or its direction is unknown.

    Examples:
        >>> class PrintBest(Monitor):
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         value = self.read_value(logs)
        ...         if value is not None and self.is_better(value):
        ...             self.best = value
        ...             print(f"new best {self.monitor}: {value}")
    """

    # After the callbacks that add values to the logs.
    priority = 3

    def __init__(self, monitor: str = "val_loss", mode: str = "auto", min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str):
            raise TypeError(
                f"monitor must be the name of a value in the logs, such as 'val_loss', received {monitor!r}. Pass "
                f"other arguments by name: {type(self).__name__}('val_loss', mode='min')."
            )
        self.monitor, self.mode, self.min_delta = monitor, find("mode", mode, MODES), abs(min_delta)
        self.direction = "min"
        self.best = math.inf

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name, determine the direction and reset the state."""
        check_log_name(self.monitor, f"{type(self).__name__} monitors", self.model)
        self.direction = self.mode if self.mode != "auto" else self.model.metrics.mode(self.monitor)
        self.reset()

    def reset(self) -> None:
        """Reset the best value.

        Examples:
            >>> monitor = Monitor("val_loss", mode="min")
            >>> monitor.reset()
            >>> monitor.best
            inf
        """
        self.best = math.inf if self.direction == "min" else -math.inf

    def read_value(self, logs: Mapping[str, float]) -> float | None:
        """Return the monitored value, or None in an epoch without validation.

        Args:
            logs: The logs of an epoch.

        Raises:
            ValueError: If no epoch provides the value.

        Examples:
            >>> class PrintBest(Monitor):
            ...     def on_epoch_end(self, epoch, logs=None):
            ...         value = self.read_value(logs)
            ...         if value is not None and self.is_better(value):
            ...             self.best = value
            >>> history = model.fit(x, y, validation_data=(x, y), callbacks=[PrintBest("val_loss")], verbose=0)
        """
        if self.monitor in logs:
            return logs[self.monitor]
        awaits_validation = self.monitor.startswith("val_") and lacks_validation(self.model, logs)
        if self.monitor in self.model.log_names() or awaits_validation:
            return None
        raise ValueError(
            f"{type(self).__name__} monitors {self.monitor!r}, which is not in the logs."
            f"{did_you_mean(self.monitor, logs)} The logs contain {quote_list(logs)}."
        )

    def follows_validations(self) -> bool:
        """Return whether ``on_validation_end`` gets the value, after updates, so that ``on_epoch_end`` has nothing to do."""
        if not self.params.get("validates_between_updates"):
            return False
        return self.monitor in self.model.recorded_history.last_validated_names()

    def is_better(self, value: float) -> bool:
        """Return whether ``value`` improves on the best value by more than ``min_delta``; NaN never does.

        Args:
            value: The value of an epoch or a validation.

        Examples:
            >>> monitor = Monitor("val_loss", mode="min", min_delta=0.01)
            >>> monitor.best = 0.5
            >>> monitor.is_better(0.495)
            False
        """
        if self.direction == "min":
            return value + self.min_delta < self.best
        return value - self.min_delta > self.best

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and what it is the best of."""
        return {"best": self.best, "monitor": self.monitor, "direction": self.direction}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the best value, unless it is of another quantity."""
        if self.monitors_the_same(state):
            self.best = state["best"]
        else:
            warn(
                f"{type(self).__name__} monitored {state['monitor']!r} ({state['direction']}) before, and now {self.monitor!r} "
                f"({self.direction}). The best value of the run does not apply and is reset, so the resumed run differs from an "
                "uninterrupted one."
            )

    def monitors_the_same(self, state: Mapping[str, Any]) -> bool:
        """Return whether ``state`` is of the same quantity, in the same direction."""
        return (state["monitor"], state["direction"]) == (self.monitor, self.direction)


def lacks_validation(model: Model, logs: Mapping[str, float]) -> bool:
    """Return whether a fit with validation data did not validate in the epoch of ``logs``."""
    return model.callbacks.params["validated"] and not any(name.startswith("val_") for name in logs)


def check_log_name(name: str, source: str, model: Model, further: Sequence[str] = ()) -> None:
    """Raise a ``ValueError`` if the logs of the current fit will not contain ``name``.

    A custom step or callback may add names to the logs.
    If there is one, only names that look like misspellings are refused.

    Args:
        name: The name of a value.
        source: Subject and verb of the message: ``"EarlyStopping monitors"``.
        model: The model that is trained.
        further: Names that are known although the logs do not contain them.
    """
    names = [*model.log_names(), *further]
    if (
        name in names
        or model.metrics.may_have_entry(model.metrics.training_name(name))
        or (model.logs_are_open() and not did_you_mean(name, names, cutoff=0.85))
    ):
        return
    fix = did_you_mean(name, names)
    if name.startswith("val_") and not any(known.startswith("val_") for known in names):
        fix += " Pass validation_data or validation_split to fit()."
    raise ValueError(
        f"{source} {name!r}, which the logs will not contain.{fix} The logs will contain {quote_list(names)}: pass one of these "
        "names, or add a metric in compile()."
    )


class EarlyStopping(Monitor):
    """Stop training when a value no longer improves, or reaches a target.

    The value is compared after each epoch. With ``validation_freq=Every(updates=...)``, a value of the validation is compared
    after each validation, and ``patience`` counts validations.

    Args:
        monitor: Name of the value: ``"loss"``, a metric, or one of these with the prefix ``val_``.
        min_delta: Smallest change that counts as an improvement.
        patience: Number of epochs without an improvement after which training stops. With a ``target``, 0 sets no limit.
        verbose: 1 prints a line when training stops.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to ask the metric.
        baseline: Only a value better than this resets the patience.
        restore_best_weights: Restore the weights of the best epoch at the end of training, also after Ctrl-C or an error.
        start_from_epoch: Index of the first epoch, from 0, whose value counts.
        min_epochs: Number of epochs, over all fits, before which training does not stop. Values count from the first epoch.
        target: Training stops when the value reaches this number.

    Attributes:
        stopped_epoch: Index of the epoch, from 0, in which training was stopped; None if it was not.
        best_epoch: Index of the epoch, from 0, with the best value.

    Examples:
        >>> stopping = EarlyStopping("val_loss", patience=3, restore_best_weights=True)
        >>> model.fit(x, y, epochs=100, validation_split=0.2, callbacks=[stopping])
        >>> EarlyStopping("val_accuracy", target=0.99)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
        *,
        min_epochs: int = 0,
        target: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = non_negative_int("patience", patience)
        self.start_from_epoch = non_negative_int("start_from_epoch", start_from_epoch)
        self.min_epochs, self.target = non_negative_int("min_epochs", min_epochs), _check_target(target)
        self.verbose, self.baseline = verbose, baseline
        self.restore_best_weights = boolean("restore_best_weights", restore_best_weights)
        self._reset_counts()

    def _reset_counts(self) -> None:
        self.wait, self._is_reached = 0, False
        self.stopped_epoch: int | None = None
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Any] | None = None
        self.best_loss_state: dict[str, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name and reset the state."""
        super().on_train_begin(logs)
        self._reset_counts()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count the epochs without an improvement."""
        if self.follows_validations():
            # A stop that min_epochs has delayed: only here it is certain that the epoch is finished.
            self._stop_if_due(epoch, epoch + 1, may_stop=True)
        else:
            self._compare(epoch, epoch + 1, logs or {}, may_stop=epoch > 0)

    def on_validation_end(self, logs: Any = None) -> None:
        """Count the validations without an improvement, if they follow updates."""
        if self.follows_validations():
            epoch = self.model.state.epoch
            self._compare(epoch, epoch, logs or {}, may_stop=True)

    def _compare(self, epoch: int, finished: int, logs: Mapping[str, float], may_stop: bool) -> None:
        """Compare the value in ``logs``, and stop training if it is time.

        Args:
            epoch: Index of the epoch.
            finished: Number of finished epochs.
            logs: The values.
            may_stop: Whether training may stop because the value has not improved.
        """
        value = self.read_value(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.is_better(value):
            self._record_best(epoch, value)
        self._is_reached |= self.target is not None and self._reaches(value, self.target)
        self._stop_if_due(epoch, finished, may_stop)

    def _stop_if_due(self, epoch: int, finished: int, may_stop: bool) -> None:
        """Stop training if the value has reached the target, or has not improved for too long."""
        has_limit = self.patience > 0 or self.target is None
        is_over = has_limit and self.wait >= self.patience and self.wait > 0 and may_stop
        if (self._is_reached or is_over) and finished >= self.min_epochs:
            self.stopped_epoch = epoch
            self.model.stop_training = True
            self.model.history.stop_reason = self._describe_stop()

    def _reaches(self, value: float, target: float) -> bool:
        return value <= target if self.direction == "min" else value >= target

    def _describe_stop(self) -> str:
        if self._is_reached:
            return f"{self.monitor} reached {self.target:g}"
        unit = "validation" if self.follows_validations() else "epoch"
        return f"{self.monitor} did not improve for {self.wait} {unit}{'s' * (self.wait != 1)}"

    def _record_best(self, epoch: int, value: float) -> None:
        self.best, self.best_epoch = value, epoch
        if self.restore_best_weights:
            with self.model.callbacks.evaluated_weights():
                self.best_weights = _copy_tensors(self.model.module.state_dict())
            self.best_loss_state = _copy_tensors(self.model.loss.modules.read_state())
        if self.baseline is None or (value < self.baseline if self.direction == "min" else value > self.baseline):
            self.wait = 0

    def on_train_end(self, logs: Any = None) -> None:
        """Restore the best weights."""
        if self.stopped_epoch is not None and self.verbose:
            self.print_message(f"Epoch {self.stopped_epoch + 1}: early stopping, {self._describe_stop()}")
        if self.best_weights is not None:
            self.model.strategy.checkpoints.load_weights(self.best_weights)
            self.model.loss.modules.restore_state(self.best_loss_state)
            self.best_weights, self.best_loss_state = None, {}
            if self.verbose and self.best_epoch is not None:
                self.print_message(f"Restored the weights of epoch {self.best_epoch + 1}")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch and weights, and the counts."""
        return super().state_dict() | {
            "wait": self.wait,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "best_loss_state": self.best_loss_state,
            "stopped_epoch": self.stopped_epoch,
            "reached": self._is_reached,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state; a run that was stopped early stays stopped."""
        super().load_state_dict(state)
        if self.monitors_the_same(state):
            self.wait, self.best_epoch, self.best_weights = state["wait"], state["best_epoch"], state["best_weights"]
            self._is_reached = state.get("reached", False)
            self.best_loss_state = dict(state["best_loss_state"])
        # The saved module may have been compiled, and this one not, or the other way round.
        if self.best_weights is not None:
            self.best_weights = rename(self.best_weights, self.model.module.state_dict())
        self.stopped_epoch = state["stopped_epoch"]
        # Another callback may have stopped the run already.
        if self.stopped_epoch is not None:
            self.model.stop_training, self.model.history.stop_reason = True, self._describe_stop()


def _check_target(target: Any) -> float | None:
    is_number = isinstance(target, numbers.Real) and not isinstance(target, bool) and math.isfinite(target)
    if target is not None and not is_number:
        raise ValueError(
            f"target must be a number that the monitored value is to reach, received {target!r}. Use target=0.99."
        )
    return None if target is None else float(target)


def _copy_tensors(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in weights.items()}
