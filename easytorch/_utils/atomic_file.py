"""Atomic replacement of a file."""

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
from typing import IO, Any


def write_atomically(path: Path, fill: Callable[[IO[bytes]], Any], needed: int) -> Path:
    with replace_atomically(path, needed) as file:
        try:
            fill(file)  # type: ignore[arg-type]  # writes, seeks and tells
        except RuntimeError as error:
            # torch.save reports a full disk, or Ctrl-C, as a wrong position in the archive
            raise file.error or _interruption(error) or error from None
    return path.resolve() if path.is_symlink() else path


@contextlib.contextmanager
def replace_atomically(path: Path, needed: int = 0) -> Iterator[ErrorRecordingFile]:
    """Give a temporary file beside ``path``, and put it in the place of ``path`` when it is whole and on the disk.

    Args:
        path: The file to write; a link stays, what it points to is replaced.
        needed: About how many bytes it takes, to tell of a full disk before anything is written.

    Raises:
        OSError: If it cannot be written, with the reason and what to do; whatever was at ``path`` is unchanged then.
    """
    temporary: str | None = None
    file: ErrorRecordingFile | None = None
    replaced, filled = False, False
    path = path.resolve() if path.is_symlink() else path
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if path.exists() and not path.is_file():  # /dev/null, a pipe
            raise OSError(errno.EINVAL, "it is no ordinary file")
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {str(path.parent)!r}")
        _sweep_old(path)
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as raw:
            file = ErrorRecordingFile(raw)
            yield file
            filled = True
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
        replaced = True
        fsync_folder(path.parent)
    except OSError as error:
        if file is not None and not filled and file.error is None:
            raise  # of those who fill it: data that cannot be read, for example
        raise _explained(error, path, needed, replaced) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # it is gone, or the disk takes nothing any more: the first error counts
                os.unlink(temporary)


class ErrorRecordingFile(io.RawIOBase):
    """A file that remembers why a write failed, since torch.save forgets it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw = raw
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Write ``data`` and keep the error, if there is one."""
        try:
            return self.raw.write(data)
        except BaseException as error:
            self.error = error
            raise

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Hand what was written to the system."""
        if self.raw.closed:
            return
        try:
            self.raw.flush()
        except OSError as error:
            self.error = error
            raise


def _interruption(error: BaseException | None) -> BaseException | None:
    """Return the Ctrl-C, or the end of the process, during which ``error`` came up."""
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error


def _explained(error: OSError, path: Path, needed: int, replaced: bool) -> OSError:
    reason = error.strerror or str(error)
    if replaced:
        told = "The file is whole, but it is not sure that it outlives a power cut."
        return type(error)(error.errno, f"Cannot sync the folder of {str(path)!r}: {reason}. {told}")
    cure = "Choose another place."
    if error.errno == errno.EFBIG:
        cure = f"About {needed:,} bytes are needed, and the system limits the size of files here (ulimit -f). Raise the limit."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        cure = f"About {needed:,} bytes are needed, {free:,} bytes are free there. Make room, or choose another place."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "Choose a folder that you may write to."
    elif error.errno == errno.ENOENT:
        cure = "Make the folder first, or choose another place."
    kept = " The file that was there is unchanged." if path.is_file() else ""
    return type(error)(error.errno, f"Cannot write {str(path)!r}: {reason}. {cure}{kept}")


def _sweep_old(path: Path, seconds: float = 3600) -> None:
    """Delete what a process that was killed an hour ago or earlier left half written for ``path``."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > seconds:
                stale.unlink()


def _mode(path: Path) -> int:
    """Return the permissions of the file that is replaced, or those that a new file gets here."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def fsync_folder(folder: Path) -> None:
    """Have the names of the files in ``folder`` outlive a power cut."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
