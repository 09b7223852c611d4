"""Progress of a run: a live bar in a terminal, or plain lines."""

from __future__ import annotations

import abc
import contextlib
import math
import numbers
import sys
import time
from collections.abc import Mapping
from typing import Any

from easytorch._utils.notebook import in_notebook
from easytorch._utils.paths import printable
from easytorch._utils.registry import did_you_mean
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.timer import compute_fractions
from easytorch.callbacks.advice import AdviseOnSlowData
from easytorch.callbacks.base import Callback
from easytorch.callbacks.checkpoint import saved_places
from easytorch.callbacks.fit_summary import describe_restored, find_best
from easytorch.callbacks.gradients import NAMES_BY_LAYER
from easytorch.callbacks.line_layout import Forms, fit_to_width
from easytorch.callbacks.time_left import FitClock, PassClock

VERBOSE = (0, 1, 2, "auto")
SHORT_EPOCHS = "From here on at most {:g} epochs per second are printed; model.history has all."


def progress_callbacks(verbose: int | str) -> list[Callback]:
    """Return the callbacks that display progress.

    Args:
        verbose: 0 displays nothing. 1 and ``"auto"`` display a live bar in a terminal, a table in a notebook, and one plain
            line per epoch everywhere else. 2 displays the plain lines everywhere.

    Raises:
        ValueError: If it is anything else.
    """
    check_verbose(verbose)
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


def check_verbose(verbose: int | str) -> None:
    """Raise a ``ValueError`` if ``verbose`` is not 0, 1, 2 or ``"auto"``."""
    if verbose not in VERBOSE:
        raise ValueError(
            f"Unknown verbose {verbose!r}.{did_you_mean(verbose, VERBOSE)} Pass 0 (nothing), 1 or 'auto' (a live bar in a "
            "terminal, lines elsewhere), or 2 (one line per epoch). For live curves in a notebook, pass callbacks=[LivePlot()]."
        )


def _in_terminal() -> bool:
    with preserve_rng_state():  # the import draws a number from Python's generator
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


def format_left(seconds: float) -> str:
    """Return a remaining time in whole seconds, rounded up: ``1:02:05``, ``2:05`` or ``12 s``."""
    seconds = math.ceil(seconds)
    return f"{seconds} s" if seconds < 60 else format_duration(seconds)


def format_rate(rate: float) -> str:
    """Return steps per second as text: ``1,234/s``, or ``0.25/s`` for a slow one."""
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


class LineDisplay(Callback):
    """Print one plain line per epoch or evaluation, without control characters, and one at the end of a fit.

    A fit with very short epochs prints the first ``FIRST_LINES`` epochs, then at most one in ``LINE_INTERVAL`` seconds, and
    always the last one.
    """

    priority = 20
    optional = True
    all_ranks = False

    FIRST_LINES = 50
    LINE_INTERVAL = 0.5

    def __init__(self) -> None:
        # During a fit an evaluation belongs to an epoch and has no line.
        self.is_fitting = self.is_in_epoch = self.is_validating = self.has_stopped = False
        self.step = self.test_step = self.first_step = 0
        self.logs: Any = {}
        self.first_row: int | None = None
        self.line_count = self.epoch_count = 0
        self.line_due_at, self.started_at = 0.0, -math.inf
        # The line of the last epoch, if it was not printed.
        self.unprinted: dict[str, Forms] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Record that a fit runs."""
        self.is_fitting = True
        self.fit_started_at = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.started_at = time.perf_counter()
        self.title = f"Epoch {epoch + 1}/{self.params['epochs']}"
        # Not 0 in a resumed epoch, of which perhaps only the validation is left.
        self.step = self.first_step = self.model.state.epoch_step
        self.epoch, self.is_in_epoch, self.is_validating = epoch, True, False
        if self.first_row is None:
            state = self.model.state
            self.first_row = len(self.model.history.rows) - (state.epoch - state.first)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the update."""
        self.step = batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Print the line of the epoch, unless the epochs are very short."""
        self.is_in_epoch = self.is_validating = False
        self.epoch_count += 1
        shares = compute_fractions(self.model.history.seconds[-1])
        parts: dict[str, Forms] = {
            "title": [self.title],
            "steps": [f"  {self.step} step{'s' * (self.step != 1)}", ""],
            "time": [f"  {self._format_elapsed()}", ""],
            **_value_parts(logs or {}),
            "shares": [f"  ({format_shares(shares)})", ""],
        }
        now = time.perf_counter()
        if self.line_count < self.FIRST_LINES or now >= self.line_due_at:
            self._print_epoch(parts, now)
            return
        if self.line_count == self.FIRST_LINES and self.unprinted is None:
            self.print_parts({"text": [SHORT_EPOCHS.format(1 / self.LINE_INTERVAL)]})
        self.unprinted = parts

    def _print_epoch(self, parts: dict[str, Forms], now: float) -> None:
        self.line_count, self.unprinted = self.line_count + 1, None
        self.line_due_at = now + self.LINE_INTERVAL
        self.print_parts(parts)

    def on_interrupt(self) -> None:
        """Print the line of the unfinished epoch."""
        self._stop()

    def on_exception(self, error: BaseException) -> None:
        """Print the line of the unfinished epoch or evaluation."""
        self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Print the line of the last epoch, if it is missing, and a line about the fit, if it was not stopped."""
        self.is_fitting = False
        if self.unprinted is not None:
            self._print_epoch(self.unprinted, time.perf_counter())
        if not self.has_stopped:
            self._print_summary()

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the clock of an evaluation."""
        self.is_validating, self.test_step = True, 0
        if not self.is_fitting:
            self.started_at = time.perf_counter()
            self.title, self.logs = "Evaluating", {}

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the batch."""
        self.test_step, self.logs = batch + 1, logs

    def on_test_end(self, logs: Any = None) -> None:
        """Print the line of an evaluation."""
        self.is_validating = False
        if not self.is_fitting:
            self.print_parts(
                {
                    "title": ["Evaluated"],
                    "data": [f" on {self.params['data']}", ""],
                    "time": [f"  {self._format_elapsed()}", ""],
                    **_value_parts(logs or {}),
                }
            )

    def print_parts(self, parts: Mapping[str, Forms]) -> None:
        """Print the parts of a line in their longest forms."""
        self.print_line("".join(forms[0] for forms in parts.values()))

    def print_line(self, line: str, note: str = "") -> None:
        """Print ``line``, followed by ``note`` in parentheses."""
        print(f"{line}  ({note})" if note else line, flush=True)

    def _stop(self) -> None:
        """Print where an epoch or an evaluation was stopped; nothing if that was before its first step."""
        self.has_stopped = True
        if self.is_in_epoch and self.model.state.epoch > self.epoch:
            # Another callback failed after the epoch was recorded.
            self.on_epoch_end(self.epoch, self.model.history.rows[-1])
            return
        is_validating = self.is_validating and self.test_step > 0
        if not is_validating and not (self.is_in_epoch and self.step > self.first_step):
            return
        name = "test_steps" if is_validating else "steps"
        step, total = self.test_step if is_validating else self.step, self.params.get(name)
        place = " validation" * (is_validating and self.is_fitting)
        if is_validating and (data_set := self.params.get("data_set")):
            place += f" {data_set}"
        parts: dict[str, Forms] = {
            "title": [self.title],
            "stop": [f"  stopped at{place} {step}" + (f"/{total}" if total else "")],
            "time": [f"  {self._format_elapsed()}", ""],
            # A stopped validation leaves the training values of its epoch.
            **_value_parts(_read_logs(self.model.metrics.logs if self.is_in_epoch else self.logs)),
        }
        self.is_in_epoch = self.is_validating = False
        self.print_parts(parts)

    def _print_summary(self) -> None:
        """Print the number of epochs and their time, the best epoch, and where the run or the model was saved.

        Nothing is printed if that would only repeat the line of one epoch.
        """
        places = saved_places(self.model.callbacks.callbacks)
        if self.epoch_count == 0 or (self.epoch_count == 1 and not places):
            return
        history = self.model.history
        best = find_best(self.model, history.epoch[self.first_row :], history.rows[self.first_row :])
        seconds = format_duration(time.perf_counter() - self.fit_started_at)
        text = f"Trained {self.epoch_count:,} epoch{'s' * (self.epoch_count != 1)} in {seconds}"
        parts: dict[str, Forms] = {"text": [text]}
        if self.line_count < self.epoch_count:
            parts["text"] = [f"{text} ({self.line_count:,} printed)"]
        if best is not None:
            name, value = printable(best.name), format_number(best.name, best.value)
            parts["best"] = [f"  best {name} {value} in epoch {best.epoch + 1}"]
        parts["restored"] = [describe_restored(self.model, best)]
        if places:
            parts["places"] = [f"  saved in {' and '.join(printable(repr(place)) for place in places)}"]
        self.print_parts(parts)

    def _format_elapsed(self) -> str:
        return format_duration(time.perf_counter() - self.started_at)


def _value_parts(logs: Mapping[str, Any]) -> dict[str, Forms]:
    """Return the part of each value of ``logs``."""
    # Names may come from a file, and a custom step may log any text.
    return {
        f"value {name}": [f"  {printable(name)} {printable(format_number(name, value))}", ""]
        for name, value in logs.items()
        if not name.startswith(NAMES_BY_LAYER)
    }


def _read_logs(logs: Any) -> dict[str, Any]:
    """Return the values of an epoch that was stopped, as far as they can be read."""
    try:
        return dict(logs.items())
    except Exception:  # after an error of the device, which the user sees
        return {}


def _order_of(parts: Mapping[str, Forms]) -> list[str]:
    """Return the parts of a finished line in the order in which they are dropped, the least important first."""
    values = [name for name in parts if name.startswith("value ")]
    rates = [name for name in values if name == "value lr" or name.startswith("value lr_")]
    validation = [name for name in values if name.startswith("value val_") and name != "value val_loss"]
    losses = [name for name in values if name in ("value loss", "value val_loss")]
    training = [name for name in values if name not in {*rates, *validation, *losses}]
    # One loss is never dropped.
    order = ["shares", *rates, "steps", "data", "time", *reversed(training), *losses[:-1], *reversed(validation)]
    return [name for name in order if name in parts]


class LiveDisplay(LineDisplay, abc.ABC):
    """Base class of displays that are redrawn during a pass, at most ten times a second."""

    # Shortest time between two redraws, in seconds.
    INTERVAL = 0.1
    # The pause after a redraw takes at least this many times as long as the redraw.
    PAUSE_FACTOR = 30

    def __init__(self) -> None:
        super().__init__()
        # No step is looked at before ``due_at``, and nothing is drawn before ``redraw_at``.
        self.due_at = self.redraw_at = 0.0
        self.fit_clock, self.clock = FitClock(), PassClock()

    @property
    def rate(self) -> float | None:
        """Steps per second of the current pass, over the last few seconds; None if it is unknown."""
        return self._pass_clock.rate

    @property
    def epoch_left(self) -> float | None:
        """Remaining seconds of the current pass: of the updates of the epoch, or of its validation; None if they are unknown."""
        return self._pass_clock.left

    @property
    def fit_left(self) -> float | None:
        """Remaining seconds of the fit, with validations and all later epochs; None if they are unknown."""
        if not self.is_fitting:
            return None
        state, clock = self.model.state, self.fit_clock
        first = self.epoch + 1 if clock.is_validating else self.epoch
        return clock.left(state.last - self.epoch - 1, self.params["count_validations"](first, state.last))

    @property
    def _pass_clock(self) -> PassClock:
        return self.fit_clock.current if self.is_fitting else self.clock

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

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the display of the epoch."""
        self.fit_clock.end_training(self.step, time.perf_counter())
        super().on_epoch_begin(epoch)
        self.fit_clock.start_epoch(self.model.state.epoch_step, self.params["steps"], self.started_at)
        self._start_pass(self.title, self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw if it is due."""
        self.step = batch + 1
        if time.perf_counter() >= self.due_at:
            now = time.perf_counter()
            self.fit_clock.record_update(self.step, now)
            self._redraw(self.step, logs, now)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace the display by the line of the epoch."""
        self.fit_clock.end_training(self.step, time.perf_counter())
        self.end_pass()
        super().on_epoch_end(epoch, logs)

    def on_exception(self, error: BaseException) -> None:
        """Replace the display by the line of the unfinished pass."""
        super().on_exception(error)
        self.is_fitting = False
        self.end_pass()

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the display, and print what is missing."""
        self.is_fitting = False
        self.end_pass()
        super().on_train_end(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the display of a validation or an evaluation."""
        super().on_test_begin(logs)
        now, total = time.perf_counter(), self.params["test_steps"]
        if not self.is_fitting:
            self.clock.start(0, total, now)
        elif self.is_validating_between_updates:
            self.fit_clock.record_update(self.step, now)
            self.fit_clock.start_validation(total, now)
        else:
            self.fit_clock.end_training(self.step, now)
            self.fit_clock.start_validation(total, now)
        self._start_pass(self._describe_evaluation(), total)

    @property
    def is_validating_between_updates(self) -> bool:
        """Whether the updates of the epoch continue after this validation."""
        return self.is_fitting and self.params.get("validates_between_updates", False)

    def _describe_evaluation(self) -> str:
        name = self.params.get("data_set", "")
        title = f"{self.title} validation" if self.is_fitting else "Evaluating"
        return f"{title} {name}" if name else title

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw if it is due."""
        self.test_step, self.logs = batch + 1, logs
        if time.perf_counter() >= self.due_at:
            now = time.perf_counter()
            self._pass_clock.record(batch + 1, now)
            self._redraw(batch + 1, logs, now)

    def on_test_end(self, logs: Any = None) -> None:
        """Remove the display; an evaluation outside of a fit leaves a line."""
        now = time.perf_counter()
        if self.is_fitting:
            self.fit_clock.end_validation(now)
        self.end_pass()
        super().on_test_end(logs)
        if self.is_validating_between_updates:
            self.fit_clock.continue_training(now)
            self._start_pass(self.title, self.params["steps"])

    def on_predict_begin(self, logs: Any = None) -> None:
        """Start the display of a prediction."""
        self.clock.start(0, self.params["test_steps"], time.perf_counter())
        self._start_pass("Predicting", self.params["test_steps"])

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw if it is due."""
        if (now := time.perf_counter()) >= self.due_at:
            self.clock.record(batch + 1, now)
            self._redraw(batch + 1, {}, now)

    def on_predict_end(self, logs: Any = None) -> None:
        """Remove the display."""
        self.end_pass()

    def _start_pass(self, title: str, total: int | None) -> None:
        self.start_pass(title, total)
        # The clock needs the time of the first step.
        self.due_at = 0.0

    def _redraw(self, step: int, logs: Any, now: float) -> None:
        """Draw, unless the first step ended before a redraw is due."""
        if now >= self.redraw_at:
            self.draw(step, dict(logs.items()))
            ended_at = time.perf_counter()
            self.redraw_at = ended_at + max(self.INTERVAL, self.PAUSE_FACTOR * (ended_at - now))
        self.due_at = self.redraw_at


class ProgressBar(LiveDisplay):
    """Live bar in a terminal, drawn by rich, with step, speed, remaining time and values; each epoch leaves a line.

    Lines fit the width of the terminal: their least important parts are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(highlight=False)
        self.live: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Draw the empty bar, unless the epochs are very short."""
        is_due = time.perf_counter() >= self.started_at + self.INTERVAL
        super().on_epoch_begin(epoch)
        if is_due:
            self.draw(self.step, {})
            self.redraw_at = time.perf_counter() + self.INTERVAL

    def start_pass(self, title: str, total: int | None) -> None:
        """Start a pass; one that ends before the first redraw is due has no bar."""
        self.heading, self.total = title, total
        if not self.is_fitting:
            self.redraw_at = time.perf_counter() + self.INTERVAL

    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Draw the bar."""
        if self.live is None:
            from rich.live import Live

            # A thread that refreshes the bar would be copied into the workers of a DataLoader.
            self.live = Live(
                console=self.console, transient=True, auto_refresh=False, redirect_stderr=sys.stderr.isatty()
            )
            self.live.start()
        self.live.update(self._format_bar(step, logs), refresh=True)

    def end_pass(self) -> None:
        """Remove the bar, unless another pass of the fit follows or a line replaces it."""
        if not self.is_fitting:
            self._remove_bar()

    def close_on_failure(self) -> None:
        """Restore standard output, which rich redirects."""
        with contextlib.suppress(Exception, SystemExit):
            self._remove_bar()

    def print_parts(self, parts: Mapping[str, Forms]) -> None:
        """Replace the bar by a line with a bold title, without the parts that do not fit."""
        from rich.cells import cell_len
        from rich.text import Text

        self._remove_bar()
        self.redraw_at = time.perf_counter() + self.INTERVAL
        texts = fit_to_width(parts, _order_of(parts), self.console.width, cell_len)
        styles = {"title": "bold", "shares": "dim"}
        line = Text.assemble(*((text, styles.get(name, "")) for name, text in texts.items()))
        # What is still too long is wrapped between words.
        self.console.print(line, soft_wrap=line.cell_len <= self.console.width)

    def _remove_bar(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _format_bar(self, step: int, logs: dict[str, float]) -> Any:
        """Return the bar as one line of text, which rich draws three times as fast as its columns."""
        from rich.cells import cell_len
        from rich.text import Text

        total = self.total
        values = _value_parts(logs)
        parts: dict[str, Forms] = {
            "heading": [self.heading],
            "bar": [" " + 20 * "━", " " + 10 * "━", ""] if total else 3 * [""],
            "count": [f" {step:>{len(str(total))}}/{total}" if total else f" {step}"],
            "rate": ["" if self.rate is None else f" {format_rate(self.rate)}", ""],
            "left": self._format_left(),
            **values,
        }
        # Each occurrence shortens a part further, the least important first. The first value is usually the loss.
        order = ["bar", "rate", "left", "bar", *reversed(list(values)[1:]), "left", "left", *list(values)[:1]]
        texts = fit_to_width(parts, order, self.console.width - 1, cell_len)
        line = Text(texts["heading"], no_wrap=True, overflow="ellipsis", end="")
        self._append_bar(line, step, len(texts["bar"]) - 1)
        line.append(texts["count"])
        line.append(texts["rate"], "dim")
        for name in ("left", *values):
            line.append(texts[name])
        return line

    def _append_bar(self, line: Any, step: int, length: int) -> None:
        """Append a bar of ``length`` cells."""
        if length <= 0:
            return
        total = self.total or 1
        filled = min(length, step * length // total)
        full, rest = ("━", "━") if self.console.encoding.startswith("utf") else ("#", "-")
        if self.console.no_color:
            rest = " "
        line.append(" ")
        line.append(full * filled, "bar.complete" if step < total else "bar.finished")
        line.append(rest * (length - filled), "bar.back")

    def _format_left(self) -> Forms:
        """Return the remaining time of the pass and of the fit, and its shorter forms."""
        epoch = "" if not self.epoch_left else f"{format_left(self.epoch_left)} left"
        fit = "" if not self.fit_left else f"all {format_left(self.fit_left)}"
        if not epoch or not fit or f"{fit} left" == f"all {epoch}":
            text = f"  {epoch or f'{fit} left'}" if epoch or fit else ""
            return [text, text, text, ""]
        return [f"  epoch {epoch}, {fit} left", f"  {epoch}, {fit}", f"  {epoch}", ""]
