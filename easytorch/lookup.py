"""From a name to an object, and to the nearest name when there is none."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def snake_case(name: str) -> str:
    """Turn a class name into the name people type: ``BCEWithLogits`` becomes ``bce_with_logits``."""
    words = ""
    for i, letter in enumerate(name):
        starts_word = letter.isupper() and i > 0 and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        words += "_" * (starts_word and name[i - 1] != "_") + letter.lower()
    return words


def nearest(name: Any, names: Iterable[Any], cutoff: float = 0.6) -> str:
    """Return `` Did you mean 'adam'?`` or nothing, to be put into an error message."""
    known = {str(known).lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=cutoff)
    close.sort(
        key=lambda other: sorted(other) != sorted(str(name).lower())
    )  # first what has the very letters: adma, adam
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def find(kind: str, name: Any, table: Mapping[str, T], *, otherwise: str = "") -> T:
    """Return ``table[name]``, whatever the case and the hyphens, or raise a ``ValueError`` that names the nearest.

    Args:
        kind: What is looked for, for the message: ``"optimizer"``.
        name: What the user typed.
        table: Every name there is.
        otherwise: What else the user might pass, for the message.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"Unknown {kind} {name!r}. Pass one of {quoted(table)}" + (f", {otherwise}." if otherwise else ".")
        )
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    for candidate in (key, snake_case(name.strip()), key.replace("_", "")):
        if candidate in table:
            return table[candidate]
    raise ValueError(
        f"Unknown {kind} {name!r}.{nearest(key, table)} Pass one of {quoted(table)}"
        + (f", {otherwise}." if otherwise else ".")
    )


def name_of(function: Any) -> str:
    """Return the name a user would recognize ``function`` by."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def quoted(names: Iterable[Any], most: int = 40) -> str:
    """Return ``'adam', 'sgd', ...`` of at most ``most`` names."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
