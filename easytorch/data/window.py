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
        sample_counts: Per batch, the number of samples that the sampler drew for this rank, 0 for padding; None if unknown.
        total: The number of samples of all ranks in this window; None if unknown.
        counts_exact: Whether the collate function keeps one row per sample, so that counts are sizes.

    Attributes:
        current: Position of the batch that was taken last.
    """

    def __init__(
        self,
        batches: Iterable[Any] = (),
        *,
        batch_size: Callable[[Any], int] = batch_size,
        unpack: Callable[[Any], Batch] = unpack,
        sample_counts: Sequence[int] | None = None,
        total: int | None = None,
        counts_exact: bool = False,
    ) -> None:
        super().__init__(batches)
        self._batch_size, self._unpack = batch_size, unpack
        self.sample_counts, self.total, self.counts_exact = sample_counts, total, counts_exact
        self.current = 0

    def __iter__(self) -> Iterator[Any]:
        for self.current, batch in enumerate(super().__iter__()):
            yield batch

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Number of samples of each batch, by which its loss is weighted."""
        return [self._batch_size(batch) for batch in super().__iter__()]

    def unpacked(self) -> Iterator[Batch]:
        """Yield inputs, targets and weights of each batch."""
        return map(self._unpack, super().__iter__())

    @property
    def is_padding(self) -> bool:
        """Whether the current batch is padding: other ranks have a batch and this rank has none, so it counts nothing."""
        return (
            self.sample_counts is not None
            and self.current < len(self.sample_counts)
            and not self.sample_counts[self.current]
        )
