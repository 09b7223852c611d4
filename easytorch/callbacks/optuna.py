"""Pruning of Optuna trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easytorch._utils.pytree import describe
from easytorch.callbacks.early_stopping import Monitor

MODES = {"MINIMIZE": "min", "MAXIMIZE": "max"}


class OptunaPruning(Monitor):
    """Report a value to Optuna after each epoch, and stop training when the study prunes the trial.

    ``fit`` then raises ``optuna.TrialPruned``, after all other callbacks have finished the epoch and their ``on_train_end``.
    The study counts the trial as pruned.
    A value that is NaN, or a run that ``TerminateOnNaN`` stopped, is always pruned.

    The step of a report is the index of the epoch, from 0.
    A run that ``fit(resume=...)`` continues reports its earlier epochs again to a trial that does not have them.

    Ctrl-C ends the trial and the study.
    In an interactive session it ends only the trial, unless ``fit(..., on_interrupt="raise")`` is passed.

    Args:
        trial: The trial that the study passes to the objective. A trial that only holds parameters, such as
            ``optuna.trial.FixedTrial`` or ``study.best_trial``, is never pruned.
        monitor: Name of the value to report. The study determines its direction.

    Attributes:
        best: The best value so far.
        pruned: Whether the trial was pruned.

    Raises:
        ImportError: If Optuna is not installed.
        TypeError: If ``trial`` is not a trial.
        ValueError: If the study has several objectives; in ``fit``, if the logs will not contain the value, or if its direction
            is not that of the study.

    Examples:
        >>> import optuna
        >>> def objective(trial):
        ...     lr = trial.suggest_float("lr", 1e-5, 0.1, log=True)
        ...     model = Model(make_net()).compile("adam", "cross_entropy", ["accuracy"], lr=lr)
        ...     history = model.fit(x, y, epochs=10, validation_split=0.2, callbacks=[OptunaPruning(trial, "val_accuracy")])
        ...     return history["val_accuracy"][-1]
        >>> optuna.create_study(direction="maximize").optimize(objective, n_trials=3)
    """

    def __init__(self, trial: Any, monitor: str = "val_loss") -> None:
        # A missing package is an error now, not during training.
        self._error_class = _import_trial_pruned()
        if not callable(getattr(trial, "should_prune", None)):
            raise TypeError(
                f"trial must be the trial that the study passes to the objective, received {describe(trial)}. Pass "
                "OptunaPruning(trial)."
            )
        self.trial, self._study = trial, getattr(trial, "study", None)
        directions = [direction.name for direction in self._study.directions] if self._study is not None else []
        if len(directions) > 1:
            raise ValueError(
                f"The study has {len(directions)} objectives, but Optuna can prune only trials with one objective. Remove "
                "OptunaPruning."
            )
        super().__init__(monitor, MODES.get("".join(directions), "auto"))
        self._reports: list[tuple[int, float]] = []
        self.pruned = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the name, and that the study has the direction of the value."""
        super().on_train_begin(logs)
        try:
            direction = self.model.metrics.mode(self.monitor)
        except ValueError:  # unknown, so the study determines it
            return
        if direction != self.direction:
            verb, fix = ("maximizes", "minimize") if self.direction == "max" else ("minimizes", "maximize")
            raise ValueError(
                f"OptunaPruning monitors {self.monitor!r}, for which {'lower' if direction == 'min' else 'higher'} is better, "
                f"but the study {verb}. Use optuna.create_study(direction={fix!r}), or monitor another value."
            )

    def redirect(self, folder: Path) -> None:
        """Report nothing to the study."""
        self.trial, self._study = _SilentTrial(), None

    def reset(self) -> None:
        """Reset the best value and the reports."""
        super().reset()
        self._reports, self.pruned = [], False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report the value, and stop training if the study prunes the trial."""
        value = math.nan if self.model.callbacks.diverged else self.read_value(logs or {})
        if value is None:
            return
        self.trial.report(value, epoch)
        self._reports.append((epoch, value))
        if self.is_better(value):
            self.best = value
        self.pruned = math.isnan(value) or self.trial.should_prune()
        # on_train_end raises the error, so that the other callbacks finish this epoch.
        if self.pruned:
            self.model.stop_training = True

    def on_exception(self, error: BaseException) -> None:
        """Let the other error end the run."""
        self.pruned = False

    def on_train_end(self, logs: Any = None) -> None:
        """Raise ``optuna.TrialPruned``, if the trial was pruned."""
        if self.pruned and not self.model.history.interrupted:
            epoch, value = self._reports[-1]
            raise self._error_class(f"Pruned after epoch {epoch + 1} with {self.monitor} = {value:.6g}")

    def state_dict(self) -> dict[str, Any]:
        """Return the reports, and whether the trial was pruned."""
        return super().state_dict() | {"reported": [list(report) for report in self._reports], "pruned": self.pruned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the reports; a pruned trial stays pruned."""
        super().load_state_dict(state)
        self._reports = [(epoch, value) for epoch, value in state["reported"]]
        trials = self._study.get_trials(deepcopy=False) if self._study is not None else []
        known = {epoch for trial in trials if trial.number == self.trial.number for epoch in trial.intermediate_values}
        for epoch, value in self._reports:
            if epoch not in known:
                self.trial.report(value, epoch)
        self.pruned = state["pruned"]
        self.model.stop_training |= self.pruned


class _SilentTrial:
    """A trial that records nothing and is never pruned."""

    def report(self, value: float, step: int) -> None:
        """Ignore a value."""

    def should_prune(self) -> bool:
        """Return False."""
        return False


def _import_trial_pruned() -> type[Exception]:
    try:
        from optuna import TrialPruned
    except ImportError as error:
        raise ImportError("OptunaPruning needs the package optuna: pip install optuna") from error
    return TrialPruned
