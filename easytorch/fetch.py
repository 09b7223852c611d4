"""Samples of a dataset, fetched a batch at a time without what a loader keeps ready for workers that it does not have.

What a ``DataLoader`` does beside that, a record for a profiler above all, takes as long as an update of a small network does
in Python. The samples, their order and every random number that is drawn are the same here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, MapDataPipe


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
        return self.loader.collate_fn(samples)
