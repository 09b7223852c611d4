"""Patterns that name layers and parameters."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence


def matches(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` names the parameter or layer ``name``, or a layer around it.

    ``*``, ``?`` and ``[...]`` match as in file names.
    """
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def find_patterns(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return a few patterns that match all ``names`` once each, and none of the ``others``."""
    others = list(others)
    ends = [f"*.{name.rpartition('.')[2]}" for name in names]
    # Without the number of each layer, or without that of the outermost ones.
    numbered = [[re.sub(r"(^|(?<=\.))\d+(?=\.)", "*", name, count=count) for name in names] for count in (0, 1)]
    for patterns in map(dict.fromkeys, (ends, *numbered)):
        if all(sum(matches(name, pattern) for pattern in patterns) == 1 for name in names) and not any(
            matches(name, pattern) for name in others for pattern in patterns
        ):
            return list(patterns)
    return list(names)
