"""Datasets whose random augmentation depends on epoch and index."""

from __future__ import annotations

import hashlib
import operator
import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def seeded(dataset: Any, seed: int = 0) -> Dataset[Any]:
    """Return ``dataset`` with random numbers that belong to its samples, not to the moment.

    Augmentation inside a loader's workers draws from generators that nothing can restore. Wrapped so, a sample draws the
    same numbers whoever loads it, whenever: from ``seed``, the epoch and its index. So a run resumes exactly in the middle
    of an epoch, with any number of workers.

    Python's, NumPy's and torch's global generators are seeded so, not generators of the dataset's own.

    Args:
        dataset: Any map-style dataset.
        seed: Another seed draws other numbers.
    """
    return SeededDataset(dataset, seed)


class SeededDataset(Dataset[Any]):
    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.epoch = torch.zeros((), dtype=torch.int64)
        self.epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            number = operator.index(index) if hasattr(index, "__index__") else index  # 3, be it NumPy's or torch's
            digest = hashlib.sha256(repr((self.seed, int(self.epoch), number)).encode()).digest()
            random.seed(digest)
            np.random.seed(int.from_bytes(digest[:4], "little"))
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            return self.dataset[index]
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])

    def __getattr__(self, name: str) -> Any:  # targets, classes, ...
        if name in ("dataset", "__getitems__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)
