"""Pruning of Optuna trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from easytorch._utils.pytree import describe
from easytorch.callbacks.early_stopping import Monitor


class OptunaPruning(Monitor):
    """Reports a value to Optuna after each epoch, and ends training when the study says that the trial is not worth more.

    ``fit`` then raises ``optuna.TrialPruned``, after every other callback has had the epoch and its ``on_train_end``; the study
    takes it as a pruned trial. A value that is NaN, and a run that ``TerminateOnNaN`` ended, are pruned whatever the study says.

    The number of a report is that of the epoch, from 0. A run that was stopped and goes on, by ``fit(resume=...)``, reports its
    earlier epochs again to a trial that does not know them.

    Ctrl-C ends the trial and not the study, which begins the next one. With ``fit(..., on_interrupt="raise")`` it ends both.

    Args:
        trial: What the study passed to your objective. One that only holds parameters, ``optuna.trial.FixedTrial`` or
            ``study.best_trial``, is never pruned.
        monitor: The value to report. Its direction is that of the study.

    Attributes:
        best: The best value so far.
        pruned: Whether the trial has been pruned.

    Raises:
        ImportError: If Optuna is not installed.
        TypeError: If ``trial`` is no trial.
        ValueError: If the study has several objectives; in ``fit``, before the first step, if there will be no value of that
            name, or if it is better high and the study minimizes, or the other way round.

    Examples:
        >>> def objective(trial):
        ...     lr = trial.suggest_float("lr", 1e-5, 0.1, log=True)
        ...     model = Model(net()).compile("adam", "cross_entropy", ["accuracy"], lr=lr)
        ...     history = model.fit(x, y, epochs=10, validation_split=0.2, callbacks=[OptunaPruning(trial, "val_accuracy")])
        ...     return history["val_accuracy"][-1]
        >>> optuna.create_study(direction="maximize").optimize(objective, n_trials=20)
    """

    def __init__(self, trial: Any, monitor: str = "val_loss") -> None:
        self._error = _trial_pruned()  # a missing package is told now, not when training runs
        if not callable(getattr(trial, "should_prune", None)):
            raise TypeError(
                f"OptunaPruning takes the trial that the study passes to the objective, received {describe(trial)}."
            )
        study = getattr(trial, "study", None)
        directions = [direction.name for direction in study.directions] if study is not None else []
        if len(directions) > 1:
            raise ValueError(
                f"The study has {len(directions)} objectives, and Optuna prunes only trials of one. Leave OptunaPruning out."
            )
        super().__init__(monitor, {"MINIMIZE": "min", "MAXIMIZE": "max"}.get("".join(directions), "auto"))
        self.trial, self._study = trial, study
        self._reported: list[tuple[int, float]] = []
        self.pruned = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name, and that the study and the value agree about what is better."""
        super().on_train_begin(logs)
        try:
            better = self.model.metrics.mode(self.monitor)
        except ValueError:  # nobody knows, so it is as the study says
            return
        if better != self.direction:
            does, should = ("maximizes", "minimize") if self.direction == "max" else ("minimizes", "maximize")
            raise ValueError(
                f"OptunaPruning monitors {self.monitor!r}, which is better {'low' if better == 'min' else 'high'}, but the "
                f"study {does}. Make it optuna.create_study(direction='{should}'), or monitor what the study {does}."
            )

    def reset(self) -> None:
        """Forget what was reported."""
        super().reset()
        self._reported, self.pruned = [], False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report the value, and ask whether to go on."""
        value = math.nan if self.model.callbacks.diverged else self.value(logs or {})
        if value is None:
            return
        self._report(epoch, value)
        self.pruned = math.isnan(value) or self.trial.should_prune()
        if self.pruned:  # raised at the very end: this epoch is still to be logged, drawn and kept by the others
            self.model.stop_training = True

    def _report(self, epoch: int, value: float) -> None:
        self.trial.report(value, epoch)
        self._reported.append((epoch, value))
        if self.improved(value):
            self.best = value

    def on_exception(self, error: BaseException) -> None:
        """Let the error have its way."""
        self.pruned = False

    def on_train_end(self, logs: Any = None) -> None:
        """Tell the study, if the trial is to be pruned."""
        if self.pruned and not self.model.history.interrupted:
            epoch, value = self._reported[-1]
            raise self._error(f"Pruned after epoch {epoch + 1} with {self.monitor} = {value:.6g}")

    def state_dict(self) -> dict[str, Any]:
        """Return what was reported, and whether the trial was pruned."""
        return super().state_dict() | {"reported": [list(one) for one in self._reported], "pruned": self.pruned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a trial that was pruned stays so."""
        super().load_state_dict(state)
        trials = self._study.get_trials(deepcopy=False) if self._study is not None else []
        known = [one.intermediate_values for one in trials if one.number == self.trial.number]
        for epoch, value in state["reported"]:
            if not any(epoch in values for values in known):
                self.trial.report(value, epoch)
        self._reported = [(epoch, value) for epoch, value in state["reported"]]
        self.pruned = state["pruned"]
        self.model.stop_training |= self.pruned


def _trial_pruned() -> type[Exception]:
    try:
        from optuna import TrialPruned
    except ImportError as error:
        raise ImportError("OptunaPruning needs Optuna: pip install optuna") from error
    return TrialPruned
