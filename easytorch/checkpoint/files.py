"""Writing and reading of files."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.atomic_file import write_atomically
from easytorch._utils.pytree import leaves
from easytorch._utils.registry import did_you_mean
from easytorch.checkpoint import validation
from easytorch.errors import FileError, ResumeError

FORMAT = "easytorch"
VERSION = 1
NO_MEMORY = MemoryError, torch.OutOfMemoryError  # the file may be as whole as ever


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write ``content``, of tensors and plain values, so that at no moment is there half a file at ``path``.

    It is written to a temporary file in the same folder, synced, and renamed; then the folder is synced. Whatever goes
    wrong, the file that was there before stays as it is.

    Raises:
        OSError: If it cannot be written; the message names the file, the reason and what to do.
    """
    whole = validation.to_serializable(dict(content), "the content")
    return write_atomically(Path(path), lambda file: torch.save(whole, file), _size(whole))


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raise an error if a whole model is to be written to a file with the name of mere weights."""
    if Path(path).suffix == ".safetensors":
        other = str(Path(path).with_suffix(".pt"))
        raise ValueError(
            f"{os.fspath(path)!r} is a name for weights alone, and this would be a whole model. Name it {other!r}, or keep the "
            "weights: save_weights(path), ModelCheckpoint(path, save_weights_only=True)."
        )


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> Path:
    """Write ``tensors`` in the safetensors format, as safely as ``write``, with a checksum, which the format has not."""
    save = _safetensors().save
    # The format knows neither shared nor strided memory; names that share a tensor are written once each.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(plain, metadata={validation.CHECKSUM: validation.digest(save(plain))})
    return write_atomically(Path(path), lambda file: file.write(data), len(data))


def read(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """Return what is in ``path``: written by ``write`` or by ``torch.save``, or a ``.safetensors`` file.

    The archive's checksums are verified first, which torch does not do, and nothing in the file is run.

    Raises:
        FileNotFoundError: If there is no such file.
        FileError: If it is not such a file, is damaged, or holds something else than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*") if other.is_file()] if path.parent.exists() else []
        raise FileNotFoundError(f"There is no file {str(path)!r}.{did_you_mean(path.name, beside)}")
    if path.is_dir():
        raise FileError(f"{str(path)!r} is a folder. Name the file in it.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device)
    validation.check_archive(path)
    try:
        return validation.check_content(torch.load(path, map_location=device, weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{str(path)!r} holds Python objects, which could run code when they are loaded, so it is not read. "
            "If you trust it, read it with torch.load(..., weights_only=False) and pass the state dict to net.load_state_dict()."
        ) from error
    except (FileError, *NO_MEMORY):
        raise
    except Exception as error:  # torch.load raises ten kinds of exceptions on damaged files
        raise FileError(
            f"{str(path)!r} cannot be read: {type(error).__name__}: {error}. Take an older copy."
        ) from error


def is_model(content: Any) -> bool:
    """Whether ``content`` was written by ``Model.save``."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def read_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", *, verified: bool = False
) -> dict[str, Any]:
    """Return what ``Model.save`` wrote to ``path``; see ``read``. Of a checkpoint in parts this is all but the parts.

    Args:
        path: The file.
        device: Where its tensors go.
        verified: Whether another process has looked at all parts already.

    Raises:
        FileError: Also if it was written by something else, or by a later version of this library; if a part is missing or is
            not the one that was written.
    """
    content = read(path, device)
    if not is_model(content):
        tensors = isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())
        what = "It holds weights alone: use load_weights()." if tensors else "Name a file that Model.save() wrote."
        raise FileError(f"{str(path)!r} is not a saved model. {what}")
    if not isinstance(content.get("version"), int) or not isinstance(content.get("module"), Mapping):
        raise FileError(
            f"{str(path)!r} is not a whole model: its version or its module is missing. Take an older copy."
        )
    if content["version"] > VERSION:
        raise FileError(
            f"{str(path)!r} has version {content['version']} of the format; this easytorch reads up to {VERSION}: "
            "pip install --upgrade easytorch-fit"
        )
    if content.get("parts") is not None and not verified:
        validation.check_shards(content["parts"], Path(path))
    return dict(content)


@contextlib.contextmanager
def as_file_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever content of another kind raises inside into an error that names the file."""
    try:
        yield
    except (FileError, ResumeError, OSError, *NO_MEMORY):
        raise
    except (TypeError, KeyError, AttributeError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        raise FileError(
            f"{str(path)!r} is not a whole model: {type(error).__name__}: {error}. Take an older copy."
        ) from error


def to_serializable_or_none(value: Any) -> Any:
    """Return ``value``, NumPy's numbers as Python's, if it is numbers, text, None, lists and dicts of these; else None."""

    def made(part: Any) -> Any:
        part = part.item() if isinstance(part, np.generic) else part
        if isinstance(part, Mapping) and all(isinstance(key, (str, int)) for key in part):
            return {key: made(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [*map(made, part)] if isinstance(part, list) else (*map(made, part),)
        if part is None or type(part) in (bool, int, float, str):
            return part
        raise TypeError

    try:
        return made(value)
    except TypeError:
        return None


def extract_weights(content: Any) -> Any:
    """Return the state dict in what a file holds: the whole, or what people call it in a larger dict."""
    if not isinstance(content, Mapping):
        return content
    keys = ("module",) if is_model(content) else ("state_dict", "model_state_dict", "model")
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)


def _size(content: Any) -> int:
    """Return about how many bytes ``content`` takes in a file."""
    tensors = {leaf.untyped_storage().data_ptr(): leaf for leaf in leaves(content) if isinstance(leaf, Tensor)}
    return sum(one.untyped_storage().nbytes() + 512 for one in tensors.values()) + 4096


def _read_safetensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    load = _safetensors().load
    data = path.read_bytes()
    try:
        tensors: dict[str, Tensor] = load(data)
        checksum = validation.checksum(data)
    except Exception as error:  # the library's own exception type is not public
        raise FileError(f"{str(path)!r} is not a whole safetensors file: {error}. Take an older copy.") from error
    if checksum is not None and checksum != validation.digest(data):
        raise FileError(f"{str(path)!r} is damaged: its checksum does not match. Take an older copy.")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("Files that end in .safetensors need safetensors: pip install safetensors") from error
    return safetensors.torch
