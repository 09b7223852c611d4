"""Tensors, arrays and data frames as one dataset."""

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
    """A dataset of tensors in any nesting; a sample has one row of each tensor.

    Args:
        tree: Tensors, arrays or frames of equal length, in dicts, lists and tuples.

    Raises:
        ValueError: If the lengths differ.
        TypeError: If a value is not numeric.

    Examples:
        >>> dataset = ArrayDataset((x, y))
        >>> inputs, target = dataset[0]
    """

    def __init__(self, tree: Any) -> None:
        self.tree = as_tensors(tree)
        lengths = sorted({len(leaf) for leaf in leaves(self.tree) if isinstance(leaf, Tensor)})
        if len(lengths) > 1:
            raise ValueError(
                "Inputs, targets and weights have different lengths: expected one row for each sample in all of them, "
                f"received {' and '.join(map(str, lengths))} rows in {describe(self.tree)}. Check that len(x) == len(y)."
            )
        self.size = lengths[0] if lengths else 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return map_leaves(lambda leaf: None if leaf is None else leaf[index], self.tree)


class BatchedArrayDataset(ArrayDataset):
    """An ``ArrayDataset`` that returns all rows of a batch at once; needs ``collate_fn=as_batch``."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the rows at ``indices`` as a batch; a ``DataLoader`` calls this method if it exists."""
        rows = torch.as_tensor(indices)
        return map_leaves(lambda leaf: None if leaf is None else leaf[rows.to(leaf.device)], self.tree)


class WrapperDataset(Dataset[Any]):
    """A dataset of this package around a dataset of the user, with the same samples.

    Args:
        dataset: The dataset of the user.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)


def as_batch(rows: Any) -> Any:
    """Return ``rows`` unchanged: ``BatchedArrayDataset`` returns batches already."""
    return rows


def load_samples(dataset: Any, indices: Sequence[Any]) -> Any:
    """Return the samples at ``indices``, with one call if ``dataset`` has ``__getitems__``."""
    load_together = getattr(dataset, "__getitems__", None)
    return load_together(indices) if load_together else [dataset[index] for index in indices]


def as_tensors(tree: Any) -> Any:
    """Return ``tree`` with each array, frame and list of numbers as a tensor."""
    tensor = _list_as_tensor(tree) if isinstance(tree, list) and tree else None
    if tensor is not None:
        return tensor
    if isinstance(tree, Mapping):
        return {key: as_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(as_tensors(value) for value in tree)
    return map_leaves(as_tensor, tree)


def _list_as_tensor(items: list[Any]) -> Tensor | None:
    """Return a list of numbers, nested or not, as a tensor; None for other lists."""
    if all(isinstance(leaf, (int, float, str, np.generic)) for leaf in leaves(items)):
        return from_numpy(_list_values(items))
    # list(y) of a tensor y
    if all(isinstance(item, Tensor) and not item.ndim for item in items):
        return torch.stack(items)
    return None


def as_tensor(leaf: Any) -> Any:
    """Return an array, frame, series or list of numbers as a tensor; a frame's columns become floats."""
    if leaf is None:
        return None
    tensor = leaf if isinstance(leaf, Tensor) else _convert(leaf)
    if tensor.ndim == 0:
        raise ValueError(
            f"Expected one row for each sample, received the single number {tensor.item()}. Pass an array, for example "
            f"[{tensor.item()}]."
        )
    return tensor


def _convert(leaf: Any) -> Tensor:
    if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy"):
        return from_numpy(_frame_values(leaf))
    if hasattr(leaf, "to_numpy"):
        return from_numpy(leaf.to_numpy())
    if isinstance(leaf, np.ndarray):
        return from_numpy(leaf)
    if isinstance(leaf, (Sequence, float, int)) and not isinstance(leaf, str):
        return from_numpy(_list_values(leaf))
    raise TypeError(
        f"Expected numbers, received {leaf!r} of type {type(leaf).__name__}. Pass tensors, arrays or frames, for example "
        "fit(torch.tensor(x), torch.tensor(y))."
    )


def _frame_values(frame: Any) -> np.ndarray[Any, Any]:
    dtypes = zip(frame.columns, frame.dtypes, strict=True)
    text = [repr(str(name)) for name, dtype in dtypes if getattr(dtype, "kind", "O") not in "biuf"]
    if text:
        raise TypeError(
            f"Expected numbers in the columns of the frame, but {', '.join(text)} are not numbers. Drop them, or encode them "
            "with pandas.get_dummies(frame)."
        )
    return np.asarray(frame.to_numpy(dtype="float64", na_value=np.nan))


def _list_values(numbers: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(numbers)
    # NumPy reports an "inhomogeneous shape".
    except ValueError as error:
        raise ValueError(f"The rows of a list have different lengths: expected equal lengths. {PAD_HINT}") from error


def is_array(leaf: Any) -> bool:
    """Return whether ``leaf`` is a tensor, an array, a frame or a series."""
    return isinstance(leaf, (Tensor, np.ndarray)) or (hasattr(leaf, "to_numpy") and hasattr(leaf, "__len__"))


def is_map_style(x: Any) -> bool:
    """Return whether ``x`` is a dataset, of torch or another library, whose samples have an index."""
    if isinstance(x, Dataset):
        return True
    return hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, (list, tuple, Mapping, str, bytes))


def has_custom_transform(dataset: Any) -> bool:
    """Return whether ``dataset`` is a Hugging Face dataset with a user function as transform (``with_transform``)."""
    format_ = getattr(dataset, "format", None)
    return isinstance(format_, Mapping) and format_.get("type") == "custom"
