"""Estimates of the speed and of the remaining time of a run."""

from __future__ import annotations

from collections import deque

# Time over which a speed is averaged, in seconds.
WINDOW = 5.0


class RecentMean:
    """Mean seconds per item, over the items of the last ``WINDOW`` seconds.

    Args:
        min_entries: Number of newest entries that count even if they took longer than the window.
    """

    def __init__(self, min_entries: int = 1) -> None:
        self.min_entries = min_entries
        self.entries: deque[tuple[int, float, float]] = deque()
        self.count, self.seconds, self.span = 0, 0.0, 0.0

    def add(self, seconds: float, *, count: int = 1, span: float | None = None) -> None:
        """Add ``count`` items that took ``seconds`` together.

        Args:
            seconds: Duration of all items.
            count: Number of items.
            span: The part of the window that they fill, in seconds; by default their duration.
        """
        self._append(count, seconds, seconds if span is None else span)
        while len(self.entries) > self.min_entries and self.span - self.entries[0][2] >= WINDOW:
            count, seconds, span = self.entries.popleft()
            self._shift(-count, -seconds, -span)

    def _append(self, count: int, seconds: float, span: float) -> None:
        self.entries.append((count, seconds, span))
        self._shift(count, seconds, span)

    def _shift(self, count: int, seconds: float, span: float) -> None:
        self.count, self.seconds, self.span = self.count + count, self.seconds + seconds, self.span + span

    @property
    def value(self) -> float | None:
        """The mean in seconds per item; None without items."""
        return max(self.seconds, 0.0) / self.count if self.count else None


class PassClock:
    """Speed and remaining time of passes of one kind: training, validation, evaluation or prediction.

    The first step of a pass waits for workers, compilation or caches, and counts only until there are others. A new pass starts
    with the speed of the last one.
    """

    def __init__(self) -> None:
        self.pace = RecentMean(min_entries=3)
        self.first_seconds: float | None = None
        self.start(0, None, 0.0)

    def start(self, step: int, total: int | None, now: float) -> None:
        """Start a pass.

        Args:
            step: Number of steps that a resumed pass has finished before.
            total: Number of steps; None if it is unknown.
            now: The time in seconds.
        """
        self.step, self.total, self.updated_at = step, total, now
        self.awaits_first = True

    def record(self, step: int, now: float) -> None:
        """Record that ``step`` steps of the pass are finished."""
        count, seconds = step - self.step, now - self.updated_at
        if count <= 0:
            return
        self.step, self.updated_at = step, now
        if self.awaits_first:
            self.awaits_first, self.first_seconds = False, seconds / count
        else:
            self.pace.add(seconds, count=count)

    @property
    def step_seconds(self) -> float | None:
        """Recent seconds per step; None if no step is finished."""
        return self.first_seconds if self.pace.value is None else self.pace.value

    @property
    def rate(self) -> float | None:
        """Recent steps per second; None if no step is finished."""
        return None if self.step_seconds is None else 1 / max(self.step_seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Remaining seconds of the pass; None if they are unknown."""
        if self.total is None or self.step_seconds is None or self.step > self.total:
            return None
        return (self.total - self.step) * self.step_seconds


class FitClock:
    """Remaining time of a fit: of the current pass, of validations, and of later epochs.

    A later epoch is estimated from the recent speed, and from the recent time before its second update and after its last one.
    The first update of the fit does not count, since it may wait for a compilation.
    """

    def __init__(self) -> None:
        self.training, self.testing = PassClock(), PassClock()
        self.first_update, self.epoch_end, self.validation = RecentMean(), RecentMean(), RecentMean()
        self.epoch_steps: int | None = None
        self.epoch_started_at: float | None = None
        self.trained_at: float | None = None
        self.validation_seconds = 0.0
        self.last_epoch_seconds: float | None = None
        self.is_validating = False

    def start_epoch(self, step: int, total: int | None, now: float) -> None:
        """Start an epoch, in a resumed run after ``step`` of its updates; ``total`` is None if their number is unknown."""
        if self.epoch_started_at is not None and self.trained_at is not None:
            self.last_epoch_seconds = now - self.epoch_started_at
            self.epoch_end.add(now - self.trained_at - self.validation_seconds, span=self.last_epoch_seconds)
        self.epoch_started_at, self.trained_at, self.validation_seconds, self.is_validating = now, None, 0.0, False
        self.training.start(step, self.epoch_steps if total is None else total, now)

    def record_update(self, step: int, now: float) -> None:
        """Record that ``step`` updates of the epoch are finished."""
        if self.training.awaits_first and step > self.training.step and self.last_epoch_seconds is not None:
            self.first_update.add(now - self.training.updated_at, span=self.last_epoch_seconds)
        self.training.record(step, now)

    def end_training(self, step: int, now: float) -> None:
        """Record the end of the updates of the epoch, of which there were ``step``; a second call does nothing."""
        if self.epoch_started_at is not None and self.trained_at is None:
            self.record_update(step, now)
            self.epoch_steps, self.trained_at = step, now

    def start_validation(self, total: int | None, now: float) -> None:
        """Start a validation of ``total`` steps; None if their number is unknown."""
        self.is_validating, self.validation_started_at = True, now
        self.testing.start(0, total, now)

    def end_validation(self, now: float) -> None:
        """End the validation."""
        seconds = now - self.validation_started_at
        self.is_validating, self.validation_seconds = False, self.validation_seconds + seconds
        self.validation.add(seconds)

    def continue_training(self, now: float) -> None:
        """Continue the updates of the epoch after a validation, which does not count as one of them."""
        self.training.updated_at, self.validation_seconds = now, 0.0

    @property
    def current(self) -> PassClock:
        """The clock of the current pass."""
        return self.testing if self.is_validating else self.training

    def left(self, epochs: int, validations: int) -> float | None:
        """Return the remaining seconds of the fit; None if they are unknown.

        Args:
            epochs: Number of epochs after this one.
            validations: Number of validations that have not started.
        """
        parts = [self.current.left, self.epoch_end.value or 0.0]
        if validations:
            parts.append(None if self.validation.value is None else validations * self.validation.value)
        if epochs:
            epoch = self._later_epoch()
            parts.append(None if epoch is None else epochs * epoch)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _later_epoch(self) -> float | None:
        """Return the seconds of an epoch without its validation; None if they are unknown."""
        step_seconds, steps = self.training.step_seconds, self.training.total or self.epoch_steps
        if step_seconds is None or not steps:
            return None
        first_update = step_seconds if self.first_update.value is None else self.first_update.value
        return first_update + (steps - 1) * step_seconds + (self.epoch_end.value or 0.0)
