"""Loaders that fill the memory of an earlier batch again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from easytorch._utils.pytree import leaves, map_leaves
from easytorch.data.fast_loaders import MapBatches, TensorBatches


class WindowReader:
    """The batches of one window after another, each as it was read.

    A generator or ``collate_fn`` may fill one buffer again and again, as in a loop that uses each batch before it reads the next.
    The batches of a window exist at the same time, so the first window is copied while it is read. If two of its batches have
    the same memory, the copies are used, and all later batches are copied, too.

    Args:
        reader: What the batches are read from.
        size: The number of batches in a window.
    """

    def __init__(self, reader: Any, size: int) -> None:
        self.size = size
        self._copies: bool | None = (
            False if size == 1 or _has_own_memory(reader) else None
        )  # None until a window was read

    def read(self, batches: Iterator[Any]) -> list[Any]:
        """Return the batches of the next window, at most ``size``; an empty list at the end."""
        if self._copies is False:
            return list(itertools.islice(batches, self.size))
        originals, copies = list[Any](), list[Any]()
        for batch in itertools.islice(batches, self.size):
            copies.append(map_leaves(_copy, batch))
            originals.append(batch)  # otherwise new memory could have the address of a batch that is free
        addresses = [address for batch in originals for address in _addresses(batch)]
        is_reused = bool(self._copies) or len(set(addresses)) < len(addresses)
        if is_reused or len(originals) == self.size:
            self._copies = is_reused
        return copies if is_reused else originals


def _has_own_memory(reader: Any) -> bool:
    """Return whether each batch of ``reader`` certainly has new memory, or all of them exist already."""
    if isinstance(reader, MapBatches):
        reader = reader.loader
    if isinstance(reader, DataLoader):
        return reader.num_workers > 0 or reader.collate_fn is default_collate
    return isinstance(reader, (TensorBatches, list, tuple))


def _addresses(batch: Any) -> set[int]:
    """Return where the tensors and arrays of ``batch`` start in memory."""
    tensors = {leaf.data_ptr() for leaf in leaves(batch) if _has_memory(leaf) and leaf.numel()}
    return tensors | {leaf.ctypes.data for leaf in leaves(batch) if isinstance(leaf, np.ndarray) and leaf.size}


def _has_memory(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
