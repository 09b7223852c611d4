"""Progress in a notebook: a bar and a table of epochs."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Mapping
from typing import Any

from easytorch._utils.html_table import MAX_EPOCHS, escape_text, format_epochs
from easytorch._utils.notebook import SHOWN_NUMBERS, Output
from easytorch._utils.timer import compute_fractions
from easytorch.callbacks.gradients import NAMES_BY_LAYER
from easytorch.callbacks.progress import (
    LiveDisplay,
    format_duration,
    format_left,
    format_logs,
    format_number,
    format_rate,
    format_shares,
)


class NotebookDisplay(LiveDisplay):
    """Bar of the current pass above a table with a row for each of the last epochs, updated at most twice a second.

    The bar shows the steps, the recent rate, and the elapsed and the remaining time of the pass and of the fit.
    """

    INTERVAL = 0.5
    # Epochs have rows, so no line is left out.
    FIRST_LINES = sys.maxsize

    def __init__(self) -> None:
        super().__init__()
        self.output = Output()
        self.columns: list[str] = []
        self.rows: collections.deque[dict[str, str]] = collections.deque(maxlen=MAX_EPOCHS)
        self.row_count = 0
        # The row of the running epoch; empty between two epochs.
        self.live_row: dict[str, str] = {}
        # The title of the bar; empty without a bar.
        self.heading = ""
        self.total: int | None = None
        self.position = 0
        # The values of an evaluation, and lines below the table.
        self.values, self.shares, self.notes = "", "", list[str]()
        # "val_" in the validation of a fit.
        self.prefix = ""
        self.shown_logs: Any = None

    # A fit

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock of the fit."""
        super().on_train_begin(logs)
        self.fit_started_at = time.perf_counter()
        # All columns are known before the first epoch ends, so the table keeps its form.
        self.columns = ["epoch", "time", *self.model.log_names()]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the row of the epoch."""
        super().on_epoch_begin(epoch, logs)
        self.prefix = ""
        self.position = self.model.state.epoch_step
        self.live_row = {"epoch": f"{epoch + 1}/{self.params['epochs']}"}
        if not self.output.is_shown:
            self._show()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Finish the row of the epoch."""
        self._add_row({"epoch": self.live_row["epoch"], "time": self._format_elapsed()} | _format_values(logs or {}))
        self.shown_logs = logs
        self.shares = f"{self.title}: {format_shares(compute_fractions(self.model.history.seconds[-1]))}"
        super().on_epoch_end(epoch, logs)
        if time.perf_counter() >= self.redraw_at:
            self._show()

    def on_interrupt(self) -> None:
        """Read the values of the unfinished epoch."""
        super().on_interrupt()
        if self.live_row:
            self.live_row |= _format_values(self.model.metrics.logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the bar, and retain the row of an unfinished epoch."""
        if self.live_row and self.model.state.epoch_step:
            title = f"{self.live_row['epoch']}, {self._describe_stop()}"
            self._add_row(self.live_row | {"epoch": title, "time": self._format_elapsed()})
        self.live_row, self.heading = {}, ""
        super().on_train_end(logs)
        if self.output.is_shown:
            self._show()
        SHOWN_NUMBERS.add(self.shown_logs, self.output)

    def _add_row(self, row: dict[str, str]) -> None:
        self.rows.append(row)
        self.row_count += 1
        self.live_row = {}

    def _describe_stop(self) -> str:
        if self.prefix:
            return "stopped in the validation"
        return f"stopped at {_format_position(self.model.state.epoch_step, self.params['steps'])}"

    # Evaluations and predictions

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the display of a validation or an evaluation."""
        super().on_test_begin(logs)
        name = self.params.get("data_set", "")
        prefix = f"{name}_" if name else ""
        self.prefix = f"val_{prefix}" if self.is_fitting else prefix

    def on_test_end(self, logs: Any = None) -> None:
        """Show the result of an evaluation."""
        super().on_test_end(logs)
        if self.is_validating_between_updates:
            self.prefix, self.position = "", self.step
        if not self.is_fitting:
            self._show()
            SHOWN_NUMBERS.add(logs, self.output)

    def on_predict_end(self, logs: Any = None) -> None:
        """Remove the bar."""
        super().on_predict_end(logs)
        if self.output.is_shown:
            self._show()

    def on_exception(self, error: BaseException) -> None:
        """Remove the bar; of an evaluation, the position of the error stays."""
        super().on_exception(error)
        if self.output.is_shown:
            self._show()

    # What LiveDisplay calls

    def start_pass(self, title: str, total: int | None) -> None:
        """Start a pass; a short one outside of a fit has no bar."""
        self.heading, self.total, self.position = title, total, 0
        if not self.is_fitting:
            self.started_at = time.perf_counter()
            self.redraw_at = self.started_at + self.INTERVAL

    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Show the values so far."""
        self.position = step
        if self.is_fitting:
            self.live_row |= _format_values(logs, self.prefix)
        else:
            self.values = format_logs(logs)
        self._show()

    def end_pass(self) -> None:
        """Remove the bar, unless the fit continues."""
        if not self.is_fitting:
            self.heading = ""

    def print_line(self, line: str, note: str = "") -> None:
        """Show ``line`` below the table, unless it is that of an epoch, which has a row."""
        if not self.is_fitting:
            self.notes.append(line)

    # The page

    def _show(self) -> None:
        """Update the output, and set the time of the next update."""
        started_at = time.perf_counter()
        self.output.show(self._format_page(), self._format_text())
        ended_at = time.perf_counter()
        self.redraw_at = ended_at + max(self.INTERVAL, self.PAUSE_FACTOR * (ended_at - started_at))

    def _format_page(self) -> str:
        parts = [self._format_bar()] if self.heading else []
        rows = [*self.rows, *([self.live_row | {"time": self._format_elapsed()}] if self.live_row else [])]
        if rows:
            parts.append(format_epochs(rows, self.columns, self.row_count + len(rows) - len(self.rows)))
        parts += [f'<div style="white-space:pre-wrap">{escape_text(note)}</div>' for note in self._list_notes()]
        return "".join(parts)

    def _format_text(self) -> str:
        row = self.live_row or (self.rows[-1] if self.rows else {})
        return "  ".join([*map(" ".join, row.items()), *self._list_notes()])

    def _list_notes(self) -> list[str]:
        return [*([self.shares] if self.shares else []), *self.notes]

    def _format_bar(self) -> str:
        size = f' value="{self.position}" max="{self.total}"' if self.total else ""
        facts = [_format_position(self.position, self.total)]
        if self.rate is not None:
            facts.append(format_rate(self.rate))
        facts.append(_format_times(self._format_elapsed(), self.epoch_left))
        if self.is_fitting:
            elapsed = format_duration(time.perf_counter() - self.fit_started_at)
            facts.append(f"fit: {_format_times(elapsed, self.fit_left)}")
        text = escape_text("  ·  ".join([*facts, *([self.values] if self.values else [])]))
        bar = f'<progress{size} style="width:12em;vertical-align:middle"></progress>'
        return f'<div style="white-space:pre-wrap">{bar}  <b>{escape_text(self.heading)}</b>  {text}</div>'


def _format_times(elapsed: str, seconds_left: float | None) -> str:
    left = "" if seconds_left is None else f", {format_left(seconds_left)} left"
    return f"{elapsed} elapsed{left}"


def _format_position(step: int, total: int | None) -> str:
    return f"{step}/{total}" if total else f"step {step}"


def _format_values(logs: Mapping[str, float], prefix: str = "") -> dict[str, str]:
    return {
        f"{prefix}{name}": format_number(name, value)
        for name, value in logs.items()
        if not name.startswith(NAMES_BY_LAYER)
    }
