"""Small HTML tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from easytorch._utils.paths import printable

# Tables set no colors, so that they fit light and dark themes.
HEADER_STYLE = "min-width:4em;text-align:right"
TITLE_STYLE = "text-align:left;white-space:pre"
# Epochs in a table; a longer table would be sent and stored again and again.
MAX_EPOCHS = 20
MAX_TEXT = 2000  # characters


def format_table(rows: Iterable[Mapping[str, str]], names: Iterable[str] = (), title: str = "") -> str:
    """Return ``rows`` as an HTML table with one column per name.

    Args:
        rows: Cells by name of their column. The first column is aligned to the left.
        names: Names of the columns that come first; those of ``rows`` follow.
        title: Text above the table.
    """
    rows = list(rows)
    names = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    head = "".join(
        f'<th style="{HEADER_STYLE if i else TITLE_STYLE}">{escape_text(name)}</th>' for i, name in enumerate(names)
    )
    body = "".join(f"<tr>{_format_cells(row, names)}</tr>" for row in rows)
    table = f'<table class="easytorch"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f"<div>{escape_text(title)}</div>{table}" if title else table


def format_epochs(rows: Sequence[Mapping[str, str]], names: Iterable[str], count: int) -> str:
    """Return ``rows``, the last of ``count`` epochs, as an HTML table below the number of earlier epochs."""
    hidden = count - len(rows)
    title = f"... {hidden:,} earlier epoch{'s' * (hidden != 1)}: history.to_frame()" if hidden else ""
    return format_table(rows, names, title)


def format_pairs(pairs: Mapping[str, str], title: str) -> str:
    """Return ``pairs`` as an HTML table with one row per name, below ``title``."""
    body = "".join(
        f'<tr><td style="{TITLE_STYLE}">{escape_text(name)}</td><td style="text-align:left">{escape_text(text)}</td></tr>'
        for name, text in pairs.items()
    )
    return f'<div>{escape_text(title)}</div><table class="easytorch"><tbody>{body}</tbody></table>'


def escape_text(text: str) -> str:
    """Return ``text`` as HTML that displays it, without control characters."""
    return html.escape(printable(text, MAX_TEXT))


def _format_cells(row: Mapping[str, str], names: list[str]) -> str:
    cells = [escape_text(row.get(name, "")) for name in names]
    return f'<td style="{TITLE_STYLE}">{cells[0]}</td>' + "".join(f"<td>{cell}</td>" for cell in cells[1:])
