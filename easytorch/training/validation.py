"""Validation of a fit: when it runs, and on which data."""

from __future__ import annotations

from typing import Any

from easytorch._utils.registry import quote_list
from easytorch.callbacks.base import Callback
from easytorch.callbacks.every import Every
from easytorch.data.batch import GeneratorWithLookahead
from easytorch.data.data_sets import by_name, merge_by_name
from easytorch.data.loader import ValidationSchedule, has_more


class Validation(Callback):
    """Evaluates the validation data after epochs.

    Args:
        data: The validation batches, ``DataSets`` of these, or None.
        frequency: The argument ``validation_freq`` of ``Model.fit``.
        steps: Number of batches of each data set; None for all.

    Attributes:
        is_between_updates: Whether validations follow updates, in the middle of epochs, instead of epochs.
        data_sets: The batches by name.

    Raises:
        ValueError: If ``frequency`` is invalid.
    """

    is_between_updates = False

    def __init__(self, data: Any, frequency: Any, steps: int | None) -> None:
        self.frequency, self.steps, self.data_sets = frequency, steps, by_name(data)
        epochs = (frequency.epochs or []) if isinstance(frequency, Every) else frequency
        self.schedule = ValidationSchedule(data, epochs)
        self.sets_left = 0  # data sets that the validation in progress has not reached

    @staticmethod
    def of(data: Any, frequency: Any, steps: int | None) -> Validation:
        """Return the validation of ``fit(validation_freq=frequency)``."""
        is_between_updates = isinstance(frequency, Every) and frequency.epochs is None and data is not None
        return (ValidationBetweenUpdates if is_between_updates else Validation)(data, frequency, steps)

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that the logs of all data sets have different names."""
        names = self.model.log_names()
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated and len(self.data_sets) > 1:
            raise ValueError(
                f"The logs of several data sets would have the name {repeated[0]!r}. Rename a data set of validation_data: the "
                f"names are {quote_list(self.data_sets)}."
            )

    def validate_always(self) -> None:
        """Validate after each epoch from now on, if there is data."""
        self.schedule = ValidationSchedule(self.data_sets or None, 1)

    def describe(self) -> dict[str, Any]:
        """Return what callbacks find in their ``params``."""
        return {
            "validated": bool(self.data_sets),
            "validation_prefixes": [f"val_{name}_" if name else "val_" for name in self.data_sets],
            "validates_between_updates": self.is_between_updates,
            "count_validations": self.count,
            "data_set": "",
        }

    def after(self, epoch: int) -> dict[str, float]:
        """Validate if it is due after ``epoch``, and return the logs."""
        return self.run() if self.schedule(epoch) else {}

    def run(self) -> dict[str, float]:
        """Evaluate each data set, call the callbacks, and return the logs, whose names start with ``val_``."""
        model, callbacks, scores = self.model, self.model.callbacks, dict[str, dict[str, float]]()
        data_sets = {name: data for name, data in self.data_sets.items() if has_more(data, model.state.epoch)}
        if not data_sets:
            return {}
        callbacks.on_validation_begin({})
        for i, (name, loader) in enumerate(data_sets.items(), 1):
            self.sets_left, callbacks.params["data_set"] = len(data_sets) - i, name
            scores[name] = model.test_epoch(loader, self.steps)
        callbacks.params["data_set"] = ""
        logs = {f"val_{name}": value for name, value in merge_by_name(scores).items()}
        # Before the hooks, so that a model that they save contains this validation.
        model.recorded_history.append_validation(model.state, self.params["steps"], logs)
        callbacks.on_validation_end(logs)
        return logs

    def count(self, first: int, last: int) -> int:
        """Return the number of evaluations in the epochs ``first``, ..., ``last - 1``, from 0, that have not started."""
        return self.schedule.plan.count(first, last) * len(self.data_sets) + self.sets_left


class ValidationBetweenUpdates(Validation):
    """Evaluates the validation data after updates or minutes, in the middle of epochs.

    A checkpoint of the same update is taken before, so that a run which is stopped during the validation repeats it.
    """

    # After all callbacks have handled the update, and after a resumed run has been restored.
    priority = 110
    is_between_updates = True

    def __init__(self, data: Any, frequency: Every, steps: int | None) -> None:
        super().__init__(data, frequency, steps)
        self.every = frequency
        self._seconds: float | None = None  # when the last validation ended
        if steps is None and any(isinstance(loader, GeneratorWithLookahead) for loader in self.data_sets.values()):
            raise ValueError(
                "validation_data is a generator, which can be read only once, but each validation needs it. Pass the function "
                "that returns it (not its result), a list of batches or a DataLoader."
            )

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the names of the logs, and start the clock."""
        super().on_train_begin(logs)
        self._seconds = self.model.strategy.control.now()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Validate if the run was stopped between its last update and the validation that follows it."""
        state = self.model.state
        is_due = state.epoch_step > 0 and self.every.is_due_after_update(state.step, 0.0)
        if is_due and self.model.recorded_history.last_validated_update() != state.step:
            self.run()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Validate if it is due."""
        now = self.model.strategy.control.now()
        if self._seconds is None:
            self._seconds = now
        if self.every.is_due_after_update(self.model.state.step, now - self._seconds):
            self.run()
            # The clock of several ranks stands still until the next update.
            self._seconds = None

    def validate_always(self) -> None:
        """Validate after each update from now on."""
        self.every = Every(updates=1)

    def after(self, epoch: int) -> dict[str, float]:
        """Return the logs of the last validation in ``epoch``."""
        return self.model.recorded_history.last_validation(epoch)

    def count(self, first: int, last: int) -> int:
        """Return the number of evaluations from this update to the epoch ``last`` that have not started."""
        state, steps = self.model.state, self.params["steps"]
        if self.every.updates is None or not steps:
            return self.sets_left
        end: int = state.step - state.epoch_step + (last - state.epoch) * steps
        return (end // self.every.updates - state.step // self.every.updates) * len(self.data_sets) + self.sets_left
