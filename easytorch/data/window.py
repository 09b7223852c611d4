"""The batches of one optimizer update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from easytorch.data.batch import Batch, batch_size, unpack


class Window(list[Any]):
    """The batches of one optimizer update, with their sample counts.

    A window is a list of batches: ``(batch,) = window`` and ``window[0]`` work.

    Args:
        batches: The batches of this rank.
        batch_size: Returns the number of samples of a batch, as ``Model.batch_size`` does.
        unpack: Splits a batch into inputs, targets and weights, as ``Model.unpack`` does.

    Attributes:
        sample_counts: Per batch, the number of samples that the sampler drew for this rank, 0 for padding; None if unknown.
        total: The number of samples of all ranks in this window; None if unknown.
        counts_exact: Whether the collate function keeps one row per sample, so that sample counts are sizes.
        is_padding: Whether the batch that was taken last is padding: other ranks have a batch and this rank has none, so the
            batch counts nothing.
    """

    sample_counts: Sequence[int] | None = None
    total: int | None = None
    counts_exact = False
    is_padding = False

    def __init__(
        self,
        batches: Iterable[Any] = (),
        *,
        batch_size: Callable[[Any], int] = batch_size,
        unpack: Callable[[Any], Batch] = unpack,
    ) -> None:
        super().__init__(batches)
        self._batch_size, self._unpack = batch_size, unpack

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Number of samples of each batch, by which its loss is weighted."""
        return [self._batch_size(batch) for batch in self[:]]

    def unpacked(self) -> Iterator[Batch]:
        """Yield inputs, targets and weights of each batch."""
        return map(self._unpack, self[:])


class ShardedWindow(Window):
    """The window of one of several ranks, which knows the sample counts of all ranks."""

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        sample_counts: Sequence[int],
        total: int,
        counts_exact: bool,
        batch_size: Callable[[Any], int] = batch_size,
        unpack: Callable[[Any], Batch] = unpack,
    ) -> None:
        super().__init__(batches, batch_size=batch_size, unpack=unpack)
        self.sample_counts, self.total, self.counts_exact = sample_counts, total, counts_exact
        self.is_padding = bool(sample_counts) and not sample_counts[0]

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(super().__iter__()):
            self.is_padding = i < len(self.sample_counts or ()) and not self.sample_counts[i]  # type: ignore[index]
            yield batch
