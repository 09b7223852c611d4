"""Integrity checks of a file before torch reads it."""

from __future__ import annotations

import hashlib
import json
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from easytorch._utils.plain import DEPTH, _bare, _key
from easytorch.errors import FileError


def check_archive(path: Path) -> None:
    """Raise an error unless ``path`` is an archive of torch.save, whole, and no larger inside than outside."""
    size = path.stat().st_size
    if not size:
        raise FileError(f"{str(path)!r} is empty: it was cut off. Take an older copy.")
    try:
        with zipfile.ZipFile(path) as zipped:
            _verify_layout(path, zipped, size)
            damaged = zipped.testzip()
            instructions = b"" if damaged else zipped.read(_instructions(zipped))
    except FileError:
        raise
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        NotImplementedError,
        ValueError,
        RuntimeError,
        struct.error,
    ) as error:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        what = (
            "is cut off or damaged"
            if is_zip
            else "is not a model: it is no archive as torch.save has written since 1.6"
        )
        raise FileError(f"{str(path)!r} {what} ({error}). Take an older copy, or save it again.") from error
    if damaged is not None:
        raise FileError(f"{str(path)!r} is damaged: the checksum of {damaged!r} does not match. Take an older copy.")
    _verify_instructions(path, instructions, len(zipped.infolist()))


def _instructions(zipped: zipfile.ZipFile) -> str:
    return zipped.infolist()[0].filename.split("/")[0] + "/data.pkl"


def _verify_layout(path: Path, zipped: zipfile.ZipFile, size: int) -> None:
    """Raise an error unless every reader must see the same members in this archive."""
    members = zipped.infolist()
    names = [member.filename for member in members]
    root = names[0].split("/")[0] + "/" if names else ""
    # A member that is marked as a folder is skipped by torch, and by zipfile's check.
    stored = all(one.compress_type == zipfile.ZIP_STORED and not one.external_attr & 0x10 for one in members)
    bounded = sum(member.file_size for member in members) <= size
    unique = len({name.casefold() for name in names}) == len(names)  # torch's reader ignores case
    rooted = all(name.startswith(root) for name in names) and f"{root}data.pkl" in names
    if not (stored and bounded and unique and rooted and _is_plain_zip(path, size)):
        raise FileError(f"{str(path)!r} is packed in a way that torch never writes, so it is not read.")


def _is_plain_zip(path: Path, size: int) -> bool:
    """Whether the directory lies right before the end record, which is the end of the file, and nothing before the start."""
    with path.open("rb") as file:
        begin = file.read(4)
        file.seek(max(size - 22 - 20 - 56, 0))
        tail = file.read()
    if begin != b"PK\3\4" or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        return False
    length, offset = struct.unpack("<LL", tail[-10:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # of large files there is a second end record, right before its locator
        end -= 20 + 56
        if struct.unpack("<Q", tail[-34:-26])[0] != end or tail[:4] != b"PK\6\6":
            return False
        length, offset = struct.unpack("<QQ", tail[40:56])
    return bool(offset + length == end)


# All that a file of tensors and plain values needs. torch.load(weights_only=True) allows more, for example bytearray(n),
# by which a file of a few bytes asks for gigabytes.
REBUILD = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
ALLOWED = {"collections OrderedDict", "torch.storage UntypedStorage"}
ALLOWED |= {f"torch._utils _rebuild_{kind}" for kind in REBUILD}
ALLOWED |= {
    f"torch {name}" for name, one in vars(torch).items() if isinstance(one, torch.dtype) or name.endswith("Storage")
}
NUMBERS = {"BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1"}  # no file makes much of them: they are as large in it
OTHERS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def _verify_instructions(path: Path, instructions: bytes, members: int) -> None:
    """Raise an error if the archive's instructions name anything but tensors, or build more than a model would."""
    steps = 300_000 + 400 * members
    try:
        for name, argument, trouble in _followed(instructions):
            steps -= name not in NUMBERS
            if name in OTHERS or (name == "GLOBAL" and argument not in ALLOWED):
                raise FileError(
                    f"{str(path)!r} holds Python objects ({argument or name}), which could run code when they are loaded, "
                    "so it is not read. If you trust it, read it with torch.load(..., weights_only=False) and pass the state "
                    "dict to net.load_state_dict()."
                )
            if steps < 0 or trouble:
                raise FileError(f"{str(path)!r} holds more lists and dicts than a model has, so it is not read.")
    except FileError:
        raise
    except Exception as error:  # whatever instructions raise that are none
        raise FileError(
            f"{str(path)!r} is no archive of torch.save: its instructions cannot be read ({error})."
        ) from error


def _followed(instructions: bytes) -> Iterator[tuple[str, Any, bool]]:
    """Yield each instruction, and whether it fills an OrderedDict from a list: the same list could fill a thousand."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(instructions):
        name, before = opcode.name, opcode.stack_before
        filled = name == "REDUCE" and stack[-2] == "collections OrderedDict" and stack[-1] != "EMPTY_TUPLE"
        yield name, argument, filled
        if name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        else:
            if pickletools.markobject in before:
                while stack.pop() != "MARK":
                    pass
                before = before[: before.index(pickletools.markobject)]
            del stack[len(stack) - len(before) :]
            stack += [argument if name == "GLOBAL" else name] * len(opcode.stack_after)


def check_content(tree: Any, path: Path) -> Any:
    """Return what was read, in plain dicts, lists and tuples.

    Raises:
        FileError: If a tensor is larger than its memory, or lists and dicts are nested deeper than a model's.
    """
    done: dict[
        int, Any
    ] = {}  # a list that stands in many places is walked once: a small file can name one a million times

    def walk(tree: Any, depth: int) -> Any:
        if isinstance(tree, torch.Tensor):
            if tree.layout == torch.strided and tree.numel() * tree.element_size() > tree.untyped_storage().nbytes():
                raise FileError(f"{str(path)!r} is not whole: a tensor in it asks for more memory than it holds.")
            return tree
        if not isinstance(tree, (dict, list, tuple)):
            return tree
        if depth > DEPTH:
            raise FileError(f"{str(path)!r} is nested deeper than a model, so it is not read.")
        if id(tree) not in done:
            if isinstance(tree, dict):
                done[id(tree)] = {key: walk(value, depth + 1) for key, value in dict.items(tree)}
            else:
                done[id(tree)] = type(tree)(walk(value, depth + 1) for value in tree)
        return done[id(tree)]

    return walk(tree, 0)


def to_serializable(tree: Any, where: str = "content") -> Any:
    """Return ``tree`` as a file can hold it: tensors, numbers, text, None, dicts, lists and tuples.

    NumPy's numbers become Python's, its arrays tensors.

    Raises:
        TypeError: If something else is in it, with its place.
    """
    if isinstance(tree, np.generic):
        tree = tree.item()
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "biuf":
        return torch.from_numpy(tree.copy())
    if isinstance(tree, torch.Tensor) and (bare := _bare(tree)) is not None:
        return bare
    if tree is None or type(tree) in (bool, float, str, torch.dtype):
        return tree
    if type(tree) is int and abs(tree) < 2**63:
        return tree
    if isinstance(tree, Mapping) and type(tree) in (dict, OrderedDict, Counter):  # as MultiStepLR keeps its milestones
        return {_key(key, where): to_serializable(value, f"{where}[{key!r}]") for key, value in tree.items()}
    if type(tree) in (list, tuple, torch.Size):
        parts = [to_serializable(value, f"{where}[{i}]") for i, value in enumerate(tree)]
        return parts if type(tree) is list else tuple(parts)
    raise TypeError(
        f"{where} is {type(tree).__name__}, {str(tree)[:60]!r}, which a file of tensors and plain values cannot hold. Let "
        "state_dict() return tensors, numbers, text, and dicts and lists of these."
    )


def check_shards(table: Any, path: Path) -> None:
    """Raise an error unless all parts of the checkpoint ``path``, as its ``table`` names them, are there and unchanged."""
    folder = path.parent / shard_folder_name(table, path)
    try:
        told = [(str(name), int(size), str(checksum)) for name, size, checksum in table["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{str(path)!r} is not whole: it does not tell its parts. Take an older copy.") from error
    for name, size, checksum in told:
        part = folder / Path(name).name
        if part.name != name or not part.is_file():
            raise FileError(f"{str(path)!r} is not whole: its part {str(part)!r} is missing. Take an older copy.")
        if part.stat().st_size != size or sha256(part) != checksum:
            raise FileError(f"{str(path)!r} is damaged: its part {str(part)!r} has changed. Take an older copy.")


def shard_folder_name(table: Any, path: Path) -> str:
    """Return the name of the folder of the parts, which must lie beside ``path`` and belong to the same step."""
    name = table.get("folder") if isinstance(table, Mapping) else None
    if not isinstance(name, str) or not name.startswith(f"{path.name.split('.')[0]}.parts-") or Path(name).name != name:
        raise FileError(
            f"{str(path)!r} is not whole: it names {name!r} as the folder of its parts. Take an older copy."
        )
    return name


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


CHECKSUM = "easytorch.sha256"


def _header(data: bytes) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def digest(data: bytes) -> str:
    """Return the checksum of all names, types, shapes and values."""
    header, values = _header(data)
    header.pop("__metadata__", None)
    sha256 = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    sha256.update(values)
    return sha256.hexdigest()


def checksum(data: bytes) -> str | None:
    """Return the checksum that stands in the header, None where another library wrote the file."""
    metadata = _header(data)[0].get("__metadata__", {})
    if len(metadata) == 1 and CHECKSUM not in metadata and all(len(value) == 64 for value in metadata.values()):
        raise ValueError("the name of its checksum is damaged")
    found: str | None = metadata.get(CHECKSUM)
    return found
