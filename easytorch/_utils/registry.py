"""Objects by name, with suggestions for misspelled names."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# The similarity of two names, from 0 to 1, from which on one may be a misspelling of the other.
MIN_SIMILARITY = 0.69


def find(kind: str, name: Any, table: Mapping[str, T], **message: Any) -> T:
    """Return ``table[name]``; case and hyphens do not matter.

    Args:
        kind: The kind of object, for the message: ``"optimizer"``.
        name: The name that the user typed.
        table: The objects by name.
        message: Further arguments of ``unknown_name_message``.

    Raises:
        ValueError: If the name is unknown, with the most similar one.
    """
    if not isinstance(name, str):
        raise ValueError(unknown_name_message(kind, name, table, near="", **message))
    for spelling in spellings(name):
        if spelling in table:
            return table[spelling]
    raise ValueError(unknown_name_message(kind, name, table, near=did_you_mean(spellings(name)[0], table), **message))


def unknown_name_message(
    kind: str,
    name: Any,
    names: Iterable[str],
    *,
    near: str,
    otherwise: str = "",
    common: Sequence[str] = (),
    full_list: str = "",
) -> str:
    """Return the message about an unknown name.

    Args:
        kind: The kind of object: ``"optimizer"``.
        name: The name that the user typed.
        names: All known names.
        near: The result of ``did_you_mean``.
        otherwise: What to pass instead of a name.
        common: The names to show if ``names`` is too long and no name is similar.
        full_list: The public name of the table with all names; needed with ``common``.
    """
    title = f"Unknown {kind} {name!r}.{near}"
    if near and common:
        return f"{title} Otherwise pass {otherwise}."
    if common:
        return f"{title} Pass a name such as {quote_list(common)}; all names are in {full_list}. Or pass {otherwise}."
    choices = f"{title} Pass one of {quote_list(names)}"
    return f"{choices}, {otherwise}." if otherwise else f"{choices}."


def did_you_mean(name: Any, names: Iterable[Any], cutoff: float | None = None) -> str:
    """Return `` Did you mean 'adam'?`` for a message; an empty string if no name is similar.

    Args:
        name: The name that the user typed.
        names: The known names.
        cutoff: The similarity that two names must have, from 0 to 1; by default, a name must be a likely misspelling.
    """
    typed, known = str(name).lower(), {str(known).lower(): known for known in names}
    matches = difflib.get_close_matches(typed, known, n=3, cutoff=cutoff or 0.6)
    if cutoff is None:
        matches = [match for match in matches if _is_misspelling(typed, match)]
    # Swapped letters come first: "adma" is "adam", not "adamw".
    matches.sort(key=lambda match: sorted(match) != sorted(typed))
    return f" Did you mean {known[matches[0]]!r}?" if matches else ""


def spellings(name: str) -> tuple[str, str, str]:
    """Return the keys under which a table may have ``name``, without regard to case and hyphens."""
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    return key, snake_case(name.strip()), key.replace("_", "")


def snake_case(name: str) -> str:
    """Return the name of a class in snake case: ``bce_with_logits`` for ``BCEWithLogits``."""
    words = ""
    for i, letter in enumerate(name):
        starts_word = letter.isupper() and i > 0 and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        words += "_" * (starts_word and name[i - 1] != "_") + letter.lower()
    return words


def get_name(function: Any) -> str:
    """Return the name by which a user recognizes ``function``."""
    if isinstance(function, functools.partial):
        return get_name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def quote_list(names: Iterable[Any], most: int = 40) -> str:
    """Return ``'adam', 'sgd', ...`` with at most ``most`` names."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (", ..." if len(quoted) > most else "")


def _is_misspelling(typed: str, name: str) -> bool:
    # "triplet" is found in "triplet_margin".
    has_same_word = name.startswith(f"{typed}_") or name.endswith(f"_{typed}")
    is_similar = difflib.SequenceMatcher(None, name, typed).ratio() >= MIN_SIMILARITY
    return is_similar or has_same_word or sorted(typed) == sorted(name)
