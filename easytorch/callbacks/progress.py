"""Progress of a run: a live bar in a terminal, or plain lines."""

from __future__ import annotations

import abc
import contextlib
import numbers
import sys
import time
from collections.abc import Mapping
from typing import Any

from easytorch._utils.notebook import in_notebook
from easytorch._utils.paths import printable
from easytorch._utils.registry import did_you_mean
from easytorch._utils.timer import compute_fractions
from easytorch.callbacks.advice import AdviseOnSlowData
from easytorch.callbacks.base import Callback

VERBOSE = (0, 1, 2, "auto")


def progress_callbacks(verbose: int | str) -> list[Callback]:
    """Return the callbacks that display progress.

    Args:
        verbose: 0 displays nothing. 1 and ``"auto"`` display a live bar in a terminal, a bar and a table in a notebook, and
            one plain line per epoch everywhere else. 2 displays the plain lines everywhere.

    Raises:
        ValueError: If it is anything else.
    """
    if verbose not in VERBOSE:
        raise ValueError(
            f"Unknown verbose {verbose!r}.{did_you_mean(verbose, VERBOSE)} Pass 0 (nothing), 1 or 'auto' (a live bar in a "
            "terminal, lines elsewhere), or 2 (one line per epoch). For live curves in a notebook, pass callbacks=[LivePlot()]."
        )
    if verbose == 0:
        return []
    display: Callback
    if verbose == 2:
        display = LineDisplay()
    elif in_notebook():
        # That module imports this one.
        from easytorch.callbacks.notebook import NotebookDisplay

        display = NotebookDisplay()
    else:
        display = ProgressBar() if _in_terminal() else LineDisplay()
    return [display, AdviseOnSlowData()]


def _in_terminal() -> bool:
    from rich.console import Console

    console = Console()
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter


def format_number(name: str, value: Any) -> str:
    """Return ``value`` with four decimals, or in scientific notation if it is very small or large.

    Args:
        name: Name of the value; a learning rate gets four significant digits.
        value: The number. Anything else that a callback may log, such as text, a list or None, is returned as text.
    """
    if not isinstance(value, numbers.Real):
        return str(value)
    value = float(value)
    if name == "lr" or name.startswith("lr_"):
        return f"{value:.4g}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def format_logs(logs: Mapping[str, float]) -> str:
    """Return ``logs`` as text: ``loss 0.2134  accuracy 0.9371``."""
    # Names may come from a file, and a custom step may log any text.
    return "  ".join(f"{printable(name)} {printable(format_number(name, value))}" for name, value in logs.items())


def format_shares(shares: Mapping[str, float]) -> str:
    """Return the shares of an epoch's time as text: ``data 12%, model 61%, optimizer 15%, rest 12%``."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def format_duration(seconds: float) -> str:
    """Return a duration as text: ``1:02:05``, ``2:05``, ``12 s``, ``1.3 s`` or ``45 ms``."""
    if round(seconds * 1000) < 1000:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def format_rate(rate: float) -> str:
    """Return steps per second as text: ``1,234/s``, or ``0.25/s`` for a slow one."""
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


class LineDisplay(Callback):
    """Print one plain line per epoch or evaluation, without control characters."""

    priority = 20
    optional = True
    all_ranks = False

    def __init__(self) -> None:
        # During a fit an evaluation belongs to an epoch and has no line.
        self.is_fitting = False
        self.step = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Record that a fit runs."""
        self.is_fitting = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.started_at = time.perf_counter()
        self.title = f"Epoch {epoch + 1}/{self.params['epochs']}"
        self.step = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the update."""
        self.step = batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Print the line of the epoch."""
        steps = f"{self.step} step" + "s" * (self.step != 1)
        line = f"{self.title}  {steps}  {self._format_elapsed()}  {format_logs(logs or {})}"
        self.print_line(line, format_shares(compute_fractions(self.model.history.seconds[-1])))

    def on_train_end(self, logs: Any = None) -> None:
        """Record that the fit has ended."""
        self.is_fitting = False

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the clock of an evaluation."""
        if not self.is_fitting:
            self.started_at = time.perf_counter()

    def on_test_end(self, logs: Any = None) -> None:
        """Print the line of an evaluation."""
        if not self.is_fitting:
            self.print_line(f"Evaluated on {self.params['data']}  {self._format_elapsed()}  {format_logs(logs or {})}")

    def print_line(self, line: str, note: str = "") -> None:
        """Print ``line``, followed by ``note`` in parentheses."""
        print(f"{line}  ({note})" if note else line, flush=True)

    def _format_elapsed(self) -> str:
        return format_duration(time.perf_counter() - self.started_at)


class LiveDisplay(LineDisplay, abc.ABC):
    """Base class of displays that are redrawn during a pass, at most ten times a second."""

    # Shortest time between two redraws, in seconds.
    INTERVAL = 0.1
    # The pause after a redraw takes at least this many times as long as the redraw.
    PAUSE_FACTOR = 30

    def __init__(self) -> None:
        super().__init__()
        self.redraw_at = 0.0
        self.pass_step, self.pass_began_at, self.fit_began_at = 0, 0.0, 0.0
        self.pass_total: int | None = None

    @property
    def rate(self) -> float | None:
        """Steps per second of the current pass; None if it is unknown."""
        return self.pass_step / (time.perf_counter() - self.pass_began_at) if self.pass_step else None

    @property
    def epoch_left(self) -> float | None:
        """Remaining seconds of the current pass; None if they are unknown."""
        return (self.pass_total - self.pass_step) / self.rate if self.pass_total and self.rate else None

    @property
    def fit_left(self) -> float | None:
        """Remaining seconds of the fit; None if they are unknown."""
        if not self.is_fitting or self.epoch_left is None:
            return None
        state = self.model.state
        finished = state.epoch - state.first + self.pass_step / (self.pass_total or 1)
        return (time.perf_counter() - self.fit_began_at) * ((state.last - state.first) / finished - 1)

    @abc.abstractmethod
    def start_pass(self, title: str, total: int | None) -> None:
        """Start the display of a pass.

        Args:
            title: Title of the pass.
            total: Number of steps; None if it is unknown.
        """

    @abc.abstractmethod
    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Display that ``step`` steps are finished, with the values in ``logs``."""

    @abc.abstractmethod
    def end_pass(self) -> None:
        """Remove the display of the pass from the screen."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock of the fit."""
        super().on_train_begin(logs)
        self.fit_began_at = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the display of the epoch."""
        super().on_epoch_begin(epoch)
        self._start_clock(self.params["steps"])
        self.start_pass(self.title, self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw if it is due."""
        self.step = batch + 1
        if time.perf_counter() >= self.redraw_at:
            self._redraw(batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace the display by the line of the epoch."""
        self.end_pass()
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the display of an interrupted epoch."""
        self.end_pass()
        super().on_train_end(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the display of a validation or an evaluation."""
        super().on_test_begin(logs)
        self._start_clock(self.params["test_steps"])
        self.start_pass(f"{self.title} validation" if self.is_fitting else "Evaluating", self.params["test_steps"])

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw if it is due."""
        if time.perf_counter() >= self.redraw_at:
            self._redraw(batch + 1, logs)

    def on_test_end(self, logs: Any = None) -> None:
        """Remove the display; an evaluation outside of a fit leaves a line."""
        self.end_pass()
        super().on_test_end(logs)

    def on_predict_begin(self, logs: Any = None) -> None:
        """Start the display of a prediction."""
        self._start_clock(self.params["test_steps"])
        self.start_pass("Predicting", self.params["test_steps"])

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw if it is due."""
        if time.perf_counter() >= self.redraw_at:
            self._redraw(batch + 1, {})

    def on_predict_end(self, logs: Any = None) -> None:
        """Remove the display."""
        self.end_pass()

    def _start_clock(self, total: int | None) -> None:
        self.pass_step, self.pass_total, self.pass_began_at = 0, total, time.perf_counter()

    def _redraw(self, step: int, logs: Any) -> None:
        self.pass_step = step
        started_at = time.perf_counter()
        self.draw(step, dict(logs.items()))
        ended_at = time.perf_counter()
        self.redraw_at = ended_at + max(self.INTERVAL, self.PAUSE_FACTOR * (ended_at - started_at))


class ProgressBar(LiveDisplay):
    """Live bar in a terminal, drawn by rich, with step, speed, remaining time and values; each epoch leaves a line."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(highlight=False)
        self.live: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Draw the empty bar."""
        super().on_epoch_begin(epoch)
        # Steps from before a resumption took no time on this clock.
        self.first_step = self.model.state.epoch_step
        self.draw(self.first_step, {})

    def start_pass(self, title: str, total: int | None) -> None:
        """Start a pass; one that ends before the first redraw is due has no bar."""
        self.end_pass()
        self.heading, self.total, self.pass_started_at = title, total, time.perf_counter()
        self.first_step = 0
        self.redraw_at = self.pass_started_at + self.INTERVAL

    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Draw the bar."""
        if self.live is None:
            from rich.live import Live

            # A thread that refreshes the bar would be copied into the workers of a DataLoader.
            self.live = Live(console=self.console, transient=True, auto_refresh=False)
            self.live.start()
        self.live.update(self._format_bar(step, logs), refresh=True)

    def end_pass(self) -> None:
        """Remove the bar."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def close_on_failure(self) -> None:
        """Restore standard output, which rich redirects."""
        with contextlib.suppress(Exception, SystemExit):
            self.end_pass()

    def print_line(self, line: str, note: str = "") -> None:
        """Print ``line`` with a bold title, followed by a dim ``note`` if it fits on the line."""
        from rich.text import Text

        text = Text(line)
        title, gap, _ = line.partition("  ")
        text.stylize("bold", 0, len(title) if gap else 0)
        if note and text.cell_len + len(note) + 4 <= self.console.width:
            text.append(f"  ({note})", "dim")
        self.console.print(text, soft_wrap=True)

    def _format_bar(self, step: int, logs: dict[str, float]) -> Any:
        """Return the bar as one line of text, which rich draws three times as fast as its columns."""
        from rich.text import Text

        width, total = self.console.width, self.total
        line = Text(f"{self.heading} ", no_wrap=True, overflow="ellipsis", end="")
        if total and width >= 60:
            length = 20 if width >= 100 else 10
            filled = min(length, step * length // total)
            line.append("━" * filled, "bar.complete" if step < total else "bar.finished")
            line.append("━" * (length - filled) + " ", "bar.back")
        line.append(f"{step:>{len(str(total))}}/{total}" if total else str(step))
        if step > self.first_step and width >= 70:
            line.append(self._format_speed(step), "dim")
        line.append(f" {format_logs(logs)}")
        return line

    def _format_speed(self, step: int) -> str:
        """Return the steps per second, if there is room, and the remaining time."""
        speed = (step - self.first_step) / max(time.perf_counter() - self.pass_started_at, 1e-9)
        text = ""
        if self.console.width >= 90:
            text = f" {speed:,.0f}/s" if speed >= 10 else f" {speed:.2g}/s"
        if self.total and step < self.total:
            text += f"  {format_duration((self.total - step) / speed)} left"
        return text
