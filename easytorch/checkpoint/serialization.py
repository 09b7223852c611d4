"""Conversion of values to the types that a file can hold."""

from __future__ import annotations

import functools
import io
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.paths import printable

# Dicts and lists may be nested in so many levels. torch and this package visit them by recursion.
MAX_DEPTH = 100
# A text counts as one value for so many characters.
TEXT_OF_VALUE = 1000
# MultiStepLR stores its milestones in a Counter.
DICT_TYPES = (dict, OrderedDict, Counter)
LIST_TYPES = (list, tuple, torch.Size)
SCALAR_TYPES = (type(None), bool, float, str, torch.dtype)


def to_serializable(tree: Any, where: str = "content") -> Any:
    """Return ``tree`` with only types that a file can hold: tensors, numbers, text, None, dicts, lists and tuples.

    NumPy scalars become Python numbers, NumPy arrays become tensors.

    Args:
        tree: A value, or nested dicts, lists and tuples of values.
        where: The name of ``tree`` for the error message.

    Raises:
        TypeError: If a value has another type or is nested too deeply, with its place.
    """
    return Conversion().convert(tree, where)


class Conversion:
    """The conversion of one tree.

    Attributes:
        count: The number of values in the tree so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def convert(self, tree: Any, where: str, depth: int = 0) -> Any:
        """Return ``tree`` with only types that a file can hold; see ``to_serializable``."""
        self.count += 1
        value = _from_numpy(tree)
        if type(value) in SCALAR_TYPES or _is_int64(value):
            self.count += len(value) // TEXT_OF_VALUE if type(value) is str else 0
            return value
        if type(value) in DICT_TYPES or type(value) in LIST_TYPES:
            return self._convert_children(value, where, depth)
        if isinstance(value, Tensor) and (tensor := _to_plain_tensor(value)) is not None:
            return tensor
        raise TypeError(
            f"{where}: a file of tensors and plain values cannot hold {_describe(value)}. "
            "Return only tensors, numbers, text, and dicts and lists of these from state_dict()."
        )

    def _convert_children(self, value: Any, where: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise TypeError(
                f"{where[:120]}...: a file can hold dicts and lists in at most {MAX_DEPTH} levels, and these have more, or "
                "contain themselves. Return a flat list from state_dict()."
            )
        if type(value) in DICT_TYPES:
            plain = {
                self._check_key(key, where): self.convert(child, _child_name(where, key), depth + 1)
                for key, child in value.items()
            }
            return self._convert_versions(value, plain, depth)
        children = [self.convert(child, f"{where}[{i}]", depth + 1) for i, child in enumerate(value)]
        return children if type(value) is list else tuple(children)

    def _convert_versions(self, value: Any, plain: dict[Any, Any], depth: int) -> dict[Any, Any]:
        """Return ``plain``, with the versions of modules that ``value`` has if it is a state dict of a module."""
        versions = getattr(value, "_metadata", None) if type(value) is OrderedDict else None
        if not versions:
            return plain
        state = OrderedDict(plain)
        vars(state)["_metadata"] = self.convert(dict(versions), "_metadata", depth + 1)
        return state

    def _check_key(self, key: Any, where: str) -> Any:
        if type(key) is str:
            self.count += len(key) // TEXT_OF_VALUE
        elif type(key) is not bool and not _is_int64(key):
            raise TypeError(
                f"{where or 'the content'} has the key {key!r} of type {type(key).__name__}. A file can hold only keys of text "
                "or 64-bit integers. Convert the keys in state_dict(), for example with str(key)."
            )
        return key


def _child_name(where: str, key: Any) -> str:
    """Return ``where.key``, or ``where['a key']`` if the key is not a Python name."""
    if isinstance(key, str) and key.isidentifier():
        return f"{where}.{key}" if where else key
    return f"{where}[{printable(key)!r}]" if isinstance(key, str) else f"{where}[{key!r}]"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = type(value).__name__ if type(value) is not Tensor else str(value.layout).removeprefix("torch.")
        kind = "nested" if value.is_nested else "meta" if value.is_meta else kind
        return f"this tensor ({kind}, {str(value.dtype).removeprefix('torch.')})"
    return f"{type(value).__name__}, {str(value)[:60]!r}"


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    return value


def _is_int64(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _to_plain_tensor(tensor: Tensor) -> Tensor | None:
    """Return ``tensor`` without subclass and attributes, with memory for all its values; None if no file can hold it."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return None
    if not _can_save(tensor.dtype):
        return None
    # A sharded tensor is written by its own ranks.
    if hasattr(tensor, "full_tensor"):
        return tensor
    if type(tensor) is torch.nn.Parameter and vars(tensor):
        tensor = tensor.detach()
    if type(tensor) is not torch.nn.Parameter and (type(tensor) is not Tensor or vars(tensor)):
        # A subclass with its own dispatch may store its values elsewhere.
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return None
        tensor = tensor.as_subclass(Tensor)
    is_expanded = tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    return tensor.clone(memory_format=torch.contiguous_format) if is_expanded else tensor


@functools.cache
def _can_save(dtype: torch.dtype) -> bool:
    """Return whether torch writes and reads tensors of ``dtype``: not those with fewer than 8 bits."""
    file = io.BytesIO()
    try:
        torch.save(torch.empty(1, dtype=dtype), file)
        file.seek(0)
        return bool(torch.load(file, weights_only=True).dtype == dtype)
    except Exception:  # torch raises a KeyError, or another error in other versions
        return False
