"""Tensors, arrays and frames as one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from easytorch._utils.pytree import describe, leaves, map_leaves
from easytorch.data.batch import PAD_HINT, from_numpy


class ArrayDataset(Dataset[Any]):
    """Rows of tensors in any nesting; a sample is one row of each.

    Args:
        tree: Tensors, arrays or frames of equal length, in dicts, lists and tuples.

    Raises:
        ValueError: If the lengths differ.
        TypeError: If something in it is not numbers.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = as_tensors(tree)
        sizes = {len(leaf) for leaf in leaves(self.tree) if isinstance(leaf, Tensor)}
        if len(sizes) > 1:
            raise ValueError(
                f"The parts of the data have different lengths, {' and '.join(map(str, sorted(sizes)))}: "
                f"{describe(self.tree)}. Give every input, target and weight one row for each sample."
            )
        self.size = sizes.pop() if sizes else 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return map_leaves(lambda leaf: None if leaf is None else leaf[index], self.tree)


class BatchedArrayDataset(ArrayDataset):
    """Rows that are fetched a whole batch at a time, which only ``as_batch`` may collate."""

    def __getitems__(self, indices: Sequence[int]) -> Any:  # torch fetches a batch by it, where it exists
        rows = torch.as_tensor(indices)
        return map_leaves(lambda leaf: None if leaf is None else leaf[rows.to(leaf.device)], self.tree)


def as_batch(rows: Any) -> Any:
    """Return ``rows``: what ``Batched`` fetches is a batch already."""
    return rows


def as_tensors(tree: Any) -> Any:
    """Turn every array, frame and list of numbers in ``tree`` into a tensor."""
    if isinstance(tree, list) and tree:
        if all(isinstance(leaf, (int, float, str, np.generic)) for leaf in leaves(tree)):
            return as_tensor(tree)
        if all(isinstance(leaf, Tensor) and not leaf.ndim for leaf in tree):  # list(y) of a tensor y
            return torch.stack(tree)
    if isinstance(tree, Mapping):
        return {key: as_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(as_tensors(value) for value in tree)
    return map_leaves(as_tensor, tree)


def as_tensor(leaf: Any) -> Any:
    """Turn an array, frame, series or list of numbers into a tensor; a frame's columns become floats."""
    if leaf is None or isinstance(leaf, Tensor):
        return _rows(leaf)
    if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy"):
        return from_numpy(_frame_values(leaf))
    if hasattr(leaf, "to_numpy"):
        return _rows(from_numpy(leaf.to_numpy()))
    if isinstance(leaf, (np.ndarray, Sequence, float, int)) and not isinstance(leaf, str):
        return _rows(from_numpy(leaf if isinstance(leaf, np.ndarray) else _array(leaf)))
    raise TypeError(
        f"Expected numbers, received {leaf!r} of type {type(leaf).__name__}. Pass tensors, arrays or frames."
    )


def stack_samples(x: Any, y: Any) -> tuple[Any, Any]:
    """Return ``x`` and ``y``, where both are lists of one part for each sample with the parts as the rows of one tensor.

    A list of arrays may also be several inputs. Those have one row for each sample themselves, which tells the two apart.
    """
    if not isinstance(x, list) or len(x) < 2 or not _are_alike(x) or not (is_array(y) or isinstance(y, list)):
        return x, y
    if isinstance(y, list) and any(np.ndim(part) for part in y):  # which may be several targets
        samples = len(y) == len(x) and _are_alike(y) and len(x[0]) != len(y[0])
        return (_stack(x), _stack(y)) if samples else (x, y)
    return (_stack(x), y) if len(y) == len(x) != len(x[0]) else (x, y)


def _are_alike(parts: list[Any]) -> bool:
    """Whether ``parts`` are arrays of one shape, with at least one dimension."""
    return (
        all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in parts)
        and len({tuple(part.shape) for part in parts}) == 1
    )


def _stack(parts: list[Any]) -> Any:
    return torch.stack(parts) if all(isinstance(part, Tensor) for part in parts) else np.stack(parts)


def _array(numbers: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(numbers)
    except ValueError as error:  # "inhomogeneous shape", as NumPy says
        raise ValueError(
            f"The rows of a list differ in shape, so that it is no array of numbers. {PAD_HINT}"
        ) from error


def _rows(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.ndim == 0:
        raise ValueError(f"Expected one row for each sample, received the single number {leaf.item()}.")
    return leaf


def _frame_values(frame: Any) -> np.ndarray[Any, Any]:
    text = [
        str(name)
        for name, dtype in zip(frame.columns, frame.dtypes, strict=True)
        if getattr(dtype, "kind", "O") not in "biuf"
    ]
    if text:
        raise TypeError(
            f"The columns {', '.join(map(repr, text))} of the frame are not numbers. Drop them, or encode them, for example "
            "by pandas.get_dummies(frame)."
        )
    return np.asarray(frame.to_numpy(dtype="float64", na_value=np.nan))


def is_arrays(x: Any, y: Any) -> bool:
    """Whether ``x``, with the targets ``y`` or without, is all rows at once, in any nesting."""
    if isinstance(x, Mapping):
        numbers = () if y is None else (int, float, np.generic)  # lists of them; without targets the dict is refused
        return all(is_array(leaf) or isinstance(leaf, numbers) for leaf in leaves(x))
    if isinstance(x, (list, tuple)):  # without targets a list holds batches
        return y is not None or (isinstance(x, tuple) and len(x) > 0 and all(map(is_array, leaves(x))))
    return is_array(x)


def is_array(leaf: Any) -> bool:
    """Whether ``leaf`` is a tensor, an array, a frame or a series."""
    return isinstance(leaf, (Tensor, np.ndarray)) or (hasattr(leaf, "to_numpy") and hasattr(leaf, "__len__"))


def is_map_style(x: Any) -> bool:
    """Whether ``x`` is a dataset, of torch or another library, whose samples are known by an index."""
    if isinstance(x, Dataset):
        return True
    return hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, (list, tuple, Mapping, str, bytes))


def transforms(dataset: Any) -> bool:
    """Whether ``dataset`` is one of Hugging Face that puts its rows through a function of the user's (``with_transform``)."""
    chosen = getattr(dataset, "format", None)
    return isinstance(chosen, Mapping) and chosen.get("type") == "custom"
