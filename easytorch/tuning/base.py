"""The interface of all measurements: text, HTML, frames, dicts and pictures."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from easytorch._utils.html_table import escape_text, format_table, scrolling
from easytorch._utils.text_table import format_rows, format_value

Row = dict[str, Any]


class Measurement(abc.ABC):
    """A table of measurements, and what follows from it.

    Attributes:
        rows: The measurements, each a dict of values by the name of their column.
        suggestion: The value or the settings to use.
        reason: Why, in a sentence.
        notes: Further sentences, such as how to use the suggestion.

    Examples:
        >>> found = model.find_batch_size(x, y, verbose=0)
        >>> suggestion, reason = found.suggestion, found.reason
    """

    title: ClassVar[str]

    def __init__(self, rows: Sequence[Row], suggestion: Any, reason: str, notes: Sequence[str] = ()) -> None:
        self.rows, self.suggestion, self.reason, self.notes = list(rows), suggestion, reason, list(notes)

    def shown_rows(self) -> list[Row]:
        """Return the rows of the printed table."""
        return self.rows

    @abc.abstractmethod
    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return title and drawing function of each panel of the picture."""

    def to_dict(self) -> dict[str, Any]:
        """Return the table, the suggestion and the reason as plain values.

        Examples:
            >>> found = model.find_batch_size(x, y, verbose=0)
            >>> rows = found.to_dict()["rows"]
        """
        rows = [{name: _plain(value) for name, value in row.items()} for row in self.rows]
        return {"suggestion": self.suggestion, "reason": self.reason, "notes": list(self.notes), "rows": rows}

    def to_frame(self) -> Any:
        """Return the table as a pandas frame.

        Raises:
            ImportError: If pandas is not installed.

        Examples:
            >>> found = model.find_batch_size(x, y, verbose=0)
            >>> frame = found.to_frame()
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.rows)

    def plot(self, path: str | Path | None = None, show: bool | None = None) -> Any:
        """Draw the measurements, and return the matplotlib figure.

        Args:
            path: File to write the figure to; None writes no file.
            show: Whether the notebook or ``plt.show()`` shows the figure; by default yes, except in a script with ``path``.

        Raises:
            ImportError: If matplotlib is not installed.

        Examples:
            >>> found = model.find_batch_size(x, y, verbose=0)
            >>> figure = found.plot(path="sizes.png", show=False)
        """
        try:
            from easytorch.training import curves
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        return curves.draw_panels(self.panels(), path, show)

    def __str__(self) -> str:
        lines = [self.title, "", *format_rows([_shown(row) for row in self.shown_rows()]), "", self.reason, *self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        rows = [{name: format_value(value) for name, value in _shown(row).items()} for row in self.shown_rows()]
        text = "".join(f"<div>{escape_text(line)}</div>" for line in [self.reason, *self.notes])
        return scrolling(format_table(rows, title=self.title) + text)


def _shown(row: Row) -> Row:
    """Return a row whose missing values are empty."""
    return {name: "" if value is None else value for name, value in row.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
