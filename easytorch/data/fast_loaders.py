"""DataLoader replacements without overhead per sample."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
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

from easytorch._utils import torch_private
from easytorch._utils.pytree import leaves, map_leaves
from easytorch.data.arrays import ArrayDataset, BatchedArrayDataset, as_batch, load_samples
from easytorch.data.in_memory import InMemory
from easytorch.data.resumable_sampler import Resume, order_changed_error
from easytorch.data.sharding import Bounds, ShardedBatchSampler

# These draw the complete order at the start of a pass; a custom sampler may draw during the pass.
KNOWN_SAMPLERS = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)
# The bytes to which torch aligns the memory of a new tensor.
ALIGNMENT = 64


def as_tensor_batches(loader: Any, *, shares_rows: bool = False, pins: bool = False) -> Any:
    """Return the batches of ``loader`` as ``TensorBatches`` if its samples are in memory, otherwise ``loader``.

    Args:
        loader: The loader.
        shares_rows: See ``TensorBatches``.
        pins: See ``TensorBatches``; so are the batches of a loader with ``pin_memory``.
    """
    if not _is_in_process(loader) or type(loader.sampler) not in KNOWN_SAMPLERS:
        return loader
    batch_sampler = loader.batch_sampler
    inner = batch_sampler.batch_sampler if isinstance(batch_sampler, ShardedBatchSampler) else batch_sampler
    # A batch sampler that the user passed may have another sampler.
    if type(inner) is not BatchSampler or inner.sampler is not loader.sampler:
        return loader
    # The module draws from the global generator between two batches.
    if getattr(loader.sampler, "generator", None) is torch.default_generator:
        return loader
    rows = _find_rows(loader.dataset)
    if rows is None or loader.collate_fn is not rows.collate:
        return loader
    pins = pins or (loader.pin_memory and torch.accelerator.is_available())
    return TensorBatches(loader, rows, shares_rows=shares_rows, pins=pins)


def is_known_order(sampler: Any) -> bool:
    """Return whether a batch sampler or sampler of torch draws the order from states that are restored."""
    inner = sampler.batch_sampler if isinstance(sampler, ShardedBatchSampler) else sampler
    inner = inner.sampler if type(inner) is BatchSampler else inner
    return type(inner) in (*KNOWN_SAMPLERS, DistributedSampler)


def _is_in_process(loader: Any) -> bool:
    """Return whether ``loader`` is a ``DataLoader`` of torch that works in this process."""
    return type(loader) is DataLoader and not loader.num_workers


class Rows(NamedTuple):
    """The tensors that a dataset reads its samples from.

    Attributes:
        tree: Tensors, in any nesting.
        positions: The row of each sample; None for all rows in order.
        collate: The ``collate_fn`` that makes the batches which slicing gives.
    """

    tree: Any
    positions: Tensor | None
    collate: Callable[[Any], Any]


def _find_rows(dataset: Any) -> Rows | None:
    """Return the tensors of ``dataset``, or None if its samples are not in memory or become dense when they are loaded."""
    if isinstance(dataset, ArrayDataset) and not dataset.is_dense:
        return None
    if type(dataset) is BatchedArrayDataset:
        return Rows(dataset.tree, None, as_batch)
    if type(dataset) is ArrayDataset:
        return Rows(_replace_tuples(dataset.tree), None, default_collate)
    if type(dataset) is InMemory:
        return Rows(dataset.tree, None, default_collate)
    if type(dataset) is TensorDataset:
        return Rows(list(dataset.tensors), None, default_collate)
    if type(dataset) is Subset and (rows := _find_rows(dataset.dataset)) is not None:
        positions = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return rows._replace(positions=positions if rows.positions is None else rows.positions[positions])
    return None


def _replace_tuples(tree: Any) -> Any:
    """Return ``tree`` with lists instead of tuples, as ``default_collate`` does."""
    if isinstance(tree, Mapping):
        return {key: _replace_tuples(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return [_replace_tuples(value) for value in tree]
    return tree


class TensorBatches:
    """The batches of a ``DataLoader`` as slices of tensors, with the same order and random numbers.

    Args:
        loader: A loader that ``as_tensor_batches`` accepts.
        rows: The tensors of its dataset.
        shares_rows: Whether batches in order may be views of the tensors. Otherwise they are copies.
        pins: Whether batches on the CPU are in pinned memory, which an accelerator reads while the program continues.
    """

    def __init__(self, loader: DataLoader[Any], rows: Rows, *, shares_rows: bool = False, pins: bool = False) -> None:
        self.loader: Any = loader
        self.rows, self.shares_rows, self.pins = rows, shares_rows and not pins, pins
        self.bounds: Sequence[tuple[int, int]] = ()
        self._known_checksum = (0, 0)  # of the first batches of this pass, and their number
        self.order = torch.empty(0, dtype=torch.int64)
        self._shared = SharedRows(None)
        self.start()

    def __len__(self) -> int:
        return len(self.loader)

    def start(self, resume: Resume | None = None) -> None:
        """Prepare a pass; see ``ResumableSampler.start``."""
        self.resume = resume

    def checksum(self, used: int) -> int:
        """Return the checksum of the first ``used`` batches: that of a ``ResumableSampler`` for the same order."""
        count, checksum = self._known_checksum if self._known_checksum[0] <= used else (0, 0)
        order = self.order.numpy()
        for start, end in map(self.bounds.__getitem__, range(count, used)):
            checksum = zlib.crc32(order[start:end].data, checksum)
        self._known_checksum = used, checksum
        return checksum

    def batch(self, number: int) -> list[int]:
        """Return the indices of a batch, counted from the start of the pass."""
        start, end = self.bounds[number]
        return [int(index) for index in self.order[start:end]]

    def __iter__(self) -> Iterator[Any]:
        draw_base_seed(self.loader)
        # A callback may have replaced the tensors since the last pass.
        rows = self.rows = _find_rows(self.loader.dataset) or self.rows
        self.order = torch_private.draw_order(self.loader.sampler)
        self.bounds, self._known_checksum = self._get_bounds(), (0, 0)
        used = self._skip()
        in_order = type(self.loader.sampler) is SequentialSampler and rows.positions is None
        remaining = map(self.bounds.__getitem__, range(used, len(self.bounds)))
        bounds = (bound for bound in remaining if bound[1] > bound[0])
        if in_order:
            self._shared = SharedRows(rows.tree)
            read = (
                self._shared.read
                if self.shares_rows
                else functools.partial(_pin_rows if self.pins else _copy_rows, rows.tree)
            )
            yield from read(bounds)
            return
        take = _make_select(rows, self.order, self.pins)
        for start, end in bounds:
            yield take(start, end)

    def check_rows(self) -> None:
        """Raise a ``RuntimeError`` if the last batch was changed in place, and the rows of the user with it."""
        self._shared.check()

    def _get_bounds(self) -> Sequence[tuple[int, int]]:
        """Return where each batch of this rank starts and ends in the order."""
        batch_sampler, count = self.loader.batch_sampler, len(self.order)
        bounds = EvenBounds(count, batch_sampler.batch_size, self.loader.drop_last)
        if not isinstance(batch_sampler, ShardedBatchSampler):
            return bounds
        batch_sampler.check_order(self.order, len(bounds))
        batch_sampler.group.seed_per_rank()
        return batch_sampler.select_bounds(list(bounds))

    def _skip(self) -> int:
        """Return the number of batches to skip; raise a ``ResumeError`` if they have another order."""
        resume, self.resume = self.resume, None
        if resume is None:
            return 0
        if resume.checksum is not None and self.checksum(resume.batches_used) != resume.checksum:
            raise order_changed_error(self.loader.sampler)
        resume.restore()
        return resume.batches_used


class EvenBounds(Sequence[tuple[int, int]]):
    """Where batches of one size start and end, computed when they are read, since data may have millions of them.

    Args:
        samples: The number of samples.
        size: The samples of a batch.
        drop_last: Whether to leave out an incomplete last batch.
    """

    def __init__(self, samples: int, size: int, drop_last: bool) -> None:
        self.samples, self.size = samples, size
        self.starts = range(0, samples - size + 1 if drop_last else samples, size)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Bounds: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self.starts[index]
        return start, min(start + self.size, self.samples)


def draw_base_seed(loader: DataLoader[Any]) -> None:
    """Draw the seed that a ``DataLoader`` draws for its workers at the start of each pass, even without workers."""
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)


def _copy_rows(tree: Any, bounds: Iterator[tuple[int, int]]) -> Iterator[Any]:
    """Yield copies of consecutive rows, so that a module can change its input in place."""
    for start, end in bounds:
        yield map_leaves(functools.partial(_copy, start, end), tree)


def _pin_rows(tree: Any, bounds: Iterator[tuple[int, int]]) -> Iterator[Any]:
    """Yield copies of consecutive rows in pinned memory."""
    for start, end in bounds:
        yield map_leaves(functools.partial(_pinned_copy, start, end), tree)


class SharedRows:
    """Consecutive rows without copies, unless the module changes its input in place.

    The first batch is a copy, which shows whether it does. In a later batch, the version counters of torch show it. These do not
    count what is written by ``x.data`` or ``x.numpy()``.

    Args:
        tree: Tensors, in any nesting.
    """

    # Batches that are sliced at once, which takes a tenth of the time.
    BLOCK = 64

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._tensors = [leaf for leaf in leaves(tree) if leaf is not None]
        self._is_flat = type(tree) in (list, tuple) and all(type(leaf) is Tensor for leaf in tree)
        self._versions: list[int] = []  # before the current batch; empty while batches are copies
        self._bound = (0, 0)

    def read(self, bounds: Iterator[tuple[int, int]]) -> Iterator[Any]:
        """Yield the rows between ``bounds``.

        Raises:
            RuntimeError: If a batch after the first is changed in place; for the last one that is read, ``check`` does.
        """
        # Tensors of the inference mode do not count their changes.
        if torch.is_inference_mode_enabled() or any(leaf.is_inference() for leaf in self._tensors):
            yield from _copy_rows(self.tree, bounds)
            return
        start, end = next(bounds, (0, 0))
        if end == start:
            return
        first = map_leaves(functools.partial(_copy, start, end), self.tree)
        yield first
        copies = [leaf for leaf in leaves(first) if leaf is not None]
        if any(
            torch_private.version(copy) or not torch.equal(copy, leaf[start:end])
            for copy, leaf in zip(copies, self._tensors, strict=True)
        ):
            yield from _copy_rows(self.tree, bounds)
            return
        self._versions = list(map(torch_private.version, self._tensors))
        while block := list(itertools.islice(bounds, self.BLOCK)):
            slices = (_slice(leaf, block) for leaf in self._tensors)
            for bound, *rows in zip(block, *slices, strict=True):
                self._bound = bound
                yield self._rebuild(map(_as_copied, rows))
                self.check()

    def _rebuild(self, rows: Iterator[Tensor]) -> Any:
        """Return the tree with ``rows`` in place of its tensors."""
        if self._is_flat:
            return type(self.tree)(rows)
        return map_leaves(lambda leaf: None if leaf is None else next(rows), self.tree)

    def check(self) -> None:
        """Raise a ``RuntimeError`` if the current batch was changed in place."""
        if self._versions and list(map(torch_private.version, self._tensors)) != self._versions:
            start, end = self._bound
            raise RuntimeError(
                f"The module changed its input in place for the samples {start} to {end - 1}, but not for the first batch. "
                f"These {end - start} rows of the data may have other values now; all others are unchanged. Read them again, and "
                "let the module change a copy: x = x.clone() at the start of forward."
            )


def _copy(start: int, end: int, leaf: Tensor | None) -> Tensor | None:
    return None if leaf is None else leaf[start:end].clone(memory_format=torch.contiguous_format)


def _pinned_copy(start: int, end: int, leaf: Tensor | None) -> Tensor | None:
    if leaf is None or not leaf.is_cpu:
        return _copy(start, end, leaf)
    return new_pinned(end - start, leaf).copy_(leaf[start:end])


def new_pinned(count: int, like: Tensor) -> Tensor:
    """Return ``count`` uninitialized rows in pinned memory, with the shape and dtype of those of ``like``."""
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype, pin_memory=True)


def _slice(leaf: Tensor, block: Sequence[tuple[int, int]]) -> Sequence[Tensor]:
    """Return the rows of ``leaf`` between each of some bounds, without copies."""
    if any(end != start for (_, end), (start, _) in itertools.pairwise(block)):  # the share of one of several ranks
        return [leaf[start:end] for start, end in block]
    rows: tuple[Tensor, ...] = torch.split(leaf[block[0][0] : block[-1][1]], [end - start for start, end in block])
    return rows


def _as_copied(rows: Tensor) -> Tensor:
    """Return ``rows``; a copy unless they lie in memory as a copy would, with which kernels compute the same bits."""
    is_like_copy = rows.is_contiguous() and not rows.data_ptr() % ALIGNMENT
    return rows if is_like_copy else rows.clone(memory_format=torch.contiguous_format)


def _make_select(rows: Rows, order: Tensor, pins: bool) -> Callable[[int, int], Any]:
    """Return a function that copies the rows between two places in ``order``, to pinned memory if it ``pins``."""
    positions = order if rows.positions is None else rows.positions[order]
    if len(positions) and positions.min() < 0:
        positions = torch.where(positions < 0, positions + len(next(leaves(rows.tree))), positions)
    # On the device of each tensor, so that a step copies nothing.
    on_device = {leaf.device: positions.to(leaf.device) for leaf in leaves(rows.tree) if leaf is not None}

    def take(start: int, end: int) -> Any:
        indices = {device: positions[start:end] for device, positions in on_device.items()}
        return map_leaves(lambda leaf: None if leaf is None else leaf.index_select(0, indices[leaf.device]), rows.tree)

    def take_pinned(start: int, end: int) -> Any:
        indices = {device: positions[start:end] for device, positions in on_device.items()}
        return map_leaves(functools.partial(_select_pinned, indices), rows.tree)

    return take_pinned if pins else take


def _select_pinned(indices: Mapping[torch.device, Tensor], leaf: Tensor | None) -> Tensor | None:
    if leaf is None:
        return None
    rows = indices[leaf.device]
    if not leaf.is_cpu or leaf.requires_grad:  # out= does not record gradients
        return leaf.index_select(0, rows)
    return torch.index_select(leaf, 0, rows, out=new_pinned(len(rows), leaf))


def as_map_batches(loader: Any) -> Any:
    """Return the batches of ``loader`` as ``MapBatches`` if it is plain and map-style, otherwise ``loader``."""
    if not _is_in_process(loader) or loader.pin_memory or loader.batch_sampler is None:
        return loader
    return loader if isinstance(loader.dataset, (IterableDataset, MapDataPipe)) else MapBatches(loader)


class MapBatches:
    """The batches of a ``DataLoader`` without workers, with the same order and random numbers.

    Args:
        loader: A loader that ``as_map_batches`` accepts.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader: Any = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # DataLoader asks the sampler for its iterator before it draws the seed.
        indices = iter(self.loader.batch_sampler)
        draw_base_seed(self.loader)
        return map(self.fetch, indices)

    def fetch(self, indices: Any) -> Any:
        """Return the batch of the samples at ``indices``."""
        return self.loader.collate_fn(load_samples(self.loader.dataset, indices))
