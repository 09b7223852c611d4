"""Exceptions that users may catch.

::

    ValueError
    ├── FileError       a file is damaged, unsafe, or does not fit the model
    └── ResumeError     a run cannot be continued exactly
    RuntimeError
    └── RankError       the ranks of a run disagree, or another rank has failed or ended

Other errors are the standard ones: ``ValueError`` and ``TypeError`` for arguments, ``RuntimeError`` for failed steps.
"""

from __future__ import annotations


class FileError(ValueError):
    """A file is damaged, unsafe, or does not fit the model. The message names the file, the problem and the fix.

    Args:
        message: The problem and the fix. Control characters are escaped.
        args: Further arguments of the exception.

    Examples:
        >>> try:
        ...     model.load("folder_without_checkpoints.txt")
        ... except (FileError, FileNotFoundError) as error:
        ...     print(error)
    """

    def __init__(self, message: str = "", *args: object) -> None:
        # The message may contain names from the file, and those control characters that a terminal obeys.
        super().__init__(escape_lines(str(message)), *args)


class ResumeError(ValueError):
    """A run cannot be continued exactly where it stopped. The message names the reason and the fix.

    Args:
        message: The reason and the fix. Control characters are escaped.
        args: Further arguments of the exception.

    Examples:
        >>> try:
        ...     history = model.fit(x, y, resume="run/", verbose=0)
        ... except ResumeError as error:
        ...     print(error)
    """

    def __init__(self, message: str = "", *args: object) -> None:
        super().__init__(escape_lines(str(message)), *args)


class RankError(RuntimeError):
    """The ranks of a run disagree, or another rank has failed or ended. The message names both sides and the fix.

    Examples:
        >>> try:
        ...     history = model.fit(x, y, verbose=0)
        ... except RankError as error:
        ...     print(error)
    """

    shows_cause = True  # the traceback of another exception of this rank


def escape_lines(text: str) -> str:
    """Return ``text`` with all control characters escaped, except line breaks."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
