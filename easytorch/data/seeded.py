"""Datasets whose random augmentation depends on epoch and index."""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from easytorch._utils.rng import (
    find_generators,
    get_generator_state,
    get_host_rng_state,
    seed_generator,
    set_generator_state,
    set_host_rng_state,
)
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.data.arrays import WrapperDataset, as_torch_samples

if TYPE_CHECKING:
    from easytorch.typing import DatasetLike


@hide_internal_frames
def seeded(dataset: DatasetLike, seed: int = 0) -> Dataset[Any]:
    """Return ``dataset`` with random augmentation that depends only on ``seed``, epoch and index.

    A checkpoint cannot restore the random generators of a loader's workers. A seeded sample draws the same numbers in any
    process at any time. So a run resumes exactly in the middle of an epoch, with any number of workers.

    The global generators of Python, NumPy and torch are seeded, and those that ``dataset`` and its transforms have. A generator
    that is created while samples are loaded is seeded from the next epoch on.

    Args:
        dataset: Any map-style dataset.
        seed: Another seed gives other random numbers.

    Examples:
        >>> train = easytorch.data.seeded(dataset)
        >>> model.fit(DataLoader(train, batch_size=64, shuffle=True), epochs=5)
    """
    return SeededDataset(as_torch_samples(dataset), seed)


class SeededDataset(WrapperDataset):
    """A dataset whose random numbers depend only on seed, epoch and index; see ``seeded``."""

    def __init__(self, dataset: Any, seed: int) -> None:
        super().__init__(dataset)
        self.seed = seed
        self._generators: tuple[int, list[Any]] | None = None  # those of an epoch
        # The workers read the epoch from shared memory.
        epoch: Any = torch.zeros((), dtype=torch.int64)  # the type stubs of torch do not annotate share_memory_
        self.epoch: torch.Tensor = epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the random numbers depend on."""
        self.epoch.fill_(epoch)

    def __getitem__(self, index: Any) -> Any:
        # An index of NumPy or torch gives the same sample as a Python integer.
        key = operator.index(index) if hasattr(index, "__index__") else index
        digest = hashlib.sha256(repr((self.seed, int(self.epoch), key)).encode()).digest()
        with _seeded_generators(digest, self._find_generators()):
            return self.dataset[index]

    def _find_generators(self) -> list[Any]:
        """Return the generators of the dataset, which ``set_epoch`` may have replaced."""
        epoch = int(self.epoch)
        if self._generators is None or self._generators[0] != epoch:
            self._generators = epoch, list(find_generators({"dataset": self.dataset}).values())
        return self._generators[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker gets; it finds the generators of the copy of the dataset."""
        return vars(self) | {"_generators": None}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the dataset, such as ``targets`` and ``classes``."""
        if name in ("dataset", "__getitems__", "_generators", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


@contextmanager
def _seeded_generators(digest: bytes, generators: list[Any]) -> Iterator[None]:
    """Seed the global generators and ``generators`` with ``digest``, and restore them at the end."""
    states = get_host_rng_state()
    own_states = [get_generator_state(generator) for generator in generators]
    try:
        random.seed(digest)
        np.random.seed(int.from_bytes(digest[:4], "little"))
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        for number, generator in enumerate(generators, 1):
            seed_generator(generator, hashlib.sha256(digest + bytes(str(number), "ascii")).digest())
        yield
    finally:
        set_host_rng_state(states)
        for generator, state in zip(generators, own_states, strict=True):
            set_generator_state(generator, state)
