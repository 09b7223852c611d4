"""Where checkpoints are: folders of this machine, or object stores such as S3.

A location is a ``Path``, or a ``RemotePath`` with the same methods.
What differs between the two beyond these methods is in ``Storage``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

from easytorch._utils import atomic_file, paths
from easytorch._utils.registry import did_you_mean
from easytorch.checkpoint.folder_lock import FolderLock, Lock
from easytorch.checkpoint.object_store import ObjectStore
from easytorch.checkpoint.remote_path import RemotePath
from easytorch.errors import FileError

Location: TypeAlias = Path | RemotePath


class Storage(Protocol):
    """What folders of this machine and object stores do in different ways."""

    # Whether a request takes long enough that a thread should make it while training continues.
    is_slow: bool

    def absolute(self, location: Any) -> Any:
        """Return ``location`` in the form that ``os.chdir`` does not change."""

    def is_absolute(self, location: Any) -> bool:
        """Return whether ``os.chdir`` does not change the meaning of ``location``."""

    def real_path(self, location: Any) -> str:
        """Return a text that is equal for two names of one file or folder."""

    def is_file(self, location: Any) -> bool:
        """Return whether ``location`` is a file."""

    def is_folder(self, location: Any) -> bool:
        """Return whether ``location`` is a folder."""

    def write(self, location: Any, fill: Callable[[IO[bytes]], Any], needed: int) -> Any:
        """Write what ``fill`` writes atomically, and return the location; see ``atomic_file.write_atomically``."""

    def open(self, location: Any) -> IO[bytes]:
        """Return the content as an open file of this machine, which is verified and then read."""

    def lock(self, folder: Any, is_active: Callable[[], bool]) -> Lock:
        """Return the lock of a folder; see ``FolderLock``."""

    def check_writable(self, folder: Any) -> None:
        """Raise an ``OSError`` if no file can be written to ``folder``; nothing remains there."""

    def check_before_training(self, folder: Any) -> None:
        """Raise an ``OSError`` if a problem of ``folder`` would show only after the first epoch."""

    def delete_folder(self, folder: Any) -> None:
        """Delete a folder and everything in it, as far as possible."""

    def delete_incomplete(self, folder: Any, is_stale: Callable[[Any], bool]) -> None:
        """Delete what killed processes have left in ``folder`` of checkpoints that they wrote.

        Args:
            folder: The folder.
            is_stale: Returns whether no process still writes a file.
        """


class LocalStorage:
    """Folders of this machine, and those that it mounts."""

    is_slow = False

    def absolute(self, location: Path) -> Path:
        """Return the absolute path."""
        return Path(os.path.abspath(location))

    def is_absolute(self, location: Path) -> bool:
        """Return whether the path is absolute."""
        return os.path.isabs(location)

    def real_path(self, location: Path) -> str:
        """Return the path without links."""
        return os.path.realpath(location)

    def is_file(self, location: Path) -> bool:
        """Return whether ``location`` is a file, also through links."""
        return os.path.isfile(location)

    def is_folder(self, location: Path) -> bool:
        """Return whether ``location`` is a folder, also through links."""
        return os.path.isdir(location)

    def write(self, location: Path, fill: Callable[[IO[bytes]], Any], needed: int) -> Path:
        """Write to a temporary file in the same folder, sync it, and rename it."""
        return atomic_file.write_atomically(location, fill, needed)

    def open(self, location: Path) -> IO[bytes]:
        """Return the open file, which is verified and then read, so that both see the same content."""
        try:
            paths.check_name(location)
        except OSError as error:
            raise _read_error(location, error) from error
        if not location.exists():
            folder = location.parent
            names = [file.name for file in folder.glob("*") if file.is_file()] if folder.exists() else []
            hint = did_you_mean(location.name, map(paths.printable, names))
            fix = hint or f" Check the path; the current folder is {str(Path.cwd())!r}."
            raise FileNotFoundError(f"There is no file {str(location)!r}.{fix}")
        if location.is_dir():
            raise FileError(f"{str(location)!r} is a folder. Pass the path of a file in it.")
        if not location.is_file():  # a pipe would wait for a writer
            raise FileError(
                f"{str(location)!r} is not a regular file. Pass the path of a file that Model.save() wrote."
            )
        try:
            return location.open("rb")
        except OSError as error:
            raise _read_error(location, error) from error

    def lock(self, folder: Path, is_active: Callable[[], bool]) -> Lock:
        """Return a record lock on a file."""
        return FolderLock(folder, is_active)

    def check_writable(self, folder: Path) -> None:
        """Raise a ``PermissionError`` if no file can be created in ``folder`` or the nearest folder above it that exists."""
        paths.check_writable(folder)

    def check_before_training(self, folder: Path) -> None:
        """Raise an ``OSError`` if the folder cannot be created, or is not writable."""
        paths.check_folder(self.absolute(folder))

    def delete_folder(self, folder: Path) -> None:
        """Delete a folder and everything in it, as far as possible."""
        shutil.rmtree(folder, ignore_errors=True)

    def delete_incomplete(self, folder: Path, is_stale: Callable[[Path], bool]) -> None:
        """Delete temporary files of checkpoints."""
        for path in folder.glob(".step-*.pt.*.tmp"):
            if is_stale(path):
                try:
                    path.unlink()
                except OSError:  # a later run tries it again
                    continue


LOCAL: Storage = LocalStorage()
OBJECT_STORE: Storage = ObjectStore()


def storage_of(location: Location) -> Storage:
    """Return the storage in which ``location`` is."""
    return OBJECT_STORE if isinstance(location, RemotePath) else LOCAL


def to_location(path: Any, argument: str = "path") -> Location:
    """Return ``path`` as a location.

    Args:
        path: A path, as ``to_path`` takes it, or the URL of an object store, such as ``"s3://bucket/run"``.
        argument: Its name, for the message.

    Raises:
        ValueError: If it is None, empty, contains a null character, or is a URL of an unknown kind.
        TypeError: If it is not a path.
        ImportError: If the package of the object store is not installed, with the command that installs it.
    """
    if isinstance(path, RemotePath):
        return path
    text = paths.to_text(path, argument)
    url = paths.URL.match(text)
    if url is None or url[1].lower() == "file":
        return paths.to_path(path, argument)
    return RemotePath.parse(text, argument)


def to_absolute_location(path: Any, argument: str = "path") -> Location:
    """Return ``path`` as ``to_location`` does, and absolute, so that a later ``os.chdir`` does not change its meaning."""
    location = to_location(path, argument)
    absolute: Location = storage_of(location).absolute(location)
    return absolute


def to_template(path: Any) -> str:
    """Return the name of a file with fields as text, with ``~`` replaced by the home folder, and ``file://`` URLs as their path.

    A slash at its end remains.
    """
    text = os.fsdecode(path)
    if paths.URL.match(text) is None:
        return os.path.expanduser(text)
    return f"{to_location(text)}{'/' * text.endswith('/')}"


def without_scheme(text: str) -> str:
    """Return a URL without ``s3://``, or a path as it is."""
    return paths.URL.sub("", text, count=1) if paths.URL.match(text) else text


def _read_error(path: Path, error: OSError) -> OSError:
    return type(error)(error.errno, f"Cannot read {str(path)!r}: {error.strerror}. Pass another path.")
