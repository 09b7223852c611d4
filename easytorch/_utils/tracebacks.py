"""Tracebacks of explained errors, without frames of this package, of torch, NumPy and the standard library.

Python prints the frames of ``error.__traceback__``, and then those of ``error.__cause__``. An error that explains itself needs
neither: the traceback is cut once, where it leaves a public function. Every other error stays as it is.
"""

from __future__ import annotations

import functools
import opcode
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

from easytorch._utils.integers import boolean
from easytorch._utils.internal import PACKAGE, is_internal

Function = TypeVar("Function", bound=Callable[..., Any])

HIDDEN_PACKAGES = (PACKAGE, "torch", "numpy")
# A program may have a module with the name of one of the standard library, so the path decides too.
STANDARD_LIBRARY = (os.path.dirname(os.__file__) + os.sep, "<frozen ")
RAISE_STATEMENT = opcode.opmap["RAISE_VARARGS"]
# An error whose traceback was cut no longer ends in a frame of this package.
EXPLAINED = "_easytorch_explained"

_settings = {"show_internal_frames": os.environ.get("EASYTORCH_FULL_TRACEBACK", "0") not in ("", "0")}


def show_internal_frames(show: bool = True) -> None:
    """Print complete tracebacks, with the frames of easytorch and of torch, for errors with an explanation too.

    By default, such an error shows only the lines of your program and the message. Other errors, such as those that a callback
    raises, are always complete. The environment variable ``EASYTORCH_FULL_TRACEBACK=1`` has the same effect.

    Args:
        show: False hides these frames again.

    Examples:
        >>> easytorch.show_internal_frames()
    """
    _settings["show_internal_frames"] = boolean("show", show)


def hide_internal_frames(function: Function) -> Function:
    """Return a public function whose explained errors have a short traceback; the result of the function is unchanged."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not _settings["show_internal_frames"] and is_explained(error):
                _cut_traceback(error)
            # Unlike `raise error`, this statement adds no frame.
            raise

    return cast("Function", call)


def is_explained(error: BaseException) -> bool:
    """Return whether the message of ``error`` explains it: a ``raise`` statement of this package has created it.

    An error that comes from elsewhere, or has a bug of this package as its cause, is not explained. Ctrl-C needs no explanation.
    """
    if hasattr(error, EXPLAINED) or isinstance(error, KeyboardInterrupt):
        return True
    entries = list(_entries(error))
    if not entries or not is_internal(entries[-1].tb_frame):
        return False
    is_raised_here = isinstance(error, Warning) or _runs_raise(entries[-1])
    return is_raised_here and (error.__cause__ is None or _shows_cause(error) or not _is_bug(error.__cause__))


def _shows_cause(error: BaseException) -> bool:
    """Return whether only the cause of ``error`` has the details: what failed on a rank, or why an import failed."""
    return isinstance(error, ImportError) or getattr(error, "shows_cause", False)


def _is_bug(cause: BaseException) -> bool:
    innermost = next(reversed(list(_entries(cause))), None)
    return innermost is not None and is_internal(innermost.tb_frame) and not is_explained(cause)


def _runs_raise(entry: TracebackType) -> bool:
    code = entry.tb_frame.f_code.co_code
    return 0 <= entry.tb_lasti < len(code) and code[entry.tb_lasti] == RAISE_STATEMENT


def _cut_traceback(error: BaseException) -> None:
    """Remove internal frames and the causes of ``error``; the original cause is ``error.__context__`` then."""
    entries = list(_visible_entries(error))
    cause = error.__cause__
    if cause is not None and not _shows_cause(error):
        error.__cause__ = None  # which also hides the context
        error.__context__ = cause
    setattr(error, EXPLAINED, True)
    traceback: TracebackType | None = None
    for entry in reversed(entries):
        traceback = TracebackType(traceback, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    # Before Python 3.11, `raise` restores the first entry, that of the public function.
    if sys.version_info < (3, 11) and error.__traceback__ is not None:
        error.__traceback__.tb_next = traceback
    error.__traceback__ = traceback


def _visible_entries(error: BaseException) -> Iterator[TracebackType]:
    """Yield the entries of the user's program, outermost first; those of a hidden cause are further down the stack."""
    yield from (entry for entry in _entries(error) if not _is_hidden(entry.tb_frame))
    if error.__cause__ is not None and not _shows_cause(error):
        yield from _visible_entries(error.__cause__)


def _is_hidden(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    is_standard = package in sys.stdlib_module_names and frame.f_code.co_filename.startswith(STANDARD_LIBRARY)
    return is_standard or package in HIDDEN_PACKAGES


def _entries(error: BaseException) -> Iterator[TracebackType]:
    entry = error.__traceback__
    while entry is not None:
        yield entry
        entry = entry.tb_next
