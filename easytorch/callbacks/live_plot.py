"""Curves that are drawn while a fit runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from easytorch._utils.notebook import Output, in_notebook
from easytorch._utils.paths import check_file, check_writable, to_absolute_path
from easytorch.callbacks.base import Callback
from easytorch.callbacks.early_stopping import check_log_name


class LivePlot(Callback):
    """Draw the curves of ``history.plot()`` while training, after epochs and at most every two seconds.

    A notebook shows them below the table of epochs. The last figure, of all epochs, stays.

    Args:
        names: The values to plot, for example ``LivePlot("loss", "accuracy")``; all numbers by default.
        path: File that is written each time. In a program that does not run in a notebook it is required.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no notebook and no ``path``, or if matplotlib cannot write such a file; in ``fit``, if the logs
            will not contain a name.

    Examples:
        >>> model.fit(x, y, epochs=3, validation_split=0.2, callbacks=[LivePlot(path="curves.png")])
    """

    # After the table of epochs.
    priority = 21
    optional = True
    all_ranks = False

    # Shortest time between two figures, in seconds.
    INTERVAL = 2.0
    # The pause after a figure takes at least this many times as long as drawing it.
    PAUSE_FACTOR = 20

    def __init__(self, *names: str, path: str | os.PathLike[str] | None = None) -> None:
        formats = _find_file_formats()
        if path is None and not in_notebook():
            raise ValueError(
                "LivePlot shows curves in a notebook, and this program does not run in one. Pass a file to write them to: "
                "LivePlot(path='curves.png')."
            )
        self.names, self.path = names, None if path is None else to_absolute_path(path)
        if self.path is not None and self.path.suffix[1:].lower() not in formats:
            raise ValueError(
                f"LivePlot cannot write {str(path)!r}: the name must end in one of {', '.join(f'.{name}' for name in formats)}. "
                "Pass path='curves.png'."
            )
        self.output = Output()
        self.redraw_at, self.is_current = 0.0, True

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the names."""
        for name in self.names:
            check_log_name(name, "LivePlot plots", self.model)
        if self.path is not None:
            check_file(self.path, "path")
        self.output, self.redraw_at = Output(), 0.0

    def redirect(self, folder: Path) -> None:
        """Write the figure to ``folder``."""
        if self.path is not None:
            check_writable(self.path.parent)
            self.path = folder / self.path.name

    def on_restore(self) -> None:
        """Create the folder of the file."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Draw the curves, if it is due."""
        self.is_current = False
        if time.perf_counter() >= self.redraw_at:
            self._draw()

    def on_train_end(self, logs: Any = None) -> None:
        """Draw the curves of all epochs."""
        if not self.is_current:
            self._draw()

    def _draw(self) -> None:
        started_at = time.perf_counter()
        history = self.model.history
        names = [name for name in self.names if name in history]
        if self.names and not names:  # none of them is measured in every epoch
            return
        figure = history.plot(*names, path=self.path, show=False)
        if in_notebook():
            self.output.show_value(figure)
        ended_at = time.perf_counter()
        self.redraw_at = ended_at + max(self.INTERVAL, self.PAUSE_FACTOR * (ended_at - started_at))
        self.is_current = True


def _find_file_formats() -> list[str]:
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError("LivePlot needs matplotlib: pip install matplotlib") from error
    return sorted(FigureCanvasBase.get_supported_filetypes())
