"""Samples of a data set for the checks of data."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, Subset, TensorDataset

from easytorch._utils import torch_private
from easytorch.data.arrays import ArrayDataset, load_samples
from easytorch.data.batch import Batch, from_numpy
from easytorch.data.in_memory import InMemory
from easytorch.data.splits import all_targets, draws_all_samples

Parts = dict[str, Tensor]

# Samples that are loaded one by one, and seconds for it.
MAX_LOADED, MAX_SECONDS = 1000, 0.4
# Values and rows of an array in memory that are read; of a larger one, rows at equal distances.
MAX_VALUES, MAX_ROWS = 2**24, 100_000


@dataclasses.dataclass
class Samples:
    """Samples of a data set, all or a part of them.

    Attributes:
        x: The inputs by name, each with one row per sample; the only one has an empty name.
        y: The targets of the same samples, by name.
        labels: The targets of all samples, if they are known without loading these; otherwise ``y``.
        count: The number of samples of the data set; None if unknown.
        in_order: The targets in the order in which ``fit`` reads them; empty if the order is random or unknown.
        columns: Names of the columns, if the inputs are a frame.
        is_weighted: Whether the samples have weights.
        dataset: The data set, and ``indices`` of it that are used; None for all or unknown.

    Examples:
        >>> def check_it(probe):
        ...     print(probe.train.rows, probe.train.count)
        ...     return []
        >>> report = model.check(x, y, checks=[check_it])
    """

    x: Parts
    y: Parts
    labels: Parts
    count: int | None = None
    in_order: Parts = dataclasses.field(default_factory=dict)
    columns: list[Any] | None = None
    is_weighted: bool = False
    dataset: Any = None
    indices: Tensor | None = None

    @functools.cached_property
    def rows(self) -> int:
        """The number of samples in ``x``."""
        return min((len(part) for part in self.x.values()), default=0)

    def tables(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the values ``[N, columns]`` of each input with one row of numbers per sample.

        Examples:
            >>> def check_it(probe):
            ...     shapes = [values.shape for name, values in probe.train.tables()]
            ...     return []
            >>> report = model.check(x, y, checks=[check_it])
        """
        for name, part in self.x.items():
            if part.ndim == 2 and part.is_floating_point() and len(part) > 1:
                yield name, part

    def images(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the values ``[N, channels, height, width]`` of each input that may be images.

        Examples:
            >>> def check_it(probe):
            ...     shapes = [values.shape for name, values in probe.train.images()]
            ...     return []
            >>> report = model.check(x, y, checks=[check_it])
        """
        for name, part in self.x.items():
            if part.ndim in (4, 5) and not part.is_complex():
                yield name, part

    def series(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the values ``[N, steps, columns]`` of each input with several rows of numbers per sample."""
        for name, part in self.x.items():
            if part.ndim == 3 and part.is_floating_point() and len(part) > 1:
                yield name, part

    def column(self, name: str, index: int) -> str:
        """Return how to call a column of the input ``name``.

        Args:
            name: The name of the input; empty for the only one.
            index: The index of the column, from 0.

        Examples:
            >>> def check_it(probe):
            ...     title = probe.train.column("", 3)
            ...     return []
            >>> report = model.check(x, y, checks=[check_it])
        """
        known = self.columns is not None and name == "" and index < len(self.columns)
        title = repr(self.columns[index]) if known and self.columns is not None else str(index)
        return f"column {title}{f' of {name!r}' * bool(name)}"


def read_samples(
    loader: Any, unpack: Callable[[Any], Batch], columns: list[Any] | None = None, knows_targets: bool = True
) -> Samples:
    """Return samples of ``loader``: of arrays many, of data that must be loaded as many as a short time permits.

    Args:
        loader: Batches, as ``as_loader`` returns them. Its random states change; restore them.
        unpack: Splits a batch into inputs, targets and weights.
        columns: Names of the columns of a frame.
        knows_targets: Whether the targets of the data are those of the loss, which a custom step may change.
    """
    dataset = getattr(loader, "dataset", None)
    tree = _stored(dataset) if _is_plain(loader) else None
    indices = None
    if tree is not None:
        parts = unpack(tree)
    elif _is_plain(loader):
        indices = _spread(len(loader.dataset), MAX_LOADED)
        parts = _join(map(unpack, _load(loader, indices)))
    else:
        parts = _join(map(unpack, _first_batches(loader)))
    x, y = as_parts(parts.x), as_parts(parts.y)
    labels = as_parts(all_targets(loader)) if knows_targets else {}
    count = len(loader.dataset) if _is_plain(loader) else None
    samples = Samples(*_thin(x, y), labels or y, count, columns=columns, is_weighted=parts.sample_weight is not None)
    samples.dataset, samples.indices = _base(dataset)
    if not _is_plain(loader):
        samples.in_order = y  # of the first batches, which were read as fit reads them
    elif _is_sequential(loader):
        samples.in_order = labels or (y if indices is None else _sort_rows(y, indices))
    return samples


def _sort_rows(parts: Parts, indices: Tensor) -> Parts:
    """Return rows, which belong to the first of ``indices``, by increasing index."""
    return {name: part[indices[: len(part)].argsort()] for name, part in parts.items()}


def as_parts(tree: Any) -> Parts:
    """Return the tensors of inputs or targets by name."""
    if isinstance(tree, Mapping):
        named = {str(name): part for name, part in tree.items()}
    elif isinstance(tree, (tuple, list)):
        named = {str(i): part for i, part in enumerate(tree)}
    else:
        named = {"": tree}
    tensors = {name: from_numpy(part) if _is_numeric_array(part) else part for name, part in named.items()}
    return {
        name: part.detach().cpu()
        for name, part in tensors.items()
        if isinstance(part, Tensor) and part.layout is torch.strided and part.ndim
    }


def _is_numeric_array(part: Any) -> bool:
    return getattr(getattr(part, "dtype", None), "kind", "") in ("b", "i", "u", "f") and hasattr(part, "__array__")


def _is_plain(loader: Any) -> bool:
    """Return whether the batches of ``loader`` are those of its dataset, which has an index and a length."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and not torch_private.overrides_iteration(loader)
        and draws_all_samples(loader)
    )


def _stored(dataset: Any) -> Any:
    """Return all samples of a dataset as one batch, if they are in memory as tensors; otherwise None."""
    if isinstance(dataset, InMemory) or (isinstance(dataset, ArrayDataset) and dataset.is_dense):
        return dataset.tree
    return dataset.tensors if type(dataset) is TensorDataset else None


def _spread(count: int, limit: int) -> Tensor:
    """Return at most ``limit`` indices at equal distances, in an order that spreads the first ones too."""
    indices = torch.arange(min(count, limit)) * count // min(count, limit) if count else torch.arange(0)
    return indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))]


def _load(loader: DataLoader[Any], indices: Tensor) -> Iterator[Any]:
    """Yield batches of the samples at ``indices`` until the time is over, at least one."""
    deadline = time.perf_counter() + MAX_SECONDS
    collate: Any = loader.collate_fn
    for start in range(0, len(indices), 32):
        yield collate(load_samples(loader.dataset, indices[start : start + 32].tolist()))
        if time.perf_counter() > deadline:
            return


def _first_batches(loader: Any) -> Iterator[Any]:
    """Yield the first batches of any data until the time is over, at least one."""
    deadline, count = time.perf_counter() + MAX_SECONDS, 0
    iterator = iter(loader)
    try:
        for batch in iterator:
            yield batch
            count += 1
            if time.perf_counter() > deadline or count >= MAX_LOADED // 32:
                return
    finally:
        torch_private.shut_down_workers(iterator)


def _join(batches: Iterator[Batch]) -> Batch:
    """Return the rows of all batches as one batch; of inputs whose shapes differ, those of the first."""
    parts = list(batches)
    if not parts:
        return Batch({}, {})

    def join(trees: list[Any]) -> Parts:
        columns = [as_parts(tree) for tree in trees]
        first = columns[0]
        fitting = [column for column in columns if _shapes(column) == _shapes(first)]
        return {name: torch.cat([column[name] for column in fitting]) for name in first}

    return Batch(join([part.x for part in parts]), join([part.y for part in parts]), parts[0].sample_weight)


def _shapes(parts: Parts) -> dict[str, Any]:
    return {name: (part.shape[1:], part.dtype) for name, part in parts.items()}


def _thin(x: Parts, y: Parts) -> tuple[Parts, Parts]:
    """Return at most ``MAX_ROWS`` rows and about ``MAX_VALUES`` values of each input, and their targets."""
    rows = min((len(part) for part in x.values()), default=0)
    width = max((part[0].numel() for part in x.values() if len(part)), default=1)
    limit = max(min(MAX_ROWS, MAX_VALUES // max(width, 1)), 1)
    if rows <= limit:
        return x, y
    keep = _spread(rows, limit).sort().values

    def thin(parts: Parts) -> Parts:
        return {name: part[keep] if len(part) == rows else part for name, part in parts.items()}

    return thin(x), thin(y)


def _base(dataset: Any) -> tuple[Any, Tensor | None]:
    """Return the dataset behind subsets, and the indices that are used; None for all."""
    indices = None
    while isinstance(dataset, Subset):
        chosen = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        indices = chosen if indices is None else chosen[indices]
        dataset = dataset.dataset
    return (dataset if isinstance(dataset, Dataset) else None), indices


def _is_sequential(loader: Any) -> bool:
    """Return whether the samples of a plain loader come in the order in which they are stored."""
    return type(getattr(loader.batch_sampler, "sampler", loader.sampler)) is SequentialSampler
