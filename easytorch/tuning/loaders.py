"""Loaders with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from easytorch._utils import torch_private
from easytorch._utils.integers import positive_int
from easytorch.data.arrays import check_is_read, is_arrays, is_map_style
from easytorch.data.batch import count_batches
from easytorch.data.loader import DEFAULT_BATCH_SIZE, as_loader, is_indexed


def check_data(method: str, x: Any, y: Any) -> None:
    """Raise a ``TypeError`` for what is no data, and for a number in the place of the targets, which would have no effect.

    Args:
        method: The name of the method, for the message.
        x: The data.
        y: The targets.
    """
    check_is_read("x", x)
    if isinstance(y, Number):
        raise TypeError(
            f"{method}() takes the targets as its second argument, received the number {y!r}. It has no epochs and no positional "
            f"batch_size: {method}(x, y), or {method}(loader)."
        )


def takes_batch_size(x: Any, y: Any) -> bool:
    """Return whether ``fit`` divides the data into batches."""
    return is_indexed(x, y) or (isinstance(x, IterableDataset) and not isinstance(x, DataLoader))


def count_samples(x: Any) -> int | None:
    """Return the number of samples of arrays or of a dataset; None if it is unknown."""
    while isinstance(x, (tuple, Mapping)) and len(x):
        x = next(iter(x.values() if isinstance(x, Mapping) else x))
    return count_batches(x)


def is_dataset(x: Any, y: Any) -> bool:
    """Return whether the data consists of samples that ``fit`` loads one by one."""
    return not isinstance(x, (DataLoader, tuple, IterableDataset)) and is_map_style(x) and not is_arrays(x, y)


def get_batch_size(x: Any, y: Any, batch_size: int | None) -> int | None:
    """Return the number of samples in a batch of ``fit``; None if it is unknown."""
    if takes_batch_size(x, y):
        return DEFAULT_BATCH_SIZE if batch_size is None else positive_int("batch_size", batch_size)
    return x.batch_size if isinstance(x, DataLoader) else None


def as_data_loader(x: Any, y: Any, batch_size: int | None, shuffle: bool | None) -> DataLoader[Any] | None:
    """Return the ``DataLoader`` that ``fit`` uses for a loader or a dataset; None for other data."""
    if isinstance(x, DataLoader):
        return x
    if not is_dataset(x, y):
        return None
    loader = as_loader(x, batch_size=batch_size, shuffle=True if shuffle is None else shuffle)
    return loader if isinstance(loader, DataLoader) else None


def with_workers(loader: DataLoader[Any], count: int) -> DataLoader[Any]:
    """Return a copy of ``loader`` with ``count`` worker processes."""
    return copy(loader, num_workers=count, prefetch_factor=2 if count else None, persistent_workers=False)


def with_batch_size(loader: DataLoader[Any], size: int) -> DataLoader[Any]:
    """Return a copy of ``loader`` with batches of ``size`` samples.

    Raises:
        ValueError: If a custom sampler or class forms the batches.
    """
    check_batch_size(loader)
    return copy(loader, batch_size=size, batch_sampler=BatchSampler(loader.sampler, size, loader.drop_last))


def check_batch_size(loader: DataLoader[Any]) -> None:
    """Raise a ``ValueError`` if a custom sampler or class forms the batches of ``loader``."""
    reason = ""
    if loader.batch_size is None:
        reason = "its batch_sampler or its dataset forms the batches"
    elif torch_private.overrides_iteration(loader):
        reason = f"{type(loader).__name__} overrides how it iterates"
    if reason:
        raise ValueError(
            f"The batch size of this DataLoader cannot be changed, because {reason}. Pass the dataset, or arrays, instead: "
            "find_batch_size(dataset)."
        )


def copy(loader: DataLoader[Any], **attributes: Any) -> DataLoader[Any]:
    """Return a copy of ``loader`` with other attributes."""
    twin: DataLoader[Any] = torch_private.copy_loader(loader, **attributes)
    return twin
