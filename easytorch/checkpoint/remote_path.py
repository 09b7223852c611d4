"""Names in an object store, with the methods of ``pathlib.Path`` that checkpoints need."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from easytorch._utils.paths import URL
from easytorch.checkpoint import store_client


@dataclasses.dataclass(frozen=True)
class Status:
    """What ``RemotePath.stat`` returns.

    Attributes:
        st_size: The size in bytes.
    """

    st_size: int


@dataclasses.dataclass(frozen=True, order=True)
class RemotePath(os.PathLike[str]):
    """An object, or a folder: the common prefix of the names of its objects.

    The methods make requests; nothing is remembered. Names of objects are never used as names of local files.

    Args:
        url: The URL, without a slash at its end.
    """

    url: str

    @classmethod
    def parse(cls, text: str, argument: str = "path") -> RemotePath:
        """Return the path of a URL such as ``"s3://bucket/run"``.

        Raises:
            ValueError: If the URL has no bucket, a part ``..``, or a protocol without atomic uploads.
            ImportError: If the package of the store is not installed.
        """
        match = URL.match(text)
        assert match is not None
        protocol, rest = match[1].lower(), text[match.end() :]
        if protocol not in store_client.PACKAGES:
            raise ValueError(
                f"{argument} must be a path on this machine, or a URL of file://, s3://, gs:// or memory://, "
                f"received {text!r}. Other stores are not supported, because a write could leave half a file. "
                "Mount the store as a folder, and pass its path."
            )
        parts = [part for part in rest.split("/") if part]
        if not parts:
            raise ValueError(
                f"{argument} must name a bucket, received {text!r}. Pass {argument}='{protocol}://bucket/run'."
            )
        if any(part in (".", "..") for part in parts):
            raise ValueError(f"{argument} contains '.' or '..' as a folder: received {text!r}. Pass the complete URL.")
        store_client.check_installed(protocol)
        return cls(f"{protocol}://{'/'.join(parts)}")

    def __str__(self) -> str:
        """Return the URL."""
        return self.url

    def __fspath__(self) -> str:
        """Return the URL, which pandas, fsspec and this package understand."""
        return self.url

    def __truediv__(self, name: str | os.PathLike[str]) -> RemotePath:
        """Return the path of ``name`` in this folder."""
        return RemotePath(f"{self.url}/{os.fspath(name)}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[1]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> RemotePath:
        """The folder; of a bucket the bucket itself."""
        start, _, rest = self.url.partition("://")
        return RemotePath(f"{start}://{rest.rsplit('/', 1)[0]}")

    def with_name(self, name: str) -> RemotePath:
        """Return the path of ``name`` in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        """Return the path with another ending."""
        return self.with_name(self.stem + suffix)

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Return whether there are objects in this folder."""
        return any(True for _ in self._list()) if self._kind() != "file" else False

    def exists(self) -> bool:
        """Return whether there is an object of this name, or a folder."""
        return self._kind() is not None

    def stat(self) -> Status:
        """Return the size of the object.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        return Status(int(store_client.call("read", self.url, lambda client: client.info(self.url))["size"]))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield what this folder contains, without what its folders contain.

        Args:
            pattern: A pattern for the name.
        """
        for name in self._list():
            if fnmatch.fnmatchcase(name, pattern):
                yield self / name

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists when it contains an object."""

    def rmdir(self) -> None:
        """Do nothing: an empty folder does not exist."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            store_client.call("delete", self.url, lambda client: client.rm_file(self.url))
        except store_client.MissingObjectError:
            if not missing_ok:
                raise

    def rename(self, target: RemotePath) -> RemotePath:
        """Copy the object to ``target`` and delete it; a killed process may leave both."""
        store_client.call("rename", self.url, lambda client: client.cp_file(self.url, target.url))
        self.unlink(missing_ok=True)
        return target

    def _kind(self) -> str | None:
        try:
            info: dict[str, Any] = store_client.call("read", self.url, lambda client: client.info(self.url))
        except store_client.MissingObjectError:
            return None
        return str(info["type"])

    def _list(self) -> list[str]:
        """Return the names in this folder."""
        try:
            entries = store_client.call("list", self.url, lambda client: client.ls(self.url, detail=True))
        except store_client.MissingObjectError:
            return []
        folder = self.url.split("://", 1)[1]
        paths = [str(entry["name"]).strip("/") for entry in entries]
        # Consoles create an empty object with the name of the folder.
        return sorted(path.rsplit("/", 1)[1] for path in paths if path != folder and "/" in path)
