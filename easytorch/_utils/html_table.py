"""Small HTML tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping, Sequence

from easytorch._utils.paths import printable

# Tables set no colors, so that they fit light and dark themes.
HEADER_STYLE = "min-width:4em;text-align:right"
TITLE_STYLE = "text-align:left;white-space:pre"
# Notebooks break the text of cells, which would spread an interval over three lines. Only sentences break.
CELL_STYLE = "white-space:nowrap"
TEXT_STYLE = "text-align:left;white-space:normal;min-width:16em;max-width:40em"
# The styles of cells win over those of a page, unless these are important.
STACKED_STYLE = (
    "@media (max-width:480px){.easytorch-stacked thead{display:none}"
    ".easytorch-stacked tr{display:block;margin-bottom:1em}"
    ".easytorch-stacked td{display:block;min-width:0!important}"
    ".easytorch-stacked td:first-child{font-weight:bold}"
    ".easytorch-stacked td:nth-child(3)::before{content:'Fix: '}}"
)
# Characters of a cell from which its column has sentences.
SENTENCE = 40
# Epochs in a table; a longer table would be sent and stored again and again.
MAX_EPOCHS = 20
MAX_TEXT = 2000  # characters


def format_table(
    rows: Iterable[Mapping[str, str]], names: Iterable[str] = (), title: str = "", sentences: Collection[str] = ()
) -> str:
    """Return ``rows`` as an HTML table with one column per name.

    Args:
        rows: Cells by name of their column. The first column is aligned to the left.
        names: Names of the columns that come first; those of ``rows`` follow.
        title: Text above the table.
        sentences: Columns whose text breaks into lines, besides those with long cells.
    """
    rows = list(rows)
    names = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    long = {name for name in names[1:] if any(len(row.get(name, "")) > SENTENCE for row in rows)} | set(sentences)
    styles = [TEXT_STYLE if name in long else CELL_STYLE for name in names]
    styles[:1] = [TITLE_STYLE]
    heads = [TITLE_STYLE if name in long or not i else HEADER_STYLE for i, name in enumerate(names)]
    table = f'<table class="easytorch"><thead>{_format_row("th", names, heads)}</thead><tbody>'
    table += "".join(_format_row("td", [row.get(name, "") for name in names], styles) for row in rows)
    table += "</tbody></table>"
    return f"<div>{escape_text(title)}</div>{table}" if title else table


def scrolling(page: str) -> str:
    """Return HTML that scrolls in a narrow window."""
    return f'<div style="overflow-x:auto">{page}</div>'


def stacked(page: str) -> str:
    """Return HTML whose tables show the cells of a row below each other in a narrow window; the third one is a fix."""
    return f'<style>{STACKED_STYLE}</style><div class="easytorch-stacked">{page}</div>'


def format_epochs(rows: Sequence[Mapping[str, str]], names: Iterable[str], count: int) -> str:
    """Return ``rows``, the last of ``count`` epochs, as an HTML table below the number of earlier epochs."""
    hidden = count - len(rows)
    title = f"... {hidden:,} earlier epoch{'s' * (hidden != 1)}: history.to_frame()" if hidden else ""
    return format_table(rows, names, title)


def format_pairs(pairs: Mapping[str, str], title: str) -> str:
    """Return ``pairs`` as an HTML table with one row per name, below ``title``."""
    is_long = any(len(text) > SENTENCE for text in pairs.values())
    styles = [TITLE_STYLE, TEXT_STYLE if is_long else f"text-align:left;{CELL_STYLE}"]
    body = "".join(_format_row("td", pair, styles) for pair in pairs.items())
    return f'<div>{escape_text(title)}</div><table class="easytorch"><tbody>{body}</tbody></table>'


def escape_text(text: str) -> str:
    """Return ``text`` as HTML that displays it, without control characters."""
    return html.escape(printable(text, MAX_TEXT))


def _format_row(tag: str, cells: Iterable[str], styles: Iterable[str]) -> str:
    parts = (f'<{tag} style="{style}">{escape_text(cell)}</{tag}>' for cell, style in zip(cells, styles, strict=True))
    return f"<tr>{''.join(parts)}</tr>"
