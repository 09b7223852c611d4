"""Lock of the folder of a run, so that two runs do not delete each other's checkpoints."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from easytorch._utils.paths import printable
from easytorch.errors import ResumeError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".easytorch.lock"
# A process that was stopped may still write its last checkpoint.
WAIT_SECONDS = 2.0
_guard = threading.Lock()
# The locks that this process holds, by the real path of their folder.
_held: dict[str, Lock] = {}


class Lock(abc.ABC):
    """Exclusive use of the folder of a run.

    Args:
        folder: The folder, for messages.
        key: The real path of the folder.
        is_active: Returns whether the run of this lock still trains. A run whose end was interrupted loses its lock.
    """

    wait_seconds = WAIT_SECONDS

    def __init__(self, folder: object, key: str, is_active: Callable[[], bool]) -> None:
        self._shown, self._key, self.is_active, self._pid = folder, key, is_active, os.getpid()

    @property
    @abc.abstractmethod
    def is_held(self) -> bool:
        """Whether this process holds the lock: no other run uses the folder, as far as the storage knows."""

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the folder since this process locked it."""
        return False

    def acquire(self) -> None:
        """Lock the folder, or do nothing if the storage has no locks.

        Raises:
            ResumeError: If another run uses the folder, with its process and machine.
        """
        deadline = time.monotonic() + self.wait_seconds
        while not self._acquire_once():
            if time.monotonic() > deadline:
                raise self._error(self._read_holder())
            time.sleep(self._pause())

    def _acquire_once(self) -> bool:
        with _guard:
            holder = _held.get(self._key)
            if holder is not None and holder.is_held:
                if holder.is_active():
                    raise self._error(f"process {os.getpid()}, this one")
                holder._release()
            if not self._try_to_acquire():
                return False
            if self.is_held:
                _held[self._key] = self
            return True

    def release(self) -> None:
        """Unlock the folder, if this process holds the lock."""
        with _guard:
            self._release()

    def check(self) -> None:
        """Raise a ``ResumeError`` if another run has taken the folder."""
        if self.is_lost:
            raise self._error(self._read_holder())

    @abc.abstractmethod
    def _try_to_acquire(self) -> bool:
        """Return False if another process holds the lock; True if this one does, or if there are no locks."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Release the lock, if this process holds it."""

    @abc.abstractmethod
    def _read_holder(self) -> str:
        """Return which process holds the lock, for messages."""

    def _pause(self) -> float:
        """Return the seconds until the next attempt."""
        return 0.05

    def _error(self, holder: str) -> ResumeError:
        return ResumeError(
            f"Another run uses the folder {str(self._shown)!r}: {holder}. Two runs would delete each other's checkpoints. "
            "Wait until it ends, stop it, or pass another folder."
        )


class FolderLock(Lock):
    """A lock that vanishes with its process, also if that is killed.

    It is a record lock on a file: the system releases it, it works across the machines of an NFS, and child processes such as
    the workers of a DataLoader do not inherit it. On a file system without locks the folder is not locked.

    Args:
        folder: The folder, which must exist.
        is_active: Returns whether the run of this lock still trains. A run whose end was interrupted loses its lock.

    Attributes:
        is_held: Whether no other run uses the folder, as far as the file system knows.
    """

    def __init__(self, folder: Path, is_active: Callable[[], bool]) -> None:
        super().__init__(folder, os.path.realpath(folder), is_active)
        self.folder, self.path = folder, folder / NAME
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor is not None and self._pid == os.getpid()

    def _release(self) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if self._pid == os.getpid():
            _held.pop(self._key, None)
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def _try_to_acquire(self) -> bool:
        """Return False if another process holds the lock; True if this one does, or if there are no locks."""
        if fcntl is None:
            return True
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError:  # a read-only folder, or a file of another user
            return True
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                raise BlockingIOError(errno.EAGAIN, "another process has just deleted the file")
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            os.close(descriptor)
            return error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT)
        self._descriptor = descriptor
        return True

    def _read_holder(self) -> str:
        with contextlib.suppress(OSError):
            if text := self.path.read_bytes()[:200].decode(errors="replace"):
                return printable(text)
        return "another process"
