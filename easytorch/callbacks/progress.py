"""Seeing it run: a live bar in a terminal, one plain line for each epoch elsewhere, a table in a notebook."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from easytorch._utils.notebook import in_notebook
from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback

VERBOSE = (0, 1, 2, "auto")


def progress_callbacks(verbose: int | str) -> list[Callback]:
    """Return the callbacks that show what ``verbose`` asks for.

    Args:
        verbose: 0 shows nothing. 1 and ``"auto"`` show a live bar in a terminal, a table in a notebook, and one plain line
            for each epoch everywhere else. 2 shows the plain lines everywhere.

    Raises:
        ValueError: If it is something else.
    """
    if verbose not in VERBOSE:
        raise ValueError(
            f"Unknown verbose {verbose!r}.{did_you_mean(verbose, VERBOSE)} Pass 0 (nothing), 1 or 'auto' (a live bar in a terminal, "
            "lines elsewhere), or 2 (one line for each epoch)."
        )
    if verbose == 0:
        return []
    if verbose == 2:
        return [Lines()]
    if in_notebook():
        return [Table()]
    return [Bar()] if _in_terminal() else [Lines()]


def _in_terminal() -> bool:
    from rich.console import Console

    console = Console()
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter


def number(name: str, value: float | str) -> str:
    """Return ``value`` as people like to read it: four decimals, scientific where those would hide it."""
    if isinstance(value, str):  # of a callback of the user's
        return value
    if name == "lr" or name.startswith("lr_"):
        return f"{value:.4g}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def values(logs: Mapping[str, float]) -> str:
    """Return ``loss 0.2134  accuracy 0.9371``."""
    return "  ".join(f"{name} {number(name, value)}" for name, value in logs.items())


def parts(shares: Mapping[str, float]) -> str:
    """Return ``data 12%, model 61%, optimizer 15%, rest 12%``."""
    return ", ".join(f"{part} {share:.0%}" for part, share in shares.items())


def duration(seconds: float) -> str:
    """Return ``1:02:05``, ``2:05``, ``12 s``, ``1.3 s`` or ``45 ms``."""
    if round(seconds * 1000) < 1000:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines(Callback):
    """One plain line for each epoch, without a single control character."""

    priority = 20
    optional = True
    all_ranks = False

    WAIT, PATIENCE = 0.3, 1.0  # the share and the seconds of an epoch above which waiting for data is told

    def __init__(self) -> None:
        self.fitting = self.advised = False
        self.step = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Note that evaluations belong to epochs from now on."""
        self.fitting, self.advised = True, False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.began = time.perf_counter()
        self.title = f"Epoch {epoch + 1}/{self.params['epochs']}"
        self.step = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the update."""
        self.step = batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the epoch's line."""
        seconds = time.perf_counter() - self.began
        steps = f"{self.step} step" + "s" * (self.step != 1)
        self.write(
            f"{self.title}  {steps}  {duration(seconds)}  {values(logs or {})}", parts(self.model.history.shares[-1])
        )
        self.advise()

    def advise(self) -> None:
        """Name the cure, once in a fit, if an epoch has waited long for its data."""
        data, share = self.model.history.seconds[-1]["data"], self.model.history.shares[-1]["data"]
        if self.advised or share <= self.WAIT or data <= self.PATIENCE or self.model.feed is None:
            return
        if cure := self.model.feed.cure(self.model.device):
            self.advised = True
            self.write(f"Waiting for data took {share:.0%} of this epoch. {cure}")

    def on_train_end(self, logs: Any = None) -> None:
        """Note that the fit is over."""
        self.fitting = False

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the clock, outside of a fit."""
        if not self.fitting:
            self.began = time.perf_counter()

    def on_test_end(self, logs: Any = None) -> None:
        """Write the evaluation's line, outside of a fit."""
        if not self.fitting:
            seconds = time.perf_counter() - self.began
            self.write(f"Evaluated on {self.params['data']}  {duration(seconds)}  {values(logs or {})}")

    def write(self, line: str, note: str = "") -> None:
        """Write one line, a note behind it."""
        print(f"{line}  ({note})" if note else line, flush=True)


class EndlessNotice(Callback):
    """Tells, once in a fit over data without a length, that its first epoch takes long: the data may never end."""

    all_ranks = False

    PATIENCE = 60.0  # seconds

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self.due = time.perf_counter() + self.PATIENCE

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the clock."""
        if time.perf_counter() >= self.due:
            self.due = math.inf
            warn(
                f"The first epoch has lasted more than a minute, {batch + 1:,} updates, and nobody knows when it ends: this data "
                "has no length. If it goes on for ever, pass the updates in an epoch: fit(..., steps_per_epoch=1000)."
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Be quiet: the data does end."""
        self.due = math.inf


class Live(Lines):
    """What the bar and the table share: they redraw at most ten times a second, and spend little time on it."""

    INTERVAL = 0.1  # seconds between two looks at the logs
    SHARE = 30  # how many times longer than a redraw the pause after it is, at least

    def __init__(self) -> None:
        super().__init__()
        self.due = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin the epoch's bar."""
        super().on_epoch_begin(epoch)
        self.begin(self.title, self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw, if it is time."""
        self.step = batch + 1
        if time.perf_counter() >= self.due:
            self._draw(batch + 1, logs)

    def on_test_begin(self, logs: Any = None) -> None:
        """Begin the bar of the validation or evaluation."""
        super().on_test_begin(logs)
        self.begin(f"{self.title} validation" if self.fitting else "Evaluating", self.params["test_steps"])

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw, if it is time."""
        if time.perf_counter() >= self.due:
            self._draw(batch + 1, logs)

    def on_predict_begin(self, logs: Any = None) -> None:
        """Begin the bar of the prediction."""
        self.begin("Predicting", self.params["test_steps"])

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Redraw, if it is time."""
        if time.perf_counter() >= self.due:
            self._draw(batch + 1, {})

    def on_predict_end(self, logs: Any = None) -> None:
        """Take the bar away."""
        self.end()

    def on_test_end(self, logs: Any = None) -> None:
        """Take the bar away and, outside of a fit, leave a line."""
        self.end()
        super().on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Take the bar away and leave the epoch's line."""
        self.end()
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the bar away, should an epoch have been interrupted."""
        self.end()
        super().on_train_end(logs)

    def _draw(self, step: int, logs: Any) -> None:
        began = time.perf_counter()
        self.draw(step, dict(logs.items()))
        ended = time.perf_counter()
        self.due = ended + max(self.INTERVAL, self.SHARE * (ended - began))

    def begin(self, title: str, total: int | None) -> None:
        """Begin a pass of ``total`` steps, None where nobody knows."""
        raise NotImplementedError(f"{type(self).__name__} must define begin()")

    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Show that ``step`` steps are done."""
        raise NotImplementedError(f"{type(self).__name__} must define draw()")

    def end(self) -> None:
        """End the pass; nothing of it stays on the screen."""
        raise NotImplementedError(f"{type(self).__name__} must define end()")


class Bar(Live):
    """A live bar by rich: title, bar, step, speed, remaining time, values; one line stays for each epoch."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(highlight=False)
        self.live: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Draw the empty bar."""
        super().on_epoch_begin(epoch)
        self.before = self.model.state.epoch_step  # made before the epoch was resumed, in no time of this clock
        self.draw(self.before, {})

    def begin(self, title: str, total: int | None) -> None:
        """Begin a pass of ``total`` steps; what is over before the first drawing is due needs no bar."""
        self.end()
        self.heading, self.total, self.timer = title, total, time.perf_counter()
        self.before = 0
        self.due = self.timer + self.INTERVAL

    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Show that ``step`` steps are done."""
        if self.live is None:
            from rich.live import Live as Region

            # No refreshing thread: it would be copied into the loader's workers, and the loop redraws often enough.
            self.live = Region(console=self.console, transient=True, auto_refresh=False)
            self.live.start()
        self.live.update(self._line(step, logs), refresh=True)

    def _line(self, step: int, logs: dict[str, float]) -> Any:
        """Return what is shown: one line of text, which rich draws in a third of the time that its columns take."""
        from rich.text import Text

        width, total = self.console.width, self.total
        line = Text(f"{self.heading} ", no_wrap=True, overflow="ellipsis", end="")
        if total and width >= 60:
            long = 20 if width >= 100 else 10
            full = min(long, step * long // total)
            line.append("━" * full, "bar.complete" if step < total else "bar.finished")
            line.append("━" * (long - full) + " ", "bar.back")
        line.append(f"{step:>{len(str(total))}}/{total}" if total else str(step))
        if step > self.before and width >= 70:
            pace = (step - self.before) / max(time.perf_counter() - self.timer, 1e-9)
            if width >= 90:
                line.append(f" {pace:,.0f}/s" if pace >= 10 else f" {pace:.2g}/s", "dim")
            if total and step < total:
                line.append(f"  {duration((total - step) / pace)} left", "dim")
        line.append(f" {values(logs)}")
        return line

    def end(self) -> None:
        """Take the bar away."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def close_on_failure(self) -> None:
        """Give standard output back, which rich has taken."""
        with contextlib.suppress(Exception, SystemExit):
            self.end()

    def write(self, line: str, note: str = "") -> None:
        """Write one line, the title bold and the note, where there is room for it, dim behind it."""
        from rich.text import Text

        text = Text(line)
        title, gap, _ = line.partition("  ")
        text.stylize("bold", 0, len(title) if gap else 0)
        if note and text.cell_len + len(note) + 4 <= self.console.width:
            text.append(f"  ({note})", "dim")
        self.console.print(text, soft_wrap=True)


class Table(Live):
    """An HTML table in a notebook, a row for each epoch, the last one live."""

    INTERVAL = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []
        self.handle: Any = None

    def begin(self, title: str, total: int | None) -> None:
        """Begin a pass of ``total`` steps."""
        self.heading, self.total = title, total
        self.due = time.perf_counter() + self.INTERVAL

    def draw(self, step: int, logs: dict[str, float]) -> None:
        """Show that ``step`` steps are done."""
        done = f"{step}/{self.total}" if self.total else str(step)
        live = {"": f"{self.heading}, step {done}"} | {name: number(name, value) for name, value in logs.items()}
        self._show([*self.rows, live])

    def end(self) -> None:
        """Show the finished rows alone."""
        if self.handle is not None:
            self._show(self.rows)

    def on_train_begin(self, logs: Any = None) -> None:
        """Start a new table."""
        super().on_train_begin(logs)
        self.rows, self.handle = [], None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the epoch's row."""
        seconds = duration(time.perf_counter() - self.began)
        self.rows.append(
            {"": self.title, "time": seconds} | {name: number(name, v) for name, v in (logs or {}).items()}
        )
        self._show(self.rows)

    def _show(self, rows: list[dict[str, str]]) -> None:
        from IPython.display import HTML, display

        page = HTML(table_html(rows))
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)


def table_html(rows: list[dict[str, str]]) -> str:
    """Return ``rows`` as an HTML table with a column for every name."""
    from html import escape

    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(name, ''))}</td>" for name in names) + "</tr>" for row in rows
    )
    return f'<table class="easytorch"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
