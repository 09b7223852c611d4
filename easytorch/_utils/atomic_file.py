"""Atomic replacement of a file.

A reader finds the old file or the complete new one, also after a crash or a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from easytorch._utils.paths import MAX_NAME_LENGTH, check_name
from easytorch._utils.warnings import warn

STALE_SECONDS = 3600
# What a file system answers that does not know an operation, or does not permit it to this user.
UNSUPPORTED = {
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF, errno.ENOTTY,
}  # fmt: skip
# The longest name of a file whose temporary file can have the same name with a prefix and a suffix.
MAX_STEM_LENGTH = MAX_NAME_LENGTH - len(".") - len(".12345678.tmp")
# The pairs of a folder and an operation about which this process has warned.
_warned: set[tuple[str, str]] = set()


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
        fill_file(file, fill)
    return _target(path)


def fill_file(file: ErrorRecordingFile, fill: Callable[[IO[bytes]], Any]) -> None:
    """Call ``fill`` with ``file``, and raise the error of a write, which ``torch.save`` hides."""
    try:
        fill(cast("IO[bytes]", file))  # it has the methods that torch.save calls
    except RuntimeError as error:
        # torch.save hides the error of a write behind a RuntimeError about a wrong position in the archive.
        raise file.error or _interrupt_behind(error) or error from None


@contextlib.contextmanager
def replace_atomically(path: Path, needed: int = 0) -> Iterator[ErrorRecordingFile]:
    """Yield a temporary file in the folder of ``path``, and rename it to ``path`` when it is synced to the disk.

    Args:
        path: The file to write. If it is a link, its target is replaced.
        needed: The approximate size of the file in bytes, to detect a full disk before the write.

    Raises:
        OSError: If the file cannot be written, with the path, the reason and the fix. An existing file is unchanged.
    """
    temporary: Path | None = None
    file: ErrorRecordingFile | None = None
    is_filled = is_replaced = False
    try:
        check_name(path)
        path = _target(path)
        _check_path(path)
        _delete_stale(path)
        _check_free_space(path.parent, needed)
        descriptor, temporary = _create_temporary(path)
        with os.fdopen(descriptor, "w+b") as raw:
            file = ErrorRecordingFile(raw)
            yield file
            is_filled = True
            raw.flush()
            _fsync(raw.fileno(), path.parent)
        _copy_permissions(path, temporary)
        os.replace(temporary, path)
        is_replaced = True
        fsync_folder(path.parent)
    except OSError as error:
        # An error of the caller, for example of data that cannot be read, is not an error of this file.
        if file is not None and not is_filled and file.error is None:
            raise
        written = 0 if file is None else file.written
        raise _sync_error(error, path) if is_replaced else _write_error(error, path, needed, written) from error
    finally:
        if temporary is not None:
            # After a rename the file does not exist, and a read-only disk deletes nothing. The first error counts.
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def warn_once(folder: object, operation: str, message: str) -> None:
    """Warn with ``message``, unless this process has already warned that ``operation`` fails in ``folder``."""
    if (str(folder), operation) not in _warned:
        _warned.add((str(folder), operation))
        warn(message)


class ErrorRecordingFile(io.RawIOBase):
    """A binary file that records why a write failed, because ``torch.save`` hides the error."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw = raw
        self.written = 0
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Write ``data``, and record an error."""
        try:
            count = self.raw.write(data)
            self.written += count
            return count
        except BaseException as error:
            self.error = error
            raise

    def writable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what was written."""
        return cast("io.BufferedRandom", self.raw).readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the position."""
        return self.raw.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off."""
        return self.raw.truncate(size)

    def tell(self) -> int:  # codespell:ignore tell
        """Return the position."""
        return self.raw.tell()  # codespell:ignore tell

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
    """Sync the names of the files in ``folder`` to the disk; do nothing on Windows, which does not support it.

    Warn once if the file system does not support it. SQLite and LevelDB ignore this.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_of_sync(folder, error)


def _fsync(descriptor: int, folder: Path) -> None:
    """Sync a file; warn once if the file system does not support it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED - {errno.EPERM, errno.EACCES, errno.EBADF}:
            raise
        _warn_of_sync(folder, error)


def _warn_of_sync(folder: Path, error: OSError) -> None:
    warn_once(
        folder,
        "sync",
        f"A power failure may destroy the newest files in {str(folder)!r}, because the folder cannot be synced: "
        f"{_reason(error)}. Otherwise the files are complete. To be safe, use a folder of a local disk.",
    )


def _create_temporary(path: Path) -> tuple[int, Path]:
    """Create a file next to ``path``, and return its descriptor and its path.

    The system applies the umask: to ask for the umask, a program must change it for all of its threads.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    while True:
        temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(FileExistsError):
            return os.open(temporary, flags, mode), temporary


def _temporary_prefix(path: Path) -> str:
    name = path.name
    if len(os.fsencode(name)) > MAX_STEM_LENGTH:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _copy_permissions(path: Path, temporary: Path) -> None:
    """Give ``temporary`` the permissions of the existing file ``path``; warn once if the file system does not permit it."""
    if not path.exists():
        return
    mode = path.stat().st_mode & 0o777
    try:
        os.chmod(temporary, mode)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if os.stat(temporary).st_mode & 0o777 != mode:
            warn_once(
                path.parent,
                "permissions",
                f"The files in {str(path.parent)!r} do not keep the permissions of the files that they replace: "
                f"{_reason(error)}. Change them with chmod if others must read them, or must not.",
            )


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
    if path.parent.is_file():
        raise NotADirectoryError(errno.ENOTDIR, f"{str(path.parent)!r} is a file, and no folder")
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


def _write_error(error: OSError, path: Path, needed: int, written: int) -> OSError:
    """Return ``error`` with a message that names the path, the reason and the fix."""
    fix = "Choose another path."
    size = f"About {needed:,} bytes are needed" if needed else f"{written:,} bytes of it were written"
    if error.errno == errno.EFBIG:
        fix = f"{size}, but the system limits the file size (ulimit -f). Raise the limit."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = _full_disk_fix(path.parent, size)
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "Choose a folder that you may write to."
    elif error.errno == errno.ENOENT:
        fix = f"Create the folder first, for example with os.makedirs({str(path.parent)!r}), or choose another path."
    elif error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        fix = "Choose another name."
    unchanged = " The existing file is unchanged." if os.path.isfile(path) else ""
    return type(error)(error.errno, f"Cannot write {str(path)!r}: {_reason(error)}. {fix}{unchanged}")


def _full_disk_fix(folder: Path, size: str) -> str:
    try:
        free = shutil.disk_usage(folder).free
        status = os.statvfs(folder) if hasattr(os, "statvfs") else None
    except OSError:  # the disk is gone
        return f"{size}. Choose another path."
    # A file system without inodes reports 0 of 0.
    if getattr(status, "f_files", 0) and not getattr(status, "f_favail", 1):
        return (
            f"{free:,} bytes are free, but the file system has no inode for another file. Delete some files, or choose "
            "another path."
        )
    return f"{size}, {free:,} bytes are free. Free some space, or choose another path."


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _delete_stale(path: Path) -> None:
    """Delete temporary files for ``path`` that a killed process left at least ``STALE_SECONDS`` ago."""
    for stale in path.parent.glob(f"{glob.escape(_temporary_prefix(path))}*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
