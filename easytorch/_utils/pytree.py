"""Nested batches: map, concatenate and describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``function`` to every leaf of ``tree`` and keep its structure.

    Dicts, lists, tuples, named tuples and dataclasses are structure; whatever else is found is a leaf.
    """
    if isinstance(tree, Tensor):  # by far the most frequent case
        return function(tree)
    if type(tree) in (tuple, list):  # then this: asking whether something is a Mapping takes long
        return type(tree)([map_leaves(function, value) for value in tree])
    if isinstance(tree, Mapping):
        return _like(tree, {key: map_leaves(function, value) for key, value in tree.items()})
    if isinstance(tree, PackedSequence):  # a named tuple, whose parts do not all go to one device
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_leaves(function, value) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: map_leaves(function, getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(tree, **fields)
    return function(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the leaves of ``tree`` from left to right."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from leaves(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))
    else:
        yield tree


def to_numpy(leaf: Any) -> Any:
    """Return a tensor as a NumPy array, bfloat16 as float32; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy(force=True)


def concatenate(trees: Sequence[Any]) -> Any:
    """Join equally structured ``trees`` of arrays along their first dimension.

    Leaves without a first dimension (a loss among the outputs) are stacked; leaves that are not tensors and not
    the same in every tree are gathered in a list.
    """
    first = trees[0]
    if isinstance(first, np.ndarray):
        return np.stack(list(trees)) if first.ndim == 0 else np.concatenate(list(trees))
    if isinstance(first, Mapping):
        return _like(first, {key: concatenate([tree[key] for tree in trees]) for key in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(concatenate(column) for column in zip(*trees, strict=True)))
    if isinstance(first, (tuple, list)):
        return type(first)(concatenate(column) for column in zip(*trees, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first) if field.init]
        joined = {name: concatenate([getattr(tree, name) for tree in trees]) for name in names}
        return dataclasses.replace(first, **joined)
    return first if all(tree is first for tree in trees) else list(trees)


def describe(tree: Any) -> str:
    """Say in one line what ``tree`` holds: ``(float32 [64, 784], int64 [64])``."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {list(tree.shape)}"
    if isinstance(tree, np.ndarray):
        return f"NumPy {tree.dtype} {list(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        inner = ", ".join(describe(value) for value in tree[:4]) + (", ..." if len(tree) > 4 else "")
        return f"({inner})" if isinstance(tree, tuple) else f"[{inner}]"
    return "nothing" if tree is None else type(tree).__name__


def _like(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return ``items`` as the same kind of mapping, a plain dict where it cannot be made from one."""
    if type(original) is dict:
        return items
    try:
        return type(original)(items)  # type: ignore[call-arg]  # any mapping may
    except TypeError:
        return items
