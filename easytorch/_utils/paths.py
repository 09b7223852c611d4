"""Paths as users pass them, and text from files as a terminal can print it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

# The longest file name of the common file systems, in bytes.
MAX_NAME_LENGTH = 255
# The start of a URL. A scheme of one letter is a drive of Windows.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# A URL without "://": misspelled, or a pathlib.Path, which joins slashes.
NEAR_URL = re.compile(r"(s3|s3a|gs|gcs|memory|file|az|abfs|abfss|http|https|hf|r2)(:/?(?!/)|//)", re.IGNORECASE)
# A URL of fsspec in another one.
CHAINED_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+::")


def to_path(path: Any, argument: str = "path") -> Path:
    """Return ``path`` as a ``Path``, with ``~`` replaced by the home folder, and ``file://`` URLs as their path.

    Args:
        path: Text, bytes, or an object with ``__fspath__``.
        argument: Its name, for the message.

    Raises:
        ValueError: If it is None, empty, contains a null character, or is the URL of another machine.
        TypeError: If it is not a path.
    """
    text = to_text(path, argument)
    if (url := URL.match(text)) is None:
        return Path(os.path.expanduser(text))
    if url[1].lower() != "file":
        raise ValueError(
            f"{argument} must be a path on this machine, received the URL {text!r}. Only runs, checkpoints and model files can "
            f"be in an object store. Write to a local file, such as {argument}={_example(argument)!r}, and copy it."
        )
    return _from_file_url(text, argument)


def to_text(path: Any, argument: str = "path") -> str:
    """Return ``path`` as text; see ``to_path``.

    Raises:
        ValueError: If it is None, empty, contains a null character, or is a URL without ``://``, such as a ``pathlib.Path`` makes
            of a URL.
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
    if match := NEAR_URL.match(text):
        url = f"{match[1]}://{text[match.end() :]}"
        reason = "a URL needs '://'" if isinstance(path, str) else "a Path has joined the slashes"
        raise ValueError(
            f"{argument} must be a path or a URL as text, received {path!r}: {reason}. Pass {argument}={url!r}, or "
            f"{'./' + text!r} for a file of this name."
        )
    if CHAINED_URL.match(text):
        raise ValueError(
            f"{argument} must be a path or one URL, received {text!r}. Chained URLs of fsspec are not supported. Pass the URL "
            f"of the store alone: {argument}={text.rpartition('::')[2]!r}."
        )
    return text


def _from_file_url(url: str, argument: str) -> Path:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ValueError(
            f"{argument} must be a path on this machine, received {url!r}. The path of a file:// URL starts with a third slash: "
            f"{argument}='file:///home/me/run'. Or pass the path alone."
        )
    # A "?" or "#" is part of the name of a file.
    return Path(url2pathname(url.split("://", 1)[1].removeprefix("localhost")))


def to_absolute_path(path: Any, argument: str = "path") -> Path:
    """Return ``path`` as ``to_path`` does, and absolute, so that a later ``os.chdir`` does not change its meaning."""
    return Path(os.path.abspath(to_path(path, argument)))


def nearest_folder(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that exists."""
    return next((each for each in (path, *path.parents) if each.is_dir()), Path.cwd())


def check_folder(folder: Path) -> None:
    """Raise an ``OSError`` if ``folder`` cannot be created, or no file can be created in it; nothing remains there."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        existing = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        reason = f"{str(existing)!r} is a file" if existing.is_file() else error.strerror
        message = f"Cannot create the folder {str(folder)!r}: {reason}. Use another folder."
        raise type(error)(error.errno, message) from error
    finally:
        for each in missing:
            with contextlib.suppress(OSError):  # it was not created, or another process has written to it
                each.rmdir()
    check_writable(folder)


def check_file(path: Path, argument: str) -> None:
    """Raise a ``ValueError`` if no file ``path`` can be written, before a run needs it; nothing remains there.

    Args:
        path: The absolute path.
        argument: The name of the argument, for the message.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "It is a folder. Pass the name of a file in it.")
        check_folder(path.parent)
    except OSError as error:
        raise ValueError(f"{argument}={str(path)!r} cannot be written. {error.strerror}") from error


def check_output_folder(folder: Path, argument: str) -> None:
    """Raise a ``ValueError`` if no file can be written to ``folder``, before a run needs it; nothing remains there.

    Args:
        folder: The absolute path.
        argument: The name of the argument, for the message.
    """
    try:
        check_folder(folder)
    except OSError as error:
        raise ValueError(f"{argument}={str(folder)!r} cannot be written. {error.strerror}") from error


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
