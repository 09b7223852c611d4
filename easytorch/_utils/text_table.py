"""Aligned tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def format_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table: the names of the first row, and a line for each row."""
    return align([list(rows[0]), *([format_value(value) for value in row.values()] for row in rows)])


def format_value(value: Any) -> str:
    """Return a cell of a table: a float with four significant digits, an integer with separators, otherwise its text."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else str(value)


def join_numbers(numbers: Sequence[Any], limit: int = 10) -> str:
    """Return the first numbers as text, and how many there are in total if these are not all."""
    suffix = f", ... ({len(numbers)} in total)" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + suffix


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
