"""Paths as users pass them, and text from files as a terminal can print it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

# The longest file name of the common file systems, in bytes.
MAX_NAME_LENGTH = 255


def to_path(path: Any, argument: str = "path") -> Path:
    """Return ``path`` as a ``Path``, with ``~`` replaced by the home folder.

    Args:
        path: Text, bytes, or an object with ``__fspath__``.
        argument: Its name, for the message.

    Raises:
        ValueError: If it is None, empty, or contains a null character.
        TypeError: If it is not a path.
    """
    if path is None:
        raise ValueError(
            f"{argument} must be a path, received None. Pass a name such as {argument}={_example(argument)!r}."
        )
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        raise TypeError(
            f"{argument} must be a path, received {path!r} of type {type(path).__name__}. "
            f"Pass a name such as {argument}={_example(argument)!r}."
        ) from error
    if not text.strip():
        raise ValueError(
            f"{argument} is empty: received {path!r}. An environment variable may not be set. "
            f"Pass a name such as {argument}={_example(argument)!r}, or '.' for the current folder."
        )
    if "\0" in text:
        raise ValueError(f"{argument} contains a null character: received {text!r}. Remove it.")
    return Path(os.path.expanduser(text))


def to_absolute_path(path: Any, argument: str = "path") -> Path:
    """Return ``path`` as ``to_path`` does, and absolute, so that a later ``os.chdir`` does not change its meaning."""
    return Path(os.path.abspath(to_path(path, argument)))


def nearest_folder(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that exists."""
    return next((each for each in (path, *path.parents) if each.is_dir()), Path.cwd())


def check_writable(path: Path) -> None:
    """Raise a ``PermissionError`` if no file can be created in ``path``, or in the nearest folder above it that exists."""
    folder = nearest_folder(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES, f"Cannot write to {str(path)!r}: {str(folder)!r} is not writable. Use another folder."
        )


def check_name(path: Path) -> None:
    """Raise an ``OSError`` if no file can have the name of ``path``: it is too long, or its links form a loop."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            length = max(len(os.fsencode(part)) for part in path.parts)
            raise OSError(
                error.errno, f"a name of {length} bytes is too long; the limit is {MAX_NAME_LENGTH}"
            ) from error
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "its links form a loop") from error


def printable(text: Any, limit: int = 200) -> str:
    """Return ``text`` on one line for a message or a terminal: control characters escaped, and cut to ``limit`` characters.

    A name in a file of an attacker may contain control sequences, which change the screen or the clipboard.
    """
    text = str(text)
    shown = "".join(map(_escape, text[:limit]))
    return f"{shown}..." if len(text) > limit else shown


def _escape(letter: str) -> str:
    # Also characters that change the direction of text, and halves of a surrogate pair, which no terminal can encode.
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def _example(argument: str) -> str:
    return {"path": "model.pt", "filepath": "model-{epoch}.pt", "to": "outputs.npy", "filename": "log.csv"}.get(
        argument, "run/"
    )
