"""Atomic replacement of a file.

A reader finds the old file or the complete new one, also after a crash or a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

STALE_SECONDS = 3600


def write_atomically(path: Path, fill: Callable[[IO[bytes]], Any], needed: int) -> Path:
    """Write what ``fill`` writes atomically to ``path``.

    Args:
        path: The file to write. If it is a link, its target is replaced.
        fill: Writes the content to the binary file that it receives.
        needed: The approximate size of the file in bytes, to detect a full disk before the write.

    Returns:
        The path that was written.

    Raises:
        OSError: If the file cannot be written, with the path, the reason and the fix. An existing file is unchanged.
    """
    with replace_atomically(path, needed) as file:
        try:
            fill(cast("IO[bytes]", file))  # it has the methods that torch.save calls
        except RuntimeError as error:
            # torch.save hides the error of a write behind a RuntimeError about a wrong position in the archive.
            raise file.error or _interrupt_behind(error) or error from None
    return _target(path)


@contextlib.contextmanager
def replace_atomically(path: Path, needed: int = 0) -> Iterator[ErrorRecordingFile]:
    """Yield a temporary file in the folder of ``path``, and rename it to ``path`` when it is synced to the disk.

    Args:
        path: The file to write. If it is a link, its target is replaced.
        needed: The approximate size of the file in bytes, to detect a full disk before the write.

    Raises:
        OSError: If the file cannot be written, with the path, the reason and the fix. An existing file is unchanged.
    """
    temporary: str | None = None
    file: ErrorRecordingFile | None = None
    is_filled = is_replaced = False
    path = _target(path)
    try:
        _check_path(path)
        _delete_stale(path)
        _check_free_space(path.parent, needed)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as raw:
            file = ErrorRecordingFile(raw)
            yield file
            is_filled = True
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, _permissions(path))
        os.replace(temporary, path)
        is_replaced = True
        fsync_folder(path.parent)
    except OSError as error:
        # An error of the caller, for example of data that cannot be read, is not an error of this file.
        if file is not None and not is_filled and file.error is None:
            raise
        raise _sync_error(error, path) if is_replaced else _write_error(error, path, needed) from error
    finally:
        if temporary is not None:
            # After a rename the file does not exist, and a read-only disk deletes nothing. The first error counts.
            with contextlib.suppress(OSError):
                os.unlink(temporary)


class ErrorRecordingFile(io.RawIOBase):
    """A binary file that records why a write failed, because ``torch.save`` hides the error."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw = raw
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Write ``data``, and record an error."""
        try:
            return self.raw.write(data)
        except BaseException as error:
            self.error = error
            raise

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Pass buffered data to the operating system, and record an error."""
        if self.raw.closed:
            return
        try:
            self.raw.flush()
        except OSError as error:
            self.error = error
            raise


def fsync_folder(folder: Path) -> None:
    """Sync the names of the files in ``folder`` to the disk; do nothing on Windows, which does not support it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _target(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """Return the ``KeyboardInterrupt`` or ``SystemExit`` during which ``error`` was raised; None without one."""
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error


def _check_path(path: Path) -> None:
    """Raise an ``OSError`` if no file can be written to ``path``."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    # For example /dev/null or a pipe.
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"the folder {str(path.parent)!r} does not exist")


def _check_free_space(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_error(error: OSError, path: Path) -> OSError:
    message = f"Cannot sync the folder of {str(path)!r}: {_reason(error)}."
    return type(error)(
        error.errno, f"{message} The file is complete but may not survive a power failure. Save it again."
    )


def _write_error(error: OSError, path: Path, needed: int) -> OSError:
    """Return ``error`` with a message that names the path, the reason and the fix."""
    fix = "Choose another path."
    if error.errno == errno.EFBIG:
        fix = f"About {needed:,} bytes are needed, but the system limits the file size (ulimit -f). Raise the limit."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        fix = f"About {needed:,} bytes are needed, {free:,} bytes are free. Free some space, or choose another path."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "Choose a folder that you may write to."
    elif error.errno == errno.ENOENT:
        fix = f"Create the folder first, for example with os.makedirs({str(path.parent)!r}), or choose another path."
    unchanged = " The existing file is unchanged." if path.is_file() else ""
    return type(error)(error.errno, f"Cannot write {str(path)!r}: {_reason(error)}. {fix}{unchanged}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _delete_stale(path: Path) -> None:
    """Delete temporary files for ``path`` that a killed process left at least ``STALE_SECONDS`` ago."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()


def _permissions(path: Path) -> int:
    """Return the permissions of the existing file, or those of a new file under the umask."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
