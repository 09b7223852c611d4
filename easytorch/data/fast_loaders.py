"""DataLoader replacements without overhead per sample."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from easytorch._utils.pytree import leaves, map_leaves
from easytorch._utils.rng import set_rng_state
from easytorch.data.arrays import ArrayDataset, BatchedArrayDataset, as_batch
from easytorch.data.in_memory import InMemory
from easytorch.data.resumable_sampler import order_changed_error
from easytorch.data.sharding import Bounds, ShardedBatchSampler

# They draw all of their order when they begin; a sampler of the user's own may draw while it runs.
KNOWN = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


def as_tensor_batches(loader: Any) -> Any:
    """Return the batches of ``loader`` as ``Slices``, if all of its samples are in memory; else ``loader`` itself."""
    plain = type(loader) is DataLoader and not loader.num_workers and not loader.pin_memory
    if not plain or type(loader.sampler) not in KNOWN:
        return loader
    batches = loader.batch_sampler
    inner = batches.batch_sampler if isinstance(batches, ShardedBatchSampler) else batches
    if type(inner) is not BatchSampler or inner.sampler is not loader.sampler:  # a batch_sampler has its own
        return loader
    if getattr(loader.sampler, "generator", None) is torch.default_generator:  # the module draws from it in between
        return loader
    found = _in_memory(loader.dataset)
    if found is None or loader.collate_fn is not found[2]:
        return loader
    return TensorBatches(loader, found[0], found[1])


def _in_memory(dataset: Any) -> tuple[Any, Tensor | None, Any] | None:
    """Return the tensors of ``dataset``, which of their rows it has (None: all), and how its samples are collated."""
    if type(dataset) is BatchedArrayDataset:
        return dataset.tree, None, as_batch
    if type(dataset) is ArrayDataset:
        return _lists(dataset.tree), None, default_collate
    if type(dataset) is InMemory:
        return dataset.tree, None, default_collate
    if type(dataset) is TensorDataset:
        return list(dataset.tensors), None, default_collate  # which makes a list of a sample's tuple
    if type(dataset) is Subset and (below := _in_memory(dataset.dataset)) is not None:
        tree, rows, collate = below
        own = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return tree, own if rows is None else rows[own], collate
    return None


def _lists(tree: Any) -> Any:
    """Return ``tree`` with lists for its tuples, as torch's default collate makes them."""
    if isinstance(tree, Mapping):
        return {key: _lists(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return [_lists(value) for value in tree]
    return tree


class TensorBatches:
    """The batches of a ``DataLoader``, and the order they come in.

    Args:
        loader: What they would have come from.
        tree: Tensors in any nesting.
        rows: Which of their rows the dataset has; None is all.
    """

    def __init__(self, loader: DataLoader[Any], tree: Any, rows: Tensor | None) -> None:
        self.loader, self.tree, self.rows = loader, tree, rows
        self.size: int = loader.batch_sampler.batch_size  # type: ignore[union-attr]  # asked for in sliced()
        self.parts = loader.batch_sampler if isinstance(loader.batch_sampler, ShardedBatchSampler) else None
        self.bounds: Bounds = []
        self.in_order = type(loader.sampler) is SequentialSampler
        self.order = torch.empty(0, dtype=torch.int64)
        self.positions: dict[torch.device, Tensor] = {}  # in the tensors, where they are: nothing to copy in a step
        self.resume: Mapping[str, Any] | None = None
        self.now: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def start(self, resume: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
        """Be ready for a pass; ``resume`` is where to take it up, ``now`` the random states to go on with from there."""
        self.resume, self.now = resume, now

    def checksum(self, used: int) -> int:
        """Return the checksum of the first ``used`` batches of the order."""
        return zlib.crc32(self.order[: self.bounds[used - 1][1] if used else 0].numpy().tobytes())

    def batch(self, number: int) -> list[int]:
        """Return the indices of a batch, counted from the begin of the pass."""
        begin, end = self.bounds[number]
        return [int(index) for index in self.order[begin:end]]

    def __iter__(self) -> Iterator[Any]:
        # A loader draws a seed for its workers when it begins, even if it has none.
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        self.tree, self.rows, _ = _in_memory(self.loader.dataset) or (self.tree, self.rows, None)  # may have changed
        self.order = torch.tensor(list(self.loader.sampler), dtype=torch.int64)
        self.bounds = self._dealt()
        resume, self.resume = self.resume, None
        used = 0
        if resume is not None:
            used = resume["batches_used"]
            if resume["order_checksum"] is not None and self.checksum(used) != resume["order_checksum"]:
                raise order_changed_error(self.loader.sampler)
            set_rng_state(self.now)
        positions = self.order if self.rows is None else self.rows[self.order]
        below = positions < 0  # counted from the end
        if bool(below.any()):
            positions = torch.where(below, positions + len(next(leaves(self.tree))), positions)
        self.positions = {leaf.device: positions.to(leaf.device) for leaf in leaves(self.tree) if leaf is not None}
        for begin, end in self.bounds[used:]:
            if end > begin:
                yield self._take(begin, end)

    def _dealt(self) -> Bounds:
        """Return where the batches begin and end in the order."""
        rows, dropped = len(self.order), self.loader.drop_last
        bounds = [(begin, min(begin + self.size, rows)) for begin in range(0, rows, self.size)]
        bounds = bounds[: rows // self.size] if dropped else bounds
        if self.parts is None:
            return bounds
        self.parts.group.seed_per_rank()
        return self.parts.select_bounds(bounds)

    def _take(self, begin: int, end: int) -> Any:
        if self.in_order and self.rows is None:  # copied: what a module does to its input stays there
            return map_leaves(
                lambda leaf: None if leaf is None else leaf[begin:end].clone(memory_format=torch.contiguous_format),
                self.tree,
            )
        rows = {device: positions[begin:end] for device, positions in self.positions.items()}
        return map_leaves(lambda leaf: None if leaf is None else leaf.index_select(0, rows[leaf.device]), self.tree)


def as_map_batches(loader: Any) -> Any:
    """Return the batches of ``loader`` as ``Fetched``, if it is a plain one without workers; else ``loader`` itself."""
    plain = type(loader) is DataLoader and not loader.num_workers and not loader.pin_memory
    if not plain or loader.batch_sampler is None or isinstance(loader.dataset, (IterableDataset, MapDataPipe)):
        return loader
    return MapBatches(loader)


class MapBatches:
    """The batches of a ``DataLoader`` without workers."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.dataset: Any = loader.dataset
        self.together = getattr(loader.dataset, "__getitems__", None)
        self.collate = fast_collate if loader.collate_fn is default_collate else loader.collate_fn

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


def fast_collate(samples: Any) -> Any:
    """Return what ``default_collate`` does, for samples such as ``(image, label)`` with fewer questions on the way."""
    first = samples[0] if type(samples) is list and samples else None
    if type(first) is not tuple or not all(map(_plain, first)) or {*map(len, samples)} != {len(first)}:
        return default_collate(samples)
    columns = zip(*samples, strict=True)
    return [torch.stack(column) if type(column[0]) is Tensor else torch.tensor(column) for column in columns]


def _plain(part: Any) -> bool:
    return type(part) is int or (type(part) is Tensor and part.layout is torch.strided and not part.is_nested)
