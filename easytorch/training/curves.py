"""Figure of a history, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from easytorch._utils.integers import boolean
from easytorch._utils.notebook import in_notebook
from easytorch._utils.paths import to_path

PANEL_SIZE = (4.5, 3.2)  # inches
MAX_COLUMNS = 3  # panels side by side


class Curves(Figure):
    """A figure that a notebook shows once."""

    def show(self, warn: bool = True) -> None:
        """Open the window of the figure, and wait until it is closed; in a notebook, show the figure in the cell.

        Raises:
            RuntimeError: If the figure is not known to pyplot.
        """
        if not _is_in_pyplot(self):
            raise RuntimeError(
                "The figure has no window, because plot() was called with path=... or show=False, or because it was closed. "
                "Call history.plot(show=True).show()."
            )
        _import_pyplot().show()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        # IPython shows the figure as the value of a cell, and pyplot would show it again at the end of the cell.
        if _is_in_pyplot(self) and "inline" in matplotlib.get_backend():
            _import_pyplot().close(self)
        return {}

    def _repr_png_(self) -> bytes | None:
        # IPython calls this only if no backend for notebooks is active; a window shows the figure by itself.
        if _is_in_pyplot(self) and matplotlib.get_backend().lower() != "agg":
            return None
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def draw_panels(
    panels: Sequence[tuple[str, Callable[[Any], None]]], path: str | Path | None, show: bool | None
) -> Curves:
    """Return a figure with a panel for each title and drawing function.

    Args:
        panels: Titles, and functions that draw on matplotlib axes.
        path: File to write the figure to; None writes no file.
        show: Whether pyplot shows the figure; by default in a notebook, and elsewhere without ``path``.
    """
    columns = min(len(panels), MAX_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = create_figure(columns, show=in_notebook() or path is None if show is None else show)
    figure.set_figheight(rows * figure.get_figheight())
    for i, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        draw(axes)
        axes.set_title(title)
    if path is not None:
        figure.savefig(to_path(path), dpi=150)
    return figure


def create_figure(panel_count: int, show: bool) -> Curves:
    """Return an empty figure with room for ``panel_count`` panels in a row.

    Args:
        panel_count: Number of panels.
        show: Whether pyplot gets to know the figure, so that ``plt.show()`` and notebooks show it.
    """
    show = boolean("show", show)
    options: dict[str, Any] = {"figsize": (PANEL_SIZE[0] * panel_count, PANEL_SIZE[1]), "layout": "constrained"}
    if show:
        figure: Curves = _import_pyplot().figure(FigureClass=Curves, **options)
        return figure
    return Curves(**options)


def draw_panel(axes: Any, title: str, curves: dict[str, Sequence[tuple[float, float]]]) -> None:
    """Draw one line per curve into ``axes``.

    Args:
        axes: The axes of matplotlib.
        title: Title of the panel.
        curves: Points by label, each a number of finished epochs and a value.
    """
    for label, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(title)
    axes.legend()


def _is_in_pyplot(figure: Figure) -> bool:
    manager = figure.canvas.manager
    return manager is not None and _import_pyplot().fignum_exists(manager.num)


def _import_pyplot() -> Any:
    # It takes some time, and chooses a backend, so it is imported only for a figure that is shown.
    from matplotlib import pyplot

    return pyplot
