"""Monitored values and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils.registry import did_you_mean, find, quote_list
from easytorch.callbacks.base import Callback

if TYPE_CHECKING:
    from easytorch.model import Model


MODES = {"auto": "auto", "min": "min", "max": "max"}


class Monitor(Callback):
    """Watches one value of the logs; the base of those who act on it.

    The name is checked before the first step, and so is the direction: ``mode="auto"`` asks the metric.

    Args:
        monitor: The name of a value: ``"loss"``, a metric, or these with ``val_``.
        mode: ``"min"``, ``"max"`` or ``"auto"``.
        min_delta: What counts as better must be better by more than this.

    Raises:
        ValueError: In ``fit``, before the first step, if nothing of that name will be there, or its direction is unknown.
    """

    def __init__(self, monitor: str = "val_loss", mode: str = "auto", min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor is the name of a value in the logs, such as 'val_loss'; received {monitor!r}.")
        self.monitor, self.mode, self.min_delta = monitor, find("mode", mode, MODES), abs(min_delta)
        self.direction = "min"
        self.best = math.inf

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name and find the direction."""
        check_name(self.monitor, f"{type(self).__name__} monitors", self.model)
        self.direction = self.mode if self.mode != "auto" else self.model.metrics.mode(self.monitor)
        self.reset()

    def reset(self) -> None:
        """Forget the best value."""
        self.best = math.inf if self.direction == "min" else -math.inf

    def value(self, logs: Mapping[str, float]) -> float | None:
        """Return the monitored value, None in an epoch that did not measure it."""
        known = self.monitor in logs or self.monitor in self.model.log_names()
        unmeasured = self.model.callbacks.params["validated"] and not any(name.startswith("val_") for name in logs)
        if not known and not (unmeasured and self.monitor.startswith("val_")):
            raise ValueError(
                f"{type(self).__name__} monitors {self.monitor!r}, which is not in the logs.{did_you_mean(self.monitor, logs)} "
                f"There are {quote_list(logs)}."
            )
        return logs.get(self.monitor)

    def improved(self, value: float) -> bool:
        """Whether ``value`` is better than the best so far; NaN never is."""
        if self.direction == "min":
            return value + self.min_delta < self.best
        return value - self.min_delta > self.best

    def state_dict(self) -> dict[str, Any]:
        """Return the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.best = state["best"]


def check_name(name: str, who: str, model: Model) -> None:
    """Raise a ``ValueError`` if the logs of the fit that begins will not have ``name``.

    Where a step or a callback of the user's own may log more, only what looks misspelt is refused now.
    """
    names = model.log_names()
    if name in names or (model.logs_are_open() and not did_you_mean(name, names, cutoff=0.85)):
        return
    cure = ""
    if name.startswith("val_") and not any(known.startswith("val_") for known in names):
        cure = " Pass validation_data or validation_split to fit() to have it."
    told = f"{who} {name!r}, which will not be in the logs.{did_you_mean(name, names)}{cure}"
    raise ValueError(f"{told} There will be {quote_list(names)}.")


def check_patience(patience: Any) -> int:
    """Return ``patience``, or raise a ``ValueError`` if it is no number of epochs."""
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
        raise ValueError(f"patience must be a whole number of epochs, 0 or more, received {patience!r}.")
    return patience


class EarlyStopping(Monitor):
    """Stops training when a value has stopped getting better.

    Args:
        monitor: The value to watch.
        min_delta: What counts as better must be better by more than this.
        patience: Epochs in a row without a better value after which training stops.
        verbose: 1 says when it stops.
        mode: ``"min"``, ``"max"`` or ``"auto"``, which asks the metric.
        baseline: Patience starts again only at values that are also better than this.
        restore_best_weights: Put the weights of the best epoch back when training ends, however it ends: by patience, at
            the last epoch, by Ctrl-C or by an error.
        start_from_epoch: Epochs, from 0, before this one are not looked at.

    Attributes:
        stopped_epoch: The epoch, from 0, in which it stopped; None if it did not.
        best_epoch: The epoch, from 0, of the best value.
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
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience, self.verbose, self.baseline = check_patience(patience), verbose, baseline
        self.restore_best_weights, self.start_from_epoch = restore_best_weights, start_from_epoch
        self._forget()

    def _forget(self) -> None:
        self.wait = 0
        self.stopped_epoch: int | None = None
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Any] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name and start anew."""
        super().on_train_begin(logs)
        self._forget()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count the epochs without a better value."""
        value = self.value(logs or {})
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.improved(value):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                with self.model.callbacks.evaluated_weights():
                    self.best_weights = _copied(self.model.module.state_dict())
            if self.baseline is None or self._beats_baseline(value):
                self.wait = 0
        if self.wait >= self.patience and self.wait and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def _beats_baseline(self, value: float) -> bool:
        assert self.baseline is not None
        return value < self.baseline if self.direction == "min" else value > self.baseline

    def on_train_end(self, logs: Any = None) -> None:
        """Put the best weights back."""
        if self.stopped_epoch is not None and self.verbose:
            self.say(
                f"Epoch {self.stopped_epoch + 1}: {self.monitor} has not been better for {self.wait} epochs; stopped"
            )
        if self.best_weights is not None:
            self.model.strategy.checkpoints.load_weights(self.best_weights)
            self.best_weights = None
            if self.verbose and self.best_epoch is not None:
                self.say(f"Restored the weights of epoch {self.best_epoch + 1}")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its weights and the count of epochs since."""
        own = {"wait": self.wait, "best_epoch": self.best_epoch, "best_weights": self.best_weights}
        return super().state_dict() | own | {"stopped_epoch": self.stopped_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        self.wait, self.best_epoch, self.best_weights = state["wait"], state["best_epoch"], state["best_weights"]
        self.stopped_epoch = state["stopped_epoch"]
        self.model.stop_training |= self.stopped_epoch is not None  # another one may have stopped the run


def _copied(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in weights.items()
    }
