"""Patterns that name layers and parameters."""

from __future__ import annotations

import fnmatch


def matches(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` names the parameter or layer ``name``, or a layer around it.

    ``*``, ``?`` and ``[...]`` match as in file names.
    """
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
