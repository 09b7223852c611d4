"""Warnings that point at the user's own line."""

from __future__ import annotations

import os
import sys
import warnings

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # the folder "easytorch"


def warn(message: str) -> None:
    """Warn with ``message``, as from the innermost line that is not of this package or of contextlib."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(PACKAGE) or "contextlib" in frame.f_code.co_filename
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
