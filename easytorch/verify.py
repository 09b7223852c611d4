"""Whether a file is whole, and nothing but tensors and plain values, before torch looks at it.

Torch writes checksums into its archives but does not verify them: half of all damaged files load with wrong numbers. And a file
must never run code, nor ask for more memory than its own size.
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch


class FileError(ValueError):
    """A file that is not what it should be: its name, what is wrong with it, and what to do."""


def archive(path: Path) -> None:
    """Raise an error unless ``path`` is an archive of torch.save, whole, and no larger inside than outside."""
    size = path.stat().st_size
    if not size:
        raise FileError(f"{str(path)!r} is empty: it was cut off. Take an older copy.")
    try:
        with zipfile.ZipFile(path) as zipped:
            members = zipped.infolist()
            names = [member.filename for member in members]
            # A member that is marked as a folder is skipped by torch, and by zipfile's check.
            stored = all(one.compress_type == zipfile.ZIP_STORED and not one.external_attr & 0x10 for one in members)
            if not stored or sum(member.file_size for member in members) > size or len(set(names)) < len(names):
                raise FileError(f"{str(path)!r} is packed in a way that torch never writes, so it is not read.")
            damaged = zipped.testzip()
            pickles = [name for name in names if name.endswith("data.pkl")]
            instructions = zipped.read(pickles[0]) if damaged is None and len(pickles) == 1 else b""
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        NotImplementedError,
        ValueError,
        RuntimeError,
        struct.error,
    ) as error:
        if isinstance(error, FileError):
            raise
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
    _verify_pickle(path, instructions, most=200_000 + 100 * len(names))


# All that a file of tensors and plain values needs. torch.load(weights_only=True) allows more, for example bytearray(n),
# by which a file of a few bytes asks for gigabytes.
ALLOWED = {
    "collections OrderedDict",
    "_codecs encode",
    "torch Size",
    "torch device",
    "torch.storage UntypedStorage",
    *(
        f"torch._utils _rebuild_{kind}"
        for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
    ),
    *(
        f"torch {name}"
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype) or name.endswith("Storage")
    ),
}
CONTAINERS = {
    "MARK",
    "EMPTY_LIST",
    "EMPTY_DICT",
    "EMPTY_TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "LIST",
    "DICT",
    "EMPTY_SET",
}


def _verify_pickle(path: Path, instructions: bytes, most: int) -> None:
    """Raise an error if the archive's instructions name anything but tensors, or build more than a model would."""
    containers = 0
    try:
        for opcode, argument, _ in pickletools.genops(instructions):
            containers += opcode.name in CONTAINERS
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4") or (
                opcode.name == "GLOBAL" and argument not in ALLOWED
            ):
                raise FileError(
                    f"{str(path)!r} holds Python objects ({argument or opcode.name}), which could run code when they are loaded, "
                    "so it is not read. If you trust it, read it with torch.load(..., weights_only=False) and pass the state "
                    "dict to net.load_state_dict()."
                )
            if containers > most:
                raise FileError(f"{str(path)!r} holds more lists and dicts than a model has, so it is not read.")
    except FileError:
        raise
    except Exception as error:  # whatever genops raises on instructions that are none
        raise FileError(
            f"{str(path)!r} is no archive of torch.save: its instructions cannot be read ({error})."
        ) from error


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
    found: str | None = _header(data)[0].get("__metadata__", {}).get(CHECKSUM)
    return found
