"""Integrity checks of a file before torch reads it.

``torch.save`` writes checksums into its archives, but ``torch.load`` does not verify them.
A file must never run code, and must never need more memory than its own size.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from easytorch.checkpoint import pickles
from easytorch.checkpoint.serialization import MAX_DEPTH
from easytorch.checkpoint.storage import Location, storage_of
from easytorch.errors import FileError

# A file may need this many bytes of memory besides twice its size.
FREE_MEMORY = 64 * 2**20
# The objects of a tensor in a state dict. At least 100 bytes of the file belong to it.
MEMORY_OF_MEMBER = 2560
BLOCK = 2**20

# What zipfile raises for a damaged archive: also struct.error for a header that is too short, and RuntimeError for a file
# that seems to be encrypted or to have an unknown compression.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, struct.error)

# The names that a pickle of tensors and plain values needs. torch.load(weights_only=True) allows more, for example
# bytearray(n), with which a file of a few bytes allocates gigabytes.
REBUILD_FUNCTIONS = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
ALLOWED_GLOBALS = (
    {pickles.ORDERED_DICT, "torch.storage UntypedStorage"}
    | {f"torch._utils _rebuild_{function}" for function in REBUILD_FUNCTIONS}
    | {
        f"torch {name}"
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype) or name.endswith("Storage")
    }
)


def check_archive(file: IO[bytes], path: Location) -> None:
    """Check that ``file`` is an intact archive of ``torch.save`` with only tensors and plain values.

    Args:
        file: The open file, which torch reads afterwards.
        path: Its path, for the message.

    Raises:
        FileError: If the file is empty, cut off or damaged, has an unusual layout, or holds Python objects.
    """
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise FileError(f"{str(path)!r} is empty: it was cut off. Use an older copy.")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_layout(path, file, archive)
            damaged = archive.testzip()
            pickle = b"" if damaged else archive.read(_root(archive) + "data.pkl")
    except FileError:
        raise
    except ZIP_ERRORS as error:
        file.seek(0)
        is_zip = file.read(2) == b"PK"
        problem = "is cut off or damaged" if is_zip else "is not a model: expected an archive of torch.save since 1.6"
        raise FileError(f"{str(path)!r} {problem} ({error}). Use an older copy, or save it again.") from error
    if damaged is not None:
        raise FileError(f"{str(path)!r} is damaged: the checksum of {damaged!r} does not match. Use an older copy.")
    _check_pickle(path, pickle, available_memory(size, len(archive.infolist())))


def available_memory(size: int, members: int) -> int:
    """Return how many bytes the values of an archive may need, besides its tensors.

    Args:
        size: The size of the archive in bytes.
        members: The number of its members: one for each storage.
    """
    return FREE_MEMORY + 2 * size + MEMORY_OF_MEMBER * members


def missing_size(file: IO[bytes]) -> int:
    """Return by how many bytes the archive ``file`` must grow, so that its values need no more than ``available_memory``."""
    with zipfile.ZipFile(file) as archive:
        pickle, members = archive.read(_root(archive) + "data.pkl"), len(archive.infolist())
    missing = pickles.needed_memory(pickle) - available_memory(file.seek(0, os.SEEK_END), members)
    return max(0, -(-missing // 2))


def pad(file: IO[bytes], size: int) -> None:
    """Add a member of ``size`` zeros to the archive ``file``, which torch does not read."""
    with (
        zipfile.ZipFile(file, "a") as archive,
        archive.open(_root(archive) + "padding", "w", force_zip64=True) as member,
    ):
        for start in range(0, size, BLOCK):
            member.write(bytes(min(BLOCK, size - start)))


def check_content(tree: Any, path: Location) -> Any:
    """Return the content of a file in plain dicts, lists and tuples.

    Raises:
        FileError: If a tensor is larger than its memory, or dicts and lists are nested too deeply.
    """
    # A small file can name one list a million times, so each list is visited once.
    visited: dict[int, Any] = {}

    def visit(value: Any, depth: int) -> Any:
        if isinstance(value, torch.Tensor):
            if (
                value.layout == torch.strided
                and value.numel() * value.element_size() > value.untyped_storage().nbytes()
            ):
                raise FileError(
                    f"{str(path)!r} is damaged: a tensor in it needs more memory than the file holds. Copy the file again from "
                    "its source, or load another checkpoint."
                )
            return value
        if not isinstance(value, (dict, list, tuple)):
            return value
        if depth > MAX_DEPTH:
            raise FileError(
                f"{str(path)!r} is refused: its dicts and lists are nested deeper than {MAX_DEPTH} levels. "
                "Pass a file that Model.save() wrote."
            )
        if id(value) not in visited:
            visited[id(value)] = visit_children(value, depth + 1)
        return visited[id(value)]

    def visit_children(value: Any, depth: int) -> Any:
        """Return ``value`` with plain children, in place where its type is plain: a copy needs memory."""
        if isinstance(value, dict):
            if type(value) is not dict:
                keep_versions(value, depth)
            for key, child in dict.items(value):
                value[key] = visit(child, depth)
            return value
        if type(value) is list:
            for i, child in enumerate(value):
                value[i] = visit(child, depth)
            return value
        return tuple(visit(child, depth) for child in value)

    def keep_versions(state: Any, depth: int) -> None:
        """Delete the attributes of an OrderedDict, since a file can replace its methods, but not the versions of modules."""
        versions = vars(state).pop("_metadata", None)
        vars(state).clear()
        if type(versions) in (dict, OrderedDict):
            state._metadata = visit(versions, depth)

    return visit(tree, 0)


def check_shards(shards: Any, path: Location) -> None:
    """Check that all shard files of the checkpoint ``path`` exist and are unchanged.

    Args:
        shards: The entry ``"shards"`` of the index file.
        path: The index file.

    Raises:
        FileError: If a shard file is missing or has changed, or ``shards`` is not valid.
    """
    folder = path.parent / shard_folder_name(shards, path)
    try:
        entries = [(str(name), int(size), str(checksum)) for name, size, checksum in shards["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{str(path)!r} is incomplete: it does not list its shards. Use an older copy.") from error
    for name, size, checksum in entries:
        file = folder / Path(name).name
        if file.name != name or not file.is_file():
            raise FileError(f"{str(path)!r} is incomplete: its shard {str(file)!r} is missing. Use an older copy.")
        if file.stat().st_size != size or sha256(file) != checksum:
            raise FileError(f"{str(path)!r} is damaged: its shard {str(file)!r} has changed. Use an older copy.")


def shard_folder_name(shards: Any, path: Location) -> str:
    """Return the name of the shard folder, which must be next to ``path`` and belong to the same step.

    Raises:
        FileError: If the index file names another folder.
    """
    name = shards.get("folder") if isinstance(shards, Mapping) else None
    prefix = f"{path.name.split('.')[0]}.shards-"
    if not isinstance(name, str) or not name.startswith(prefix) or Path(name).name != name:
        raise FileError(
            f"{str(path)!r} is damaged: expected the name of its shard folder to start with {prefix!r}, "
            f"received {name!r}. Use an older copy."
        )
    return name


def sha256(path: Location) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with storage_of(path).open(path) as file:
        return checksum_of(file)


def checksum_of(file: IO[bytes]) -> str:
    """Return the SHA-256 checksum of an open file from its start, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def python_objects_error(path: Location, name: str = "") -> FileError:
    """Return the error for a file that holds Python objects, for example the one called ``name``."""
    example = f" ({name})" if name else ""
    return FileError(
        f"{str(path)!r} holds Python objects{example}, which could run code when they are loaded. easytorch does not read "
        "it. If you trust the file, read it with torch.load(path, weights_only=False) and pass the state dict to "
        "net.load_state_dict()."
    )


def _root(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    return names[0].split("/")[0] + "/" if names else ""


def _check_layout(path: Location, file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Raise a ``FileError`` unless every zip reader finds the same members in the archive."""
    members, root, size = archive.infolist(), _root(archive), os.fstat(file.fileno()).st_size
    names = archive.namelist()
    # torch's reader ignores case.
    has_unique_names = len({name.casefold() for name in names}) == len(names)
    has_one_root = f"{root}data.pkl" in names and all(name.startswith(root) for name in names)
    has_plain_members = all(map(_is_stored_file, members)) and sum(member.file_size for member in members) <= size
    if not (has_unique_names and has_one_root and has_plain_members and _has_one_directory(file, size)):
        raise FileError(
            f"{str(path)!r} is refused: torch.save never writes an archive of this layout. "
            "Read it with the program that wrote it, and save its state dict with torch.save()."
        )


def _is_stored_file(member: zipfile.ZipInfo) -> bool:
    """Return whether ``member`` is not compressed, and is not marked as a folder."""
    # torch and ZipFile.testzip() skip members that are marked as folders.
    return member.compress_type == zipfile.ZIP_STORED and not member.external_attr & 0x10


def _has_one_directory(file: IO[bytes], size: int) -> bool:
    """Return whether the file starts with a member and ends with the only directory and its end record.

    Source: sections 4.3.14 to 4.3.16 of the ZIP specification (APPNOTE.TXT).
    """
    file.seek(0)
    start = file.read(4)
    file.seek(max(size - 22 - 20 - 56, 0))
    tail = file.read()
    if start != b"PK\3\4" or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        return False
    length, offset = struct.unpack("<LL", tail[-10:-2])
    end = size - 22
    # A large file has a second end record, directly before its locator.
    if tail[-42:-38] == b"PK\6\7":
        end -= 20 + 56
        if struct.unpack("<Q", tail[-34:-26])[0] != end or tail[:4] != b"PK\6\6":
            return False
        length, offset = struct.unpack("<QQ", tail[40:56])
    return bool(offset + length == end)


def _check_pickle(path: Location, pickle: bytes, available: int) -> None:
    """Raise a ``FileError`` if a pickle names anything except tensors, or needs more than ``available`` bytes of memory."""
    try:
        pickles.needed_memory(pickle, ALLOWED_GLOBALS, available)
    except pickles.UnsafePickleError as error:
        raise python_objects_error(path, str(error)) from error
    except pickles.LargePickleError as error:
        raise FileError(
            f"{str(path)!r} is refused: its dicts, lists and numbers need far more memory than the file has bytes. "
            "Pass a file that Model.save() wrote. If you trust the file, read it with torch.load(path, weights_only=True), "
            "and pass its state dict to net.load_state_dict()."
        ) from error
    # Invalid pickles raise many types of exceptions.
    except Exception as error:
        raise FileError(
            f"{str(path)!r} is not an archive of torch.save: its pickle cannot be read ({error}). Use an older copy."
        ) from error
