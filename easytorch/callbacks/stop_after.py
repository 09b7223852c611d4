"""End of a fit after a number of updates, or after some time, for jobs of limited length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easytorch._utils.integers import optional_positive_int, optional_positive_number
from easytorch.callbacks.base import Callback


class LimitReached(BaseException):
    """Leaves the loop between two updates, because a limit of the run was reached."""


class StopAfter(Callback):
    """End ``fit`` after a number of updates or some time; the next start with ``resume=`` continues exactly there.

    ``fit`` returns the history; ``history.stop_reason`` names the limit. Best weights are restored, and a checkpoint is written,
    as after Ctrl-C: an epoch that is not complete is not validated and has no row in the history. All ranks stop after the same
    update.

    Args:
        updates: Number of optimizer steps of the run, together with those before it was resumed.
        minutes: Minutes since the start of this ``fit``, not counting earlier starts of a resumed run.
        hours: Hours, which are added to ``minutes``.

    Raises:
        ValueError: If there is no limit, or if a limit is not positive.

    Examples:
        >>> model.fit(loader, 100, resume="run/", callbacks=[StopAfter(hours=3, minutes=30)])
    """

    # After the validation that follows an update, and after a resumed run has been restored.
    priority = 120
    # So that a run may be resumed without it, or with another limit.
    optional = True

    def __init__(self, *, updates: int | None = None, minutes: float | None = None, hours: float | None = None) -> None:
        self.updates = optional_positive_int("updates", updates)
        times = (optional_positive_number("minutes", minutes), optional_positive_number("hours", hours))
        self.minutes = None if times == (None, None) else (times[0] or 0.0) + 60 * (times[1] or 0.0)
        if self.updates is None and self.minutes is None:
            raise ValueError("StopAfter() needs a limit. Pass StopAfter(updates=10_000) or StopAfter(hours=3).")
        self._first_update, self._seconds = 0, 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self._first_update, self._seconds = self.model.state.step, self.model.strategy.control.now()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Stop if the run had reached the number of updates before it was resumed."""
        if self.has_all_updates():
            self._stop()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if a limit is reached, unless the epoch is complete."""
        if self._is_reached() and not self._completes_epoch():
            self._stop()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop if a limit is reached and this was not the last epoch."""
        if self.model.state.epoch < self.model.state.last and not self.model.stop_training and self._is_reached():
            self._stop()

    def has_all_updates(self) -> bool:
        """Return whether the limit of updates is reached, so that a resumed run needs a greater one."""
        return self.updates is not None and self.model.state.step - self._first_update >= self.updates

    def _completes_epoch(self) -> bool:
        data: Any = self.model.train_data
        return bool(data.ends_here(self.model.state.epoch_step))

    def _is_reached(self) -> bool:
        seconds = self.model.strategy.control.now() - self._seconds
        return self.has_all_updates() or (self.minutes is not None and seconds >= 60 * self.minutes)

    def _stop(self) -> None:
        limit = (
            f"{self.updates:,} update{'s' * (self.updates != 1)}" if self.has_all_updates() else self._describe_time()
        )
        raise LimitReached(f"the limit of {limit} was reached")

    def _describe_time(self) -> str:
        hours, minutes = divmod(self.minutes or 0.0, 60)
        parts = [
            f"{hours:g} hour{'s' * (hours != 1)}" * bool(hours),
            f"{minutes:g} minute{'s' * (minutes != 1)}" * bool(minutes),
        ]
        return " and ".join(filter(None, parts))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates before the run."""
        return {"first_update": self._first_update}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the number of updates before the run."""
        self._first_update = state["first_update"]
