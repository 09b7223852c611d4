"""Checkpoints in object stores such as S3 and Google Cloud Storage.

An object appears when its upload is complete, so a reader finds the old object or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from typing import IO, Any

from easytorch._utils.atomic_file import ErrorRecordingFile, fill_file
from easytorch._utils.paths import printable
from easytorch._utils.registry import did_you_mean
from easytorch.checkpoint import store_client
from easytorch.checkpoint.folder_lock import Lock
from easytorch.checkpoint.lease import Lease
from easytorch.checkpoint.remote_path import RemotePath
from easytorch.errors import FileError

# A file of twice this size is uploaded in parts, several at a time. S3 permits so many parts.
PART_SIZE = 32 * 2**20
MAX_PARTS = 10_000
PROBE = ".easytorch.probe"


class ObjectStore:
    """Folders of object stores."""

    is_slow = True

    def absolute(self, location: RemotePath) -> RemotePath:
        """Return the URL as it is."""
        return location

    def is_absolute(self, location: RemotePath) -> bool:
        """Return True."""
        return True

    def real_path(self, location: RemotePath) -> str:
        """Return the URL, with the short name of the store."""
        return f"{store_client.protocol_of(location.url)}://{location.url.split('://', 1)[1]}"

    def is_file(self, location: RemotePath) -> bool:
        """Return whether there is an object of this name."""
        return location.is_file()

    def is_folder(self, location: RemotePath) -> bool:
        """Return whether there are objects in this folder."""
        return location.is_dir()

    def write(self, location: RemotePath, fill: Callable[[IO[bytes]], Any], needed: int) -> RemotePath:
        """Write to a temporary file of this machine, upload it, and compare the size of the object.

        The clients send a checksum of each part, which the store verifies.

        Raises:
            OSError: If the file cannot be written or uploaded, or the location is a folder; an existing object is unchanged.
        """
        # A store permits both an object and a folder of one name. Names of files have a suffix, and need no request.
        if not location.suffix and self.is_folder(location):
            raise IsADirectoryError(
                errno.EISDIR,
                f"Cannot write {str(location)!r}: it is a folder. Pass a file, such as '{location}/model.pt'.",
            )
        with _open_temporary(location, needed) as raw:
            file = ErrorRecordingFile(raw)
            try:
                fill_file(file, fill)
                raw.flush()
            except OSError as error:
                if file.error is None:
                    raise
                raise _temporary_error(location, error, file.written) from error
            size = os.fstat(raw.fileno()).st_size
            store_client.call("write", location.url, lambda client: _upload(client, _name_of(raw), location, size))
        return location

    def open(self, location: RemotePath) -> IO[bytes]:
        """Download the object to a temporary file of this machine, and return the open file."""
        raw = _open_temporary(location, 0)
        try:
            store_client.call("read", location.url, lambda client: client.get_file(location.url, _name_of(raw)))
        except (store_client.MissingObjectError, FileExistsError) as error:  # of a folder, the latter
            raw.close()
            raise _missing_error(location) from error
        except BaseException:
            raw.close()
            raise
        raw.seek(0)
        return raw

    def lock(self, folder: RemotePath, is_active: Callable[[], bool]) -> Lock:
        """Return a lock that is renewed while the process lives."""
        return Lease(folder, self.real_path(folder), is_active)

    def check_writable(self, folder: RemotePath) -> None:
        """Write and delete a small object."""
        probe = folder / f"{PROBE}-{secrets.token_hex(4)}"
        store_client.call("write", probe.url, lambda client: client.pipe_file(probe.url, b"easytorch"))
        probe.unlink(missing_ok=True)

    def check_before_training(self, folder: RemotePath) -> None:
        """Write and delete a small object, which needs the bucket and valid credentials."""
        self.check_writable(folder)

    def delete_folder(self, folder: RemotePath) -> None:
        """Delete the objects in a folder, as far as possible."""
        with contextlib.suppress(OSError):
            store_client.call("delete", folder.url, lambda client: client.rm(folder.url, recursive=True))

    def delete_incomplete(self, folder: RemotePath, is_stale: Callable[[RemotePath], bool]) -> None:
        """Abort the uploads that killed processes have left, which cost money and are in no list of objects."""
        if store_client.protocol_of(folder.url) != "s3" or not is_stale(folder / ".step-.pt.tmp"):
            return
        # The credentials may not permit it, and some stores do not know it.
        with contextlib.suppress(OSError):
            store_client.call("list uploads of", folder.url, lambda client: _abort_uploads(client, folder))


def _upload(client: Any, name: str, location: RemotePath, size: int) -> None:
    is_s3 = store_client.protocol_of(location.url) == "s3"
    options = {"chunksize": max(PART_SIZE, -(-size // MAX_PARTS))} if is_s3 else {}
    client.put_file(name, location.url, **options)
    received = client.info(location.url)["size"]
    if received != size:
        raise OSError(errno.EIO, f"the store has {received:,} of {size:,} bytes")


def _abort_uploads(client: Any, folder: RemotePath) -> None:
    bucket, _, key = folder.url.split("://", 1)[1].partition("/")
    prefix = f"{key}/step-" if key else "step-"
    uploads = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads") or []
    for upload in uploads:
        client.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def _open_temporary(location: RemotePath, needed: int) -> IO[bytes]:
    """Return an open file of this machine that is deleted when it is closed.

    On Linux it has no name in a folder, so that a killed process leaves nothing.
    """
    folder = tempfile.gettempdir()
    try:
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file: Any = (tempfile.TemporaryFile if _has_descriptors() else tempfile.NamedTemporaryFile)(dir=folder)
    except OSError as error:
        raise _temporary_error(location, error, needed) from error
    result: IO[bytes] = file
    return result


def _name_of(file: IO[bytes]) -> str:
    """Return a name by which the clients, which take only names, can open a temporary file."""
    return f"/proc/self/fd/{file.fileno()}" if _has_descriptors() else file.name


def _has_descriptors() -> bool:
    return os.path.isdir("/proc/self/fd")


def _temporary_error(location: RemotePath, error: OSError, size: int) -> OSError:
    return type(error)(
        error.errno,
        f"Cannot write {location.url!r}: {error.strerror or error}, in the temporary folder {tempfile.gettempdir()!r}, which "
        f"needs space for {size:,} bytes. Free some space, or set TMPDIR to a larger folder.",
    )


def _missing_error(location: RemotePath) -> FileNotFoundError | FileError:
    if location.is_dir():
        return FileError(f"{location.url!r} is a folder. Pass the path of a file in it.")
    names = [path.name for path in location.parent.glob("*")]
    fix = did_you_mean(location.name, map(printable, names)) or " Pass the URL of a file that exists."
    return FileNotFoundError(f"There is no file {location.url!r}.{fix}")
