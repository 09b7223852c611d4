"""Distinction between the code of this package and that of the user."""

from __future__ import annotations

from types import FrameType
from typing import Any

PACKAGE = __name__.partition(".")[0]


def is_internal(obj: Any) -> bool:
    """Return whether a class, function or frame was defined in this package."""
    module = obj.f_globals.get("__name__") if isinstance(obj, FrameType) else getattr(obj, "__module__", None)
    return str(module).partition(".")[0] == PACKAGE
