"""Atomic writes and verified reads of model files.

A file holds tensors and plain values only, so reading it never runs code.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from easytorch._utils.pytree import leaves
from easytorch._utils.warnings import warn
from easytorch.checkpoint import safetensors, validation
from easytorch.checkpoint.serialization import Conversion
from easytorch.checkpoint.storage import Location, storage_of, to_location
from easytorch.errors import FileError, ResumeError

FORMAT = "easytorch"
VERSION = 1
# A file that does not fit into memory may be intact.
OUT_OF_MEMORY = MemoryError, torch.OutOfMemoryError
# So many values need less memory than ``validation.FREE_MEMORY``.
MANY_VALUES = 10_000
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Location:
    """Write ``content`` atomically, so that ``path`` never holds an incomplete file.

    The content is written to a temporary file in the same folder, synced and renamed; then the folder is synced. In an object
    store, it is uploaded.

    Args:
        path: The file to write. If the write fails, an existing file is unchanged.
        content: Tensors and plain values.

    Returns:
        The path that was written. If ``path`` is a link, this is its target.

    Raises:
        OSError: If the file cannot be written, with the path, the reason and the fix.
        TypeError: If ``content`` holds what no file can hold, with its place.
    """
    conversion = Conversion()
    plain = conversion.convert(content if isinstance(content, dict) else dict(content), "")

    def fill(file: IO[bytes]) -> None:
        torch.save(plain, file)
        # The size of a file limits the memory that its reader gives to dicts, lists and numbers.
        if conversion.count > MANY_VALUES and (missing := validation.missing_size(file)):
            validation.pad(file, missing)

    return _write(to_location(path), fill, _estimate_size(plain))


def _write(location: Location, fill: Callable[[IO[bytes]], Any], needed: int) -> Location:
    written: Location = storage_of(location).write(location, fill, needed)
    return written


def to_plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` with only types that a file can hold.

    Raises:
        TypeError: If that is impossible, with the place of the value.
    """
    plain: dict[str, Any] = Conversion().convert(content if isinstance(content, dict) else dict(content), "")
    return plain


# Endings of the files of other libraries, and how to write such a file.
FOREIGN_SUFFIXES = {
    **dict.fromkeys((".keras", ".h5", ".hdf5"), ""),
    **dict.fromkeys(
        (".onnx", ".pb", ".tflite"), " To export the module, use torch.onnx.export(model.module, (x,), path)."
    ),
}


def check_suffix(path: str | os.PathLike[str], *, weights_only: bool = False) -> None:
    """Warn if ``path`` ends like a file of another library.

    Raises:
        ValueError: If it ends in ``.safetensors``, which cannot hold a complete model, unless ``weights_only``.
    """
    name = to_location(path)
    if name.suffix in FOREIGN_SUFFIXES:
        warn(
            f"{os.fsdecode(path)!r} will be a file in the format of torch, which other libraries cannot read under this name. "
            f"Use the name {str(name.with_suffix('.pt'))!r}.{FOREIGN_SUFFIXES[name.suffix]}"
        )
    if name.suffix == ".safetensors" and not weights_only:
        pt_path = str(name.with_suffix(".pt"))
        raise ValueError(
            f"Cannot write a complete model to {os.fsdecode(path)!r}: a .safetensors file holds only weights. Use the name "
            f"{pt_path!r}, or write only the weights with save_weights(path) or ModelCheckpoint(path, save_weights_only=True)."
        )


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> Location:
    """Write ``tensors`` atomically in the safetensors format, with a checksum, which the format itself lacks.

    Raises:
        OSError: If the file cannot be written, with the path, the reason and the fix.
        TypeError: If a value is no tensor, or its dtype is not part of the format.
    """
    location = to_location(path)
    content = safetensors.Content(tensors, location)
    return _write(location, content.write, content.size + 200 * len(tensors))


def check_safetensors(values: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise a ``TypeError`` if ``write_safetensors`` cannot write ``values``."""
    safetensors.Content(values, to_location(path))


def read(path: str | os.PathLike[str], device: torch.device | str = "cpu", checksum: str | None = None) -> Any:
    """Return the content of a file of ``write`` or ``torch.save``, or of a ``.safetensors`` file.

    The checksums are verified first. Nothing in the file is run.

    Args:
        path: The file.
        device: The device of the tensors.
        checksum: The SHA-256 checksum that the file must have, if it is known.

    Raises:
        FileNotFoundError: If the file does not exist, with the most similar name.
        FileError: If the file has another format, is damaged, or holds Python objects.
    """
    path = to_location(path)
    with storage_of(path).open(path) as file:
        before = _stamp(file)
        if checksum is not None and validation.checksum_of(file) != checksum:
            raise FileError(f"{str(path)!r} is damaged: it has changed since it was written. Use an older copy.")
        if path.suffix == ".safetensors":
            content: Any = safetensors.read(file, path, device)
        else:
            content = _read_archive(file, path, device)
        if _stamp(file) != before:
            raise FileError(f"{str(path)!r} was changed while it was read. Load it again when it is complete.")
    return content


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _read_archive(file: IO[bytes], path: Location, device: torch.device | str) -> Any:
    validation.check_archive(file, path)
    file.seek(0)
    try:
        return validation.check_content(torch.load(file, map_location=device, weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise validation.python_objects_error(path) from error
    except (FileError, *OUT_OF_MEMORY):
        raise
    # torch.load raises many types of exceptions for damaged files.
    except Exception as error:
        raise FileError(f"{str(path)!r} cannot be read: {type(error).__name__}: {error}. Use an older copy.") from error


def is_model(content: Any) -> bool:
    """Return whether ``content`` was written by ``Model.save``."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def read_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", *, verified: bool = False
) -> dict[str, Any]:
    """Return the content of a file of ``Model.save``. Of a sharded checkpoint, return the content of the index file.

    Args:
        path: The file.
        device: The device of the tensors.
        verified: Whether another rank has already verified the shards.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If ``read`` raises it, if the file is no saved model or has a newer format, or if a shard is missing or has
            changed.
    """
    content = read(path, device)
    if not is_model(content):
        has_tensors = isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())
        fix = "It holds only weights: use load_weights()." if has_tensors else "Pass a file that Model.save() wrote."
        raise FileError(f"{str(path)!r} is not a saved model. {fix}")
    version = content.get("version")
    if not isinstance(version, int) or not isinstance(content.get("module"), Mapping):
        raise FileError(f"{str(path)!r} is incomplete: its version or its module is missing. Use an older copy.")
    if version > VERSION:
        raise FileError(
            f"{str(path)!r} has format version {version}, but this easytorch reads versions up to {VERSION}. "
            "Update it: pip install --upgrade easytorch-fit"
        )
    if content.get("shards") is not None and not verified:
        validation.check_shards(content["shards"], to_location(path))
    return dict(content)


@contextlib.contextmanager
def as_file_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors from unexpected content of ``path`` into a ``FileError`` that names the file."""
    try:
        yield
    except (FileError, ResumeError, OSError, *OUT_OF_MEMORY):
        raise
    except (TypeError, KeyError, AttributeError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        raise FileError(
            f"{str(path)!r} is not a valid model file: {type(error).__name__}: {error}. Use an older copy."
        ) from error


def extract_weights(content: Any) -> Any:
    """Return the state dict in the content of a file: the content itself, or the value of a usual key in it."""
    if not isinstance(content, Mapping):
        return content
    keys = ("module",) if is_model(content) else STATE_DICT_KEYS
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)


def _estimate_size(content: Any) -> int:
    """Return the approximate size of a file with ``content``, in bytes."""
    storages = [leaf.untyped_storage() for leaf in leaves(content) if isinstance(leaf, Tensor)]
    sizes = {storage.data_ptr(): storage.nbytes() + 512 for storage in storages}
    return sum(sizes.values()) + 4096
