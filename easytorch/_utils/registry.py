"""Objects by name, with suggestions for misspelled names."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def snake_case(name: str) -> str:
    """Turn a class name into the name people type: ``BCEWithLogits`` becomes ``bce_with_logits``."""
    words = ""
    for i, letter in enumerate(name):
        starts_word = letter.isupper() and i > 0 and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        words += "_" * (starts_word and name[i - 1] != "_") + letter.lower()
    return words


def did_you_mean(name: Any, names: Iterable[Any], cutoff: float | None = None) -> str:
    """Return `` Did you mean 'adam'?`` or nothing, to be put into an error message.

    Args:
        name: What the user typed.
        names: Those there are.
        cutoff: How alike two names must be, from 0 to 1; by default so that all but slips of the fingers are left out.
    """
    typed, known = str(name).lower(), {str(known).lower(): known for known in names}
    close = difflib.get_close_matches(typed, known, n=3, cutoff=cutoff or 0.6)
    if cutoff is None:
        close = [other for other in close if _near(typed, other)]
    close.sort(key=lambda other: sorted(other) != sorted(typed))  # first what has the very letters: adma, adam
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def _near(typed: str, other: str) -> bool:
    whole_words = other.startswith(f"{typed}_") or other.endswith(f"_{typed}")  # triplet, triplet_margin
    alike = difflib.SequenceMatcher(None, other, typed).ratio() >= 0.69
    return alike or whole_words or sorted(typed) == sorted(other)


def spellings(name: str) -> tuple[str, str, str]:
    """Return the keys under which a table may have ``name``, whatever the case and the hyphens."""
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    return key, snake_case(name.strip()), key.replace("_", "")


def find(kind: str, name: Any, table: Mapping[str, T], **message: Any) -> T:
    """Return ``table[name]``, whatever the case and the hyphens, or raise a ``ValueError`` that names the nearest.

    Args:
        kind: What is looked for, for the message: ``"optimizer"``.
        name: What the user typed.
        table: Every name there is.
        message: What else is said if there is none; see ``unknown``.
    """
    if not isinstance(name, str):
        raise ValueError(unknown_name_message(kind, name, table, near="", **message))
    for candidate in spellings(name):
        if candidate in table:
            return table[candidate]
    raise ValueError(unknown_name_message(kind, name, table, near=did_you_mean(spellings(name)[0], table), **message))


def unknown_name_message(
    kind: str,
    name: Any,
    names: Iterable[str],
    *,
    near: str,
    otherwise: str = "",
    common: Sequence[str] = (),
    whole: str = "",
) -> str:
    """Return the message about a name that is not there.

    Args:
        kind: What is looked for: ``"optimizer"``.
        name: What the user typed.
        names: Every name there is.
        near: What ``nearest`` says.
        otherwise: What else the user might pass.
        common: Those names that are shown where there are too many, and none is near.
        whole: Where all of them are, then.
    """
    title = f"Unknown {kind} {name!r}.{near}"
    if near and common:
        return f"{title} Otherwise pass {otherwise}."
    shown = (
        f"a name such as {quote_list(common)}; all are in {whole}. Or pass "
        if common
        else f"one of {quote_list(names)}"
    )
    between = ", " if otherwise and not common else ""
    return f"{title} Pass {shown}{between}{otherwise}."


def get_name(function: Any) -> str:
    """Return the name a user would recognize ``function`` by."""
    if isinstance(function, functools.partial):
        return get_name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def quote_list(names: Iterable[Any], most: int = 40) -> str:
    """Return ``'adam', 'sgd', ...`` of at most ``most`` names."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
