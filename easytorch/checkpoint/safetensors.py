"""Files in the safetensors format, with a checksum.

The library of the format needs several copies of all tensors to add a checksum, and it opens a file by its path. The
format is simple, so this module writes tensor by tensor, and reads the open file whose checksum it verifies.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from easytorch.checkpoint.storage import Location
from easytorch.errors import FileError

if TYPE_CHECKING:
    import io

# The key of the checksum in the metadata.
CHECKSUM = "easytorch.sha256"
MAX_HEADER_SIZE = 100_000_000
MAX_DIMS = 64
# A list or dict of the header needs at most this many bytes. The header may need 64 MiB besides twice the size of the file.
MEMORY_OF_LIST = 104
FREE_MEMORY = 64 * 2**20
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Content:
    """The header and the values of a file that will be written.

    Args:
        tensors: The tensors by name. Each name of a shared tensor gets a copy, because the format cannot share memory.
        path: The file, for the message.

    Raises:
        TypeError: If a value is no tensor, or its dtype is not part of the format.
    """

    def __init__(self, tensors: Mapping[str, Any], path: Location) -> None:
        for name, value in tensors.items():
            if problem := _find_problem(value):
                raise TypeError(
                    f"{name!r} {problem}, which a .safetensors file cannot hold. Use the name "
                    f"{path.with_suffix('.pt').name!r}, which holds all values of a module."
                )
        # Sorted by their size, all values are aligned.
        self.tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
        self.entries, self.size = {}, 0
        for name, tensor in self.tensors.items():
            end = self.size + tensor.numel() * tensor.element_size()
            entry = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [self.size, end]}
            self.entries[name], self.size = entry, end

    def write(self, file: IO[bytes]) -> None:
        """Write everything, with at most one tensor copied at a time."""
        digest = hashlib.sha256(_canonical(self.entries))
        for tensor in self.tensors.values():
            digest.update(_to_bytes(tensor))
        header = json.dumps({"__metadata__": {CHECKSUM: digest.hexdigest()}, **self.entries}).encode()
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in self.tensors.values():
            file.write(_to_bytes(tensor))


def read(file: IO[bytes], path: Location, device: torch.device | str) -> dict[str, Tensor]:
    """Return the tensors in the open ``file``, after its header and its checksum are verified.

    Args:
        file: The open file.
        path: Its path, for the message.
        device: The device of the tensors.

    Raises:
        FileError: If the file is damaged or has another format.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        header = _read_header(file, size)
        metadata = header.pop("__metadata__", None) or {}
        checksum = _find_checksum(metadata)
        values = torch.empty(_check_entries(header), dtype=torch.uint8)
        # Files that are opened for binary reading are such readers.
        if cast("io.BufferedReader", file).readinto(values.numpy().data) != len(values) or file.read(1):
            raise ValueError("it does not hold as many bytes as its header lists")
        if checksum is not None:
            digest = hashlib.sha256(_canonical(header))
            digest.update(_to_bytes(values))
            if checksum != digest.hexdigest():
                raise FileError(f"{str(path)!r} is damaged: its checksum does not match. Use an older copy.")
        return {name: _to_tensor(values, entry).to(device) for name, entry in header.items()}
    except FileError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, RuntimeError) as error:
        raise FileError(f"{str(path)!r} is not an intact safetensors file: {error}. Use an older copy.") from error


def _find_problem(value: Any) -> str:
    """Return why a file cannot hold ``value``, or an empty string."""
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        return "is a sparse, nested, quantized or meta tensor"
    return "" if value.dtype in NAMES else f"has the dtype {str(value.dtype).removeprefix('torch.')}"


def _to_bytes(tensor: Tensor) -> Any:
    """Return the values of ``tensor`` as an array of bytes; of a contiguous tensor on the CPU, its own memory."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def _canonical(entries: Mapping[str, Any]) -> bytes:
    return json.dumps(entries, sort_keys=True).encode()


def _read_header(file: IO[bytes], size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_SIZE):
        raise ValueError(f"its header of {length:,} bytes does not fit into a file of {size:,} bytes")
    data = file.read(length)
    if MEMORY_OF_LIST * (data.count(b"[") + data.count(b"{")) > FREE_MEMORY + 2 * size:
        raise ValueError("its header has more lists than a file of its size needs")
    header = json.loads(data.decode(), object_pairs_hook=_to_unique_dict, parse_constant=_refuse_constant)
    if not isinstance(header, dict):
        raise TypeError("its header is not a JSON object")
    return header


def _to_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name in its header is not unique")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"its header contains {name}")


def _find_checksum(metadata: Any) -> str | None:
    """Return the checksum in ``metadata``; None if another library wrote the file."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("its metadata is not a dict of text")
    if len(metadata) == 1 and CHECKSUM not in metadata and all(len(value) == 64 for value in metadata.values()):
        raise ValueError("the name of its checksum is damaged")
    return metadata.get(CHECKSUM)


def _check_entries(header: Mapping[str, Any]) -> int:
    """Return the number of bytes of all values; raise an error unless the entries describe them without gap or overlap."""
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"its entry {name[:80]!r} is not a dict of dtype, shape and data_offsets")
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"the dtype {str(entry['dtype'])[:80]!r} of {name[:80]!r} is unknown")
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        if len(shape) > MAX_DIMS or not all(
            type(number) is int and 0 <= number < 2**63 for number in (*shape, start, end)
        ):
            raise ValueError(f"the shape or the offsets of {name[:80]!r} are not valid")
        count = DTYPES[entry["dtype"]].itemsize
        for length in shape:
            count *= length
        if end - start != count:
            raise ValueError(f"the shape of {name[:80]!r} does not have as many values as the file")
        spans.append((start, end))
    total = 0
    for start, end in sorted(spans):
        if start != total:
            raise ValueError("its values overlap or have a gap")
        total = end
    return total


def _to_tensor(values: Tensor, entry: Mapping[str, Any]) -> Tensor:
    dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    part = values[start:end]
    # Other libraries may not align the values.
    part = part.clone() if (values.data_ptr() + start) % dtype.itemsize else part
    return part.view(dtype).reshape(entry["shape"])
