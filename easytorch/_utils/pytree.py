"""Nested structures of tensors (pytrees): map, concatenate, describe.

Dicts, lists, tuples, named tuples and dataclasses are structure. Everything else is a leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# The number of items of a list or tuple that ``describe`` shows.
MAX_ITEMS = 4


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to every leaf."""
    # The most frequent types come first: isinstance(tree, Mapping) is slow.
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)([map_leaves(function, value) for value in tree])
    if isinstance(tree, Mapping):
        return _rebuild_mapping(tree, {key: map_leaves(function, value) for key, value in tree.items()})
    if not _is_structure(tree):
        return function(tree)
    return _rebuild(tree, [map_leaves(function, child) for child in _children(tree, tree)])


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the leaves of ``tree`` from left to right."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from leaves(value)
    elif _is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))
    else:
        yield tree


def has_instance(values: Iterable[Any], kind: type[Any] | tuple[type[Any], ...]) -> bool:
    """Return whether one of ``values`` is a ``kind``; thousands of values have few types, so it takes no loop in Python."""
    return any(issubclass(found, kind) for found in set(map(type, values)))


def are_instances(values: Iterable[Any], kind: type[Any] | tuple[type[Any], ...]) -> bool:
    """Return whether each of ``values`` is a ``kind``; see ``has_instance``."""
    return all(issubclass(found, kind) for found in set(map(type, values)))


def to_numpy(leaf: Any) -> Any:
    """Return a tensor as a NumPy array, bfloat16 as float32; return anything else unchanged."""
    if not isinstance(leaf, Tensor):
        return leaf
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy(force=True)


def concatenate(trees: Sequence[Any]) -> Any:
    """Concatenate ``trees`` of the same structure along the first dimension of their arrays.

    Arrays without dimensions, such as a loss, are stacked. Other leaves are collected in a list, unless they are the same object
    in every tree.
    """
    first = trees[0]
    if isinstance(first, np.ndarray):
        return np.stack(list(trees)) if first.ndim == 0 else np.concatenate(list(trees))
    if not _is_structure(first):
        return first if all(tree is first for tree in trees) else list(trees)
    columns = zip(*(_children(tree, first) for tree in trees), strict=True)
    return _rebuild(first, [concatenate(column) for column in columns])


def describe(tree: Any) -> str:
    """Return a description of ``tree`` in one line: ``(float32 [64, 784], int64 [64])``."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {list(tree.shape)}"
    if isinstance(tree, np.ndarray):
        return f"NumPy {tree.dtype} {list(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        items = ", ".join(describe(value) for value in tree[:MAX_ITEMS]) + (", ..." if len(tree) > MAX_ITEMS else "")
        return f"({items})" if isinstance(tree, tuple) else f"[{items}]"
    return "nothing" if tree is None else type(tree).__name__


def _is_structure(tree: Any) -> bool:
    # A PackedSequence is a named tuple, but its tensors belong together and are not all on one device.
    if isinstance(tree, PackedSequence):
        return False
    return isinstance(tree, (tuple, list, Mapping)) or _is_dataclass(tree)


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _children(tree: Any, template: Any) -> list[Any]:
    """Return the children of ``tree`` in the order of those of ``template``, which has the same structure."""
    if isinstance(template, Mapping):
        return [tree[key] for key in template]
    if isinstance(template, (tuple, list)):
        return list(tree)
    return [getattr(tree, name) for name in _field_names(template)]


def _rebuild(template: Any, children: list[Any]) -> Any:
    """Return the structure of ``template`` with other ``children``."""
    if isinstance(template, Mapping):
        return _rebuild_mapping(template, dict(zip(template, children, strict=True)))
    if isinstance(template, (tuple, list)):
        is_named_tuple = isinstance(template, tuple) and hasattr(template, "_fields")
        return type(template)(*children) if is_named_tuple else type(template)(children)
    return dataclasses.replace(template, **dict(zip(_field_names(template), children, strict=True)))


def _rebuild_mapping(template: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return ``items`` in the type of ``template``; as a dict if the type cannot be created from one."""
    kind: Any = type(template)
    if kind is dict:
        return items
    try:
        return kind(items)  # most mappings accept a dict
    except TypeError:
        return items


def _field_names(instance: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(instance) if field.init]
