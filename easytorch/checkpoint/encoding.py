"""Encoding of Python containers as tensors and plain values that a file can hold."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Key of the kind in an encoded value. Dicts of the user are encoded as lists of pairs, so that none has this key.
KIND = "encoded"
# Sequences of at least this many items are stored as columns: a replay buffer of 100,000 transitions becomes a few tensors.
MIN_ROWS = 16
# Structures of the items of one sequence that are stored as columns.
MAX_TEMPLATES = 16
MAX_DEPTH = 12


class EncodingError(TypeError):
    """A value that a file cannot hold."""


def encode(value: Any, depth: int = 0) -> Any:
    """Return ``value`` in types that a file can hold; ``decode`` returns an equal value.

    Args:
        value: A number, text, None, a tensor, a NumPy array or number; or a list, tuple, dict, set, deque, named tuple or
            dataclass of these. A tensor of the CPU is decoded to the CPU, others to where the file was loaded.
        depth: The number of containers around ``value``.

    Raises:
        EncodingError: If a value has another type, or containers are nested deeper than ``MAX_DEPTH``.

    Examples:
        >>> decode(encode(deque([(1, 2.0)], maxlen=8)))
        deque([(1, 2.0)], maxlen=8)
    """
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:
        return value if abs(value) < 2**63 else {KIND: "int", "value": str(value)}
    if isinstance(value, Tensor):
        return {KIND: "tensor", "device": value.device.type, "value": _encode_tensor(value)}
    if isinstance(value, np.generic) and value.dtype.name in _NUMBERS:
        return {KIND: "number", "dtype": value.dtype.name, "value": value.item()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {KIND: "array", "value": torch.from_numpy(value.copy())}
    if type(value) is complex:
        return {KIND: "complex", "value": [value.real, value.imag]}
    if type(value) is bytes:
        return {KIND: "bytes", "value": torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else None}
    if depth > MAX_DEPTH:
        raise EncodingError(f"containers nested deeper than {MAX_DEPTH} levels")
    return _encode_container(value, depth)


def decode(value: Any) -> Any:
    """Return what ``encode`` has encoded.

    Raises:
        ValueError: If ``value`` was not returned by ``encode``, or names a class that this program does not have.
    """
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind in _DECODERS:
        return _DECODERS[kind](value)
    raise ValueError(f"unknown kind {kind!r}")


def _encode_tensor(value: Tensor) -> Tensor:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise EncodingError(f"a tensor with the layout {value.layout}")
    return value.detach()


def _encode_container(value: Any, depth: int) -> dict[str, Any]:
    kind = type(value)
    if kind in (list, tuple):
        return {KIND: kind.__name__, **_encode_items(value, depth)}
    if kind is deque:
        return {KIND: "deque", "maxlen": value.maxlen, **_encode_items(value, depth)}
    if kind in (set, frozenset):
        items = list(value)
        # The order of a set of text differs between processes.
        items = sorted(items) if all(isinstance(item, str) for item in items) else items
        return {KIND: kind.__name__, **_encode_items(items, depth)}
    if kind in (dict, OrderedDict, Counter):
        keys, values = _encode_items(list(value), depth), _encode_items(list(value.values()), depth)
        return {KIND: kind.__name__, "keys": keys, "values": values}
    if kind is defaultdict and value.default_factory in _FACTORIES.values():
        factory = next(name for name, cls in _FACTORIES.items() if cls is value.default_factory)
        keys, values = _encode_items(list(value), depth), _encode_items(list(value.values()), depth)
        return {KIND: "defaultdict", "factory": factory, "keys": keys, "values": values}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {KIND: "namedtuple", **_class_name(kind), **_encode_items(value, depth)}
    if _is_plain_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return {KIND: "dataclass", **_class_name(kind), **_encode_items([getattr(value, n) for n in names], depth)}
    raise EncodingError(f"{kind.__name__}, {str(value)[:60]!r}")


def _class_name(cls: type) -> dict[str, str]:
    return {"module": cls.__module__, "class": cls.__qualname__}


def _is_plain_dataclass(cls: Any) -> bool:
    """Return whether ``cls`` is a dataclass whose construction runs no custom code."""
    is_class = isinstance(cls, type) and dataclasses.is_dataclass(cls)
    return is_class and cls.__new__ is object.__new__ and not hasattr(cls, "__del__")


# Sequences as columns


def _encode_items(items: Sequence[Any], depth: int) -> dict[str, Any]:
    """Return the items one by one, or as columns if there are many of the same structure."""
    columns = _encode_columns(items) if len(items) >= MIN_ROWS else None
    return columns or {"items": [encode(item, depth + 1) for item in items]}


def _encode_columns(items: Sequence[Any]) -> dict[str, Any] | None:
    """Return ``items`` as one column per leaf and structure, None if they have too many structures."""
    templates: dict[Any, int] = {}
    rows: list[list[list[Any]]] = []  # the leaves of each item, by template
    index = []
    for item in items:
        leaves: list[Any] = []
        try:
            template = _flatten(item, leaves, 0)
        except _NoTemplateError:
            return None
        number = templates.setdefault(template, len(templates))
        if number == MAX_TEMPLATES:
            return None
        if number == len(rows):
            rows.append([])
        rows[number].append(leaves)
        index.append(number)
    return {
        "templates": [_to_lists(template) for template in templates],
        "index": torch.tensor(index, dtype=torch.int8),
        "columns": [[_stack(column) for column in zip(*leaves, strict=True)] for leaves in rows],
    }


class _NoTemplateError(Exception):
    """A value that is not stored in columns."""


def _flatten(item: Any, leaves: list[Any], depth: int) -> Any:
    """Append the leaves of ``item`` to ``leaves`` and return its structure, which is hashable."""
    kind = type(item)
    if item is None:
        return "none"
    if kind in (bool, float, str) or (kind is int and abs(item) < 2**63):
        leaves.append(item)
        return kind.__name__
    if isinstance(item, Tensor):
        leaves.append(_encode_tensor(item))
        return ("tensor", item.device.type, str(item.device), str(item.dtype), tuple(item.shape))
    if isinstance(item, np.generic) and item.dtype.name in _NUMBERS:
        leaves.append(item.item())
        return ("number", item.dtype.name)
    if isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
        leaves.append(torch.from_numpy(item.copy()))
        return ("array", item.dtype.name, item.shape)
    if depth > MAX_DEPTH:
        raise _NoTemplateError
    if kind in (list, tuple):
        return (kind.__name__, *(_flatten(child, leaves, depth + 1) for child in item))
    if kind is dict and all(type(key) is str for key in item):
        return ("dict", tuple(item), *(_flatten(child, leaves, depth + 1) for child in item.values()))
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        children = (_flatten(child, leaves, depth + 1) for child in item)
        return ("namedtuple", kind.__module__, kind.__qualname__, *children)
    if _is_plain_dataclass(kind):
        values = (getattr(item, field.name) for field in dataclasses.fields(kind))
        children = (_flatten(child, leaves, depth + 1) for child in values)
        return ("dataclass", kind.__module__, kind.__qualname__, *children)
    raise _NoTemplateError


def _to_lists(template: Any) -> Any:
    return [_to_lists(part) for part in template] if isinstance(template, tuple) else template


def _stack(column: Sequence[Any]) -> Any:
    """Return the leaves of one column as a tensor, or as a list of text."""
    first = column[0]
    if isinstance(first, Tensor):
        return torch.stack(list(column))
    if type(first) is str:
        return list(column)
    return torch.tensor(column, dtype={bool: torch.bool, int: torch.int64, float: torch.float64}[type(first)])


def _decode_items(value: dict[str, Any]) -> Iterator[Any]:
    """Yield the items of a sequence."""
    if "items" in value:
        yield from map(decode, value["items"])
        return
    columns = [[_unstack(column) for column in group] for group in value["columns"]]
    for number in value["index"].tolist():
        yield _build(value["templates"][number], columns[number])


def _unstack(column: Any) -> Iterator[Any]:
    if not isinstance(column, Tensor):
        return iter(column)
    return iter(column.unbind()) if column.ndim > 1 else iter(list(column))


def _build(template: Any, columns: list[Iterator[Any]]) -> Any:
    """Return the next item, whose leaves are the next values of ``columns``."""
    remaining = iter(columns)

    def build(part: Any) -> Any:
        if part == "none":
            return None
        if isinstance(part, str):
            value = next(next(remaining))
            return value if part == "str" else value.item()
        kind, *rest = part
        if kind == "tensor":
            return _decode_tensor(rest[0], next(next(remaining)))
        if kind == "number":
            return _NUMBERS[rest[0]](next(next(remaining)).item())
        if kind == "array":
            return next(next(remaining)).cpu().numpy().copy()
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](build(child) for child in rest)
        if kind == "dict":
            return dict(zip(rest[0], map(build, rest[1:]), strict=True))
        module, name, *children = rest
        return _construct(kind, module, name, [build(child) for child in children])

    return build(template)


def _decode_tensor(device: str, value: Tensor) -> Tensor:
    """Return a copy of ``value``, on the CPU if it was there."""
    return (value.cpu() if device == "cpu" else value).clone()


def _construct(kind: str, module: str, name: str, values: list[Any]) -> Any:
    """Return a named tuple or dataclass of a class of this program, without calling its constructor."""
    if kind == "namedtuple":
        cls = _find_class(module, name, tuple, lambda cls: len(getattr(cls, "_fields", ())) == len(values))
        return tuple.__new__(cls, values)
    cls = _find_class(module, name, object, _is_plain_dataclass)
    instance = object.__new__(cls)
    for field, value in zip(dataclasses.fields(cls), values, strict=True):
        object.__setattr__(instance, field.name, value)
    return instance


def _find_class(module: str, name: str, base: type, fits: Callable[[Any], bool]) -> Any:
    """Return the class of this program with this name; it may be local to a function."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # getattr could run code of a module
    candidates = [found, *reversed(base.__subclasses__())]
    for cls in candidates:
        if isinstance(cls, type) and (cls.__module__, cls.__qualname__) == (module, name) and fits(cls):
            return cls
    raise ValueError(f"the class {module}.{name} does not exist in this program or has other fields")


# The scalar types of NumPy by name.
_INTEGERS = [f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)]
_NUMBERS: dict[str, Any] = {name: np.dtype(name).type for name in ("bool", "float16", "float32", "float64", *_INTEGERS)}
_FACTORIES: dict[str, Any] = {"int": int, "float": float, "list": list, "dict": dict, "set": set}


def _decode_dict(value: dict[str, Any]) -> Any:
    pairs = zip(_decode_items(value["keys"]), _decode_items(value["values"]), strict=True)
    if value[KIND] == "defaultdict":
        return defaultdict(_FACTORIES[value["factory"]], pairs)
    if value[KIND] == "Counter":
        return Counter(dict(pairs))
    return OrderedDict(pairs) if value[KIND] == "OrderedDict" else dict(pairs)


_DECODERS: dict[Any, Callable[[dict[str, Any]], Any]] = {
    "int": lambda value: int(value["value"]),
    "number": lambda value: _NUMBERS[value["dtype"]](value["value"]),
    "tensor": lambda value: _decode_tensor(value["device"], value["value"]),
    "array": lambda value: value["value"].cpu().numpy().copy(),
    "complex": lambda value: complex(*value["value"]),
    "bytes": lambda value: b"" if value["value"] is None else value["value"].cpu().numpy().tobytes(),
    "list": lambda value: list(_decode_items(value)),
    "tuple": lambda value: tuple(_decode_items(value)),
    "deque": lambda value: deque(_decode_items(value), value["maxlen"]),
    "set": lambda value: set(_decode_items(value)),
    "frozenset": lambda value: frozenset(_decode_items(value)),
    "dict": _decode_dict,
    "OrderedDict": _decode_dict,
    "Counter": _decode_dict,
    "defaultdict": _decode_dict,
    "namedtuple": lambda v: _construct("namedtuple", v["module"], v["class"], list(_decode_items(v))),
    "dataclass": lambda v: _construct("dataclass", v["module"], v["class"], list(_decode_items(v))),
}
