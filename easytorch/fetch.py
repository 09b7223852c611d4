"""Samples of a dataset, fetched a batch at a time without what a loader keeps ready for workers that it does not have.

What a ``DataLoader`` does beside that, a record for a profiler above all, takes as long as an update of a small network does
in Python. The samples, their order and every random number that is drawn are the same here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, MapDataPipe, default_collate


def fetched(loader: Any) -> Any:
    """Return the batches of ``loader`` as ``Fetched``, if it is a plain one without workers; else ``loader`` itself."""
    plain = type(loader) is DataLoader and not loader.num_workers and not loader.pin_memory
    if not plain or loader.batch_sampler is None or isinstance(loader.dataset, (IterableDataset, MapDataPipe)):
        return loader
    return Fetched(loader)


class Fetched:
    """The batches of a ``DataLoader`` without workers."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.dataset: Any = loader.dataset
        self.together = getattr(loader.dataset, "__getitems__", None)
        self.collate = collated if loader.collate_fn is default_collate else loader.collate_fn

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self.loader.batch_sampler)  # type: ignore[arg-type]  # asked for above
        # A loader draws a seed for its workers when it begins, even if it has none.
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        return map(self.fetch, indices)

    def fetch(self, indices: Any) -> Any:
        """Return the batch of the samples at ``indices``."""
        dataset = self.dataset
        samples = self.together(indices) if self.together else [dataset[index] for index in indices]
        return self.collate(samples)


def collated(samples: Any) -> Any:
    """Return what ``default_collate`` does, for samples such as ``(image, label)`` with fewer questions on the way."""
    first = samples[0] if type(samples) is list and samples else None
    if type(first) is not tuple or not all(map(_plain, first)) or {*map(len, samples)} != {len(first)}:
        return default_collate(samples)
    columns = zip(*samples, strict=True)
    return [torch.stack(column) if type(column[0]) is Tensor else torch.tensor(column) for column in columns]


def _plain(part: Any) -> bool:
    return type(part) is int or (type(part) is Tensor and part.layout is torch.strided and not part.is_nested)
