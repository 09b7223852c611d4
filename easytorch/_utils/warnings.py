"""Warnings that point to the line of the user."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from easytorch._utils.internal import is_internal

# Where the messages of the current context go instead of a warning; None for warnings.
_COLLECTED: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("collected", default=None)

# What changes the messages of the current context, which an interface with other arguments needs.
_TRANSLATION: contextvars.ContextVar[Callable[[str], str]] = contextvars.ContextVar("translation", default=str)


@contextlib.contextmanager
def translated_warnings(translate: Callable[[str], str]) -> Iterator[None]:
    """Apply ``translate`` to the messages of this package inside."""
    token = _TRANSLATION.set(translate)
    try:
        yield
    finally:
        _TRANSLATION.reset(token)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the messages of this package inside, instead of warning."""
    messages: list[str] = []
    token = _COLLECTED.set(messages)
    try:
        yield messages
    finally:
        _COLLECTED.reset(token)


def warn(message: str) -> None:
    """Warn with ``message`` at the innermost line outside this package."""
    message = _TRANSLATION.get()(message)
    messages = _COLLECTED.get()
    if messages is not None:
        messages.append(message)
        return
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _is_skipped(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_skipped(frame: FrameType) -> bool:
    # A context manager of this package adds a frame of contextlib.
    return is_internal(frame) or frame.f_globals.get("__name__") == "contextlib"
