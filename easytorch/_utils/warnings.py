"""Warnings that point to the line of the user."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from easytorch._utils.internal import is_internal


def warn(message: str) -> None:
    """Warn with ``message`` at the innermost line outside this package."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _is_skipped(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_skipped(frame: FrameType) -> bool:
    # A context manager of this package adds a frame of contextlib.
    return is_internal(frame) or frame.f_globals.get("__name__") == "contextlib"
