"""Each rank's share of the batches.

A round is one batch per rank: ``world_size`` consecutive batches of the sampler. In training every rank takes part in every
round. Every rank knows the full order, so it knows the sample counts of the other ranks without communication.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from easytorch._utils import torch_private
from easytorch._utils.internal import is_internal
from easytorch.data.arrays import as_batch
from easytorch.data.batch import batch_size, count_batches
from easytorch.data.combined import CombinedLoader
from easytorch.data.tables import row_checksum
from easytorch.data.webdatasets import is_split_by_rank
from easytorch.data.without_data import WithoutData, shard_steps
from easytorch.distributed.agreement import as_reported
from easytorch.distributed.process_group import SingleProcess
from easytorch.errors import RankError

NO_BATCH: Any = object()  # placeholder for a rank without a batch in a round
Bounds = list[tuple[int, int]]  # start and end of each batch in the order of samples


def shard_loader(
    loader: Any, group: SingleProcess, training: bool, count_samples: Callable[[Any], int] = batch_size
) -> Any:
    """Return this rank's share of ``loader``.

    In training all ranks get the same number of batches, some of them ``NO_BATCH``; the last round is divided evenly. In
    evaluation rank ``r`` gets the batches ``r, r + world_size, ...`` unchanged, so that every sample is measured once.

    Args:
        loader: A ``DataLoader`` or any iterable of batches.
        group: The ranks that share the data.
        training: Whether the batches are used for updates.
        count_samples: Returns the number of samples of a batch, as ``Model.batch_size`` does.

    Returns:
        A ``DataLoader`` for a ``DataLoader`` with a batch sampler, otherwise an iterable.
    """
    # The training data of a combined loader is divided by its parts.
    if group.world_size == 1 or (training and isinstance(loader, CombinedLoader)):
        return loader
    if isinstance(loader, WithoutData):
        return shard_steps(loader, group, training)
    is_torch_split = _uses_distributed_sampler(loader)
    if not group.splits_data or (is_presharded(loader) and not is_torch_split):
        return PerRankStream(loader, group, count_samples) if training else loader
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        return RoundRobinStream(loader, group, training, count_samples)
    batches, sampler = loader.batch_sampler, loader.sampler
    if is_torch_split and not training:
        sampler = SequentialSampler(cast(Sized, loader.dataset))
        batches = BatchSampler(sampler, loader.batch_size or 1, drop_last=False)
    kind = PreshardedBatchSampler if is_torch_split and training else ShardedBatchSampler
    shards = kind(batches, group, training, loader.collate_fn)
    shards.counts_exact &= is_internal(count_samples)  # a custom number of samples need not be that of indices
    return torch_private.copy_loader(loader, batch_sampler=shards, sampler=sampler)


def describe_size(loader: Any, group: SingleProcess, prefix: str = "") -> dict[str, Any]:
    """Return the sizes of ``loader`` that must be the same on all ranks; none if each rank has separate data."""
    if not group.splits_data or (is_presharded(loader) and not _uses_distributed_sampler(loader)):
        return {}
    dataset = getattr(loader, "dataset", None)
    return {
        f"{prefix}samples": None if dataset is None else count_batches(dataset),
        # split_dataset_by_node of Hugging Face gives each rank other rows of a dataset with an index.
        f"{prefix}rows": None if dataset is None else row_checksum(dataset),
        f"{prefix}batches": count_batches(loader),
        f"{prefix}batch_size": getattr(loader, "batch_size", None),
        f"{prefix}sampler": type(getattr(loader, "sampler", None)).__name__,  # random or sequential
    }


def is_presharded(loader: Any) -> bool:
    """Return whether a sampler or dataset already divides the data between ranks."""
    batches, dataset = getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)
    samplers = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    if any(hasattr(sampler, "num_replicas") for sampler in samplers):
        return True
    source = dataset if dataset is not None else loader
    return getattr(source, "_distributed", None) is not None or is_split_by_rank(source)


def _uses_distributed_sampler(loader: Any) -> bool:
    """Return whether torch's ``DistributedSampler`` divides the data; evaluation undoes its padding."""
    sampler = getattr(loader, "sampler", None)
    return type(sampler) is DistributedSampler and type(loader.batch_sampler) is BatchSampler


class ShardedBatchSampler:
    """A batch sampler that yields this rank's share of another batch sampler.

    Args:
        batch_sampler: The batch sampler of all ranks.
        group: The ranks that share the data.
        training: See ``shard_loader``.
        collate: The collate function. With torch's default a batch has one row per index.

    Attributes:
        offset: Batches of this pass, of all ranks, that a run with another world size has used already.
        rounds: Per round of this pass, the sample counts of this rank and of all ranks.
        counts_exact: Whether the number of indices is the number of rows.
    """

    def __init__(
        self, batch_sampler: Any, group: SingleProcess, training: bool, collate: Callable[[Any], Any] | None = None
    ) -> None:
        self.batch_sampler, self.group, self.training = batch_sampler, group, training
        self.counts_exact = keeps_rows(collate)
        self.offset = 0
        self.rounds: list[tuple[int, int]] = []

    def __len__(self) -> int:
        count, rank, world_size = len(self.batch_sampler) - self.offset, self.group.rank, self.group.world_size
        if not self.training:
            return -(-(count - rank) // world_size)
        return count // world_size if self._drops_last else -(-count // world_size)

    def __getattr__(self, name: str) -> Any:  # sampler, batch_size, drop_last
        if name in ("batch_sampler", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = [list(indices) for indices in self.batch_sampler]
        order = list(itertools.chain.from_iterable(batches))
        self.check_order(order, len(batches))
        ends = list(itertools.accumulate(map(len, batches)))
        bounds = [(end - len(indices), end) for indices, end in zip(batches, ends, strict=True)]
        self.group.seed_per_rank()
        for start, end in self.select_bounds(bounds):
            if end > start:
                yield order[start:end]

    def check_order(self, order: Any, batches: int) -> None:
        """Raise a ``RankError`` on all ranks if they draw the samples of a training pass in different orders."""
        if self.training:
            check_same_order(order, batches, self.group)

    @property
    def _drops_last(self) -> bool:
        return bool(getattr(self.batch_sampler, "drop_last", False))

    def select_bounds(self, bounds: Bounds) -> Bounds:
        """Return the bounds of this rank's batches, given those of all batches."""
        rank, world_size, bounds = self.group.rank, self.group.world_size, bounds[self.offset :]
        if not self.training:
            return bounds[rank::world_size]
        rounds = [bounds[i : i + world_size] for i in range(0, len(bounds), world_size)]
        if rounds and self._drops_last and len(rounds[-1]) < world_size:
            rounds.pop()
        selected = [batches[rank] for batches in rounds[:-1]]
        selected += [_divide_evenly(batches[0][0], batches[-1][1], rank, world_size) for batches in rounds[-1:]]
        self.rounds = [
            (end - start, batches[-1][1] - batches[0][0])
            for (start, end), batches in zip(selected, rounds, strict=True)
        ]
        return selected


class PreshardedBatchSampler(ShardedBatchSampler):
    """Wraps a batch sampler that is divided between ranks already, with equal sample counts."""

    def __len__(self) -> int:
        return len(self.batch_sampler) - self.offset

    def check_order(self, order: Any, batches: int) -> None:
        """Do nothing: each rank draws other samples."""

    def select_bounds(self, bounds: Bounds) -> Bounds:
        """Return the bounds of the remaining batches of this rank."""
        remaining = bounds[self.offset :]
        self.rounds = [(end - start, (end - start) * self.group.world_size) for start, end in remaining]
        return remaining


def _divide_evenly(start: int, end: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return one rank's part of a range.

    Parts differ by one sample at most. No part has a single sample, which BatchNorm could not take; where samples are too
    few, only the first ranks get any.
    """
    count = min(world_size, max((end - start) // 2, 1))
    first, last = (start - (-(end - start) * min(i, count) // count) for i in (rank, rank + 1))
    return first, last


def check_same_order(order: Any, batches: int, group: SingleProcess) -> None:
    """Raise a ``RankError`` on all ranks if they draw the samples of a pass in different orders."""
    if group.world_size == 1:
        return
    # A float64, in which numbers travel, holds 52 bits exactly.
    checksum = zlib.crc32(_to_bytes(order))
    ours, *others = group.gather_numbers(len(order), batches, checksum)
    for rank, theirs in enumerate(others, 1):
        if theirs == ours:
            continue
        difference = "the same number of samples in another order"
        if theirs[:2] != ours[:2]:
            sizes = [f"{samples:.0f} samples in {count:.0f} batches" for samples, count, _ in (ours, theirs)]
            difference = f"{sizes[0]} and {sizes[1]}"
        raise as_reported(
            RankError(
                f"The samplers of rank 0 and rank {rank} drew {difference}, so samples would be trained twice or never. Seed the "
                "sampler alike on all ranks. If it draws for one rank only, pass "
                "strategy=easytorch.DataParallel(split_data=False)."
            )
        )


def _to_bytes(order: Any) -> bytes:
    """Return ``order`` as bytes, the same for a list of integers and a tensor."""
    if isinstance(order, Tensor) or all(type(index) is int for index in order):
        return torch.as_tensor(order, dtype=torch.int64).numpy().tobytes()
    return repr(order).encode()


def keeps_rows(collate: Any) -> bool:
    """Return whether ``collate`` is known to make one row per sample."""
    inner = getattr(collate, "collate", collate)  # a wrapper that adds sample weights has one
    return inner is default_collate or inner is as_batch


class _Stream(Iterable[Any]):
    """Base class of streams of batches, whose sample counts are known only when a round has been read.

    Attributes:
        rounds: For each round so far, the number of samples of this rank and of all ranks.
    """

    counts_exact = True

    def __init__(self, loader: Any, group: SingleProcess, count_samples: Callable[[Any], int] = batch_size) -> None:
        self.loader, self.group, self.offset = loader, group, 0
        self.rounds: list[tuple[int, int]] = []
        self._count_samples = count_samples

    def _count(self, batch: Any) -> int:
        return 0 if batch is NO_BATCH else self._count_samples(batch)

    def __getattr__(self, name: str) -> Any:  # state_dict, load_state_dict, worker_init_fn
        if name in ("loader", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.loader, name)


class RoundRobinStream(_Stream):
    """Every ``world_size``-th batch of a stream that all ranks read, since a stream cannot be skipped."""

    def __init__(
        self, loader: Any, group: SingleProcess, training: bool, count_samples: Callable[[Any], int] = batch_size
    ) -> None:
        super().__init__(loader, group, count_samples)
        self.training = training

    def __len__(self) -> int:
        count, rank, world_size = len(self.loader), self.group.rank, self.group.world_size
        return -(-count // world_size) if self.training else -(-(count - rank) // world_size)

    def __iter__(self) -> Iterator[Any]:
        # Started here and not in the generator: the caller shields the workers from signals while they start.
        return self._select(iter(self.loader))

    def _select(self, stream: Iterator[Any]) -> Iterator[Any]:
        rank, world_size, self.rounds = self.group.rank, self.group.world_size, []
        stream = itertools.islice(stream, self.offset, None)
        while True:
            batches = list(itertools.islice(stream, world_size))
            batch = batches[rank] if rank < len(batches) else NO_BATCH
            if self.training:
                total = sum(map(self._count, batches))
                self._check_round(total)
                if batches:
                    self.rounds.append((self._count(batch), total))
            if not batches:
                return
            if self.training or batch is not NO_BATCH:
                yield batch

    def _check_round(self, total: int) -> None:
        """Raise a ``RankError`` on all ranks if they have read different numbers of samples for this round.

        A rank whose stream has ended would not take part in the update of the others, which would wait for it.
        """
        ours, *others = self.group.gather_numbers(total)
        for rank, theirs in enumerate(others, 1):
            if theirs != ours:
                raise as_reported(
                    RankError(
                        f"The streams of rank 0 and rank {rank} differ: after {len(self.rounds)} updates of this pass, rank 0 "
                        f"read {ours[0]:.0f} samples for the next one, and rank {rank} read {theirs[0]:.0f}. Every rank must "
                        "read the same stream, which is divided between them: seed what shuffles it. If each rank has a separate "
                        "stream, pass strategy=easytorch.DataParallel(split_data=False)."
                    )
                )


class PerRankStream(_Stream):
    """Batches that only this rank has; a rank without batches waits until no rank has any."""

    def __len__(self) -> int:
        raise TypeError("the number of rounds is unknown until no rank has a batch")

    def __iter__(self) -> Iterator[Any]:
        return self._pad(iter(self.loader))

    def _pad(self, batches: Iterator[Any]) -> Iterator[Any]:
        self.rounds = []
        for batch in itertools.chain(batches, itertools.repeat(NO_BATCH)):
            count = self._count(batch)
            numbers = self.group.gather_numbers(count, batch is not NO_BATCH)
            if not any(has_batch for _, has_batch in numbers):
                return
            self.rounds.append((count, int(sum(counts for counts, _ in numbers))))
            yield batch
