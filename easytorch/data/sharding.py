"""Each rank's share of the batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from easytorch.data.arrays import as_batch
from easytorch.data.batch import batch_size
from easytorch.distributed.process_group import SingleProcess

NO_BATCH: Any = object()  # stands for a batch where a process has none and others have
Bounds = list[tuple[int, int]]


def shard_loader(loader: Any, group: SingleProcess, training: bool) -> Any:
    """Return this process' part of the batches of ``loader``: a ``DataLoader`` for one, else an iterable.

    In training every process has as many batches, some of them ``IDLE``, and of what is left for the last round an even
    share. In evaluation each has every so-many-th batch, none is changed, and none is there twice.
    """
    if group.world_size == 1:
        return loader
    dealt = _uses_distributed_sampler(loader)
    if not group.splits_data or (is_presharded(loader) and not dealt):
        return PerRankStream(loader, group) if training else loader
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        return RoundRobinStream(loader, group, training)
    twin, batches = copy.copy(loader), loader.batch_sampler
    if dealt and not training:
        batches = BatchSampler(SequentialSampler(loader.dataset), loader.batch_size or 1, drop_last=False)  # type: ignore[arg-type]  # it has a length
        vars(twin).update(sampler=batches.sampler)
    kind = PreshardedBatchSampler if dealt and training else ShardedBatchSampler
    vars(twin).update(batch_sampler=kind(batches, group, training, loader.collate_fn), _iterator=None)
    return twin


def is_presharded(loader: Any) -> bool:
    """Whether the data is split between processes already, by a sampler or a dataset that knows of them."""
    batches, dataset = getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)
    samplers = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    known = any(hasattr(one, "num_replicas") for one in samplers)
    return known or getattr(dataset if dataset is not None else loader, "_distributed", None) is not None


def _uses_distributed_sampler(loader: Any) -> bool:
    """Whether the split is that of torch, with as many samples for everyone; in evaluation it is taken back."""
    sampler = getattr(loader, "sampler", None)
    return type(sampler) is DistributedSampler and type(loader.batch_sampler) is BatchSampler


class ShardedBatchSampler:
    """Stands in for a batch sampler: deals its batches to the processes.

    Args:
        batch_sampler: What it stands in for.
        processes: Those who share.
        training: See ``part``.
        collate: What makes a batch of samples; if it is torch's own, a batch has as many rows as there are indices.

    Attributes:
        offset: The batches, of all processes, that an earlier run with another number of them has used of this pass.
        rounds: Of each round of this pass, the number of samples for this process and for all.
    """

    def __init__(
        self, batch_sampler: Any, group: SingleProcess, training: bool, collate: Callable[[Any], Any] | None = None
    ) -> None:
        self.batch_sampler, self.group, self.training = batch_sampler, group, training
        self.counts = counts_rows(collate)
        self.offset = 0
        self.rounds: list[tuple[int, int]] = []

    def __len__(self) -> int:
        count, rank, size = len(self.batch_sampler) - self.offset, self.group.rank, self.group.world_size
        if not self.training:
            return -(-(count - rank) // size)
        return count // size if self._drops else -(-count // size)

    def __getattr__(self, name: str) -> Any:  # sampler, batch_size, drop_last
        if name in ("batch_sampler", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = [list(indices) for indices in self.batch_sampler]
        order = list(itertools.chain.from_iterable(batches))
        ends = list(itertools.accumulate(map(len, batches)))
        bounds = [(end - len(indices), end) for indices, end in zip(batches, ends, strict=True)]
        self.group.seed_per_rank()
        for begin, end in self.deal(bounds):
            if end > begin:
                yield order[begin:end]

    @property
    def _drops(self) -> bool:
        return bool(getattr(self.batch_sampler, "drop_last", False))

    def deal(self, bounds: Bounds) -> Bounds:
        """Return where the batches of this process begin and end in the order, given where all of them do."""
        rank, size, bounds = self.group.rank, self.group.world_size, bounds[self.offset :]
        if not self.training:
            return bounds[rank::size]
        groups = [bounds[i : i + size] for i in range(0, len(bounds), size)]
        if groups and self._drops and len(groups[-1]) < size:
            groups.pop()
        own = [group[rank] for group in groups[:-1]]
        own += [_even(group[0][0], group[-1][1], rank, size) for group in groups[-1:]]
        self.rounds = [(mine[1] - mine[0], group[-1][1] - group[0][0]) for mine, group in zip(own, groups, strict=True)]
        return own


class PreshardedBatchSampler(ShardedBatchSampler):
    """Stands in for a batch sampler that knows of the processes, and has as many samples for each."""

    def __len__(self) -> int:
        return len(self.batch_sampler) - self.offset

    def deal(self, bounds: Bounds) -> Bounds:
        """Return where the batches begin and end in the order of this process."""
        own = bounds[self.offset :]
        self.rounds = [(end - begin, (end - begin) * self.group.world_size) for begin, end in own]
        return own


def _even(begin: int, end: int, rank: int, size: int) -> tuple[int, int]:
    """Return the part of one process: none is larger than another by more than one, and none a single sample, which BatchNorm
    could not take; where there are too few, only the first processes have one.
    """
    size = min(size, max((end - begin) // 2, 1))
    first, last = (begin - (-(end - begin) * min(i, size) // size) for i in (rank, rank + 1))
    return first, last


def counts_rows(collate: Any) -> bool:
    """Whether ``collate`` surely makes as many rows as it is given samples."""
    inner = getattr(collate, "collate", collate)  # of samples that bring weights
    return inner is default_collate or inner is as_batch


class RoundRobinStream(Iterable[Any]):
    """Every so-many-th batch of a stream that all processes read, since nobody can skip in it."""

    def __init__(self, loader: Any, group: SingleProcess, training: bool) -> None:
        self.loader, self.group, self.training = loader, group, training
        self.counts, self.offset = True, 0
        self.rounds: list[tuple[int, int]] = []

    def __len__(self) -> int:
        count, rank, size = len(self.loader), self.group.rank, self.group.world_size
        return -(-count // size) if self.training else -(-(count - rank) // size)

    def __getattr__(self, name: str) -> Any:  # state_dict, load_state_dict, worker_init_fn
        if name in ("loader", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._turns(iter(self.loader))  # begun here and now, where signals wait for its workers

    def _turns(self, stream: Iterator[Any]) -> Iterator[Any]:
        rank, size, self.rounds = self.group.rank, self.group.world_size, []
        stream = itertools.islice(stream, self.offset, None)
        while group := list(itertools.islice(stream, size)):
            own = group[rank] if rank < len(group) else NO_BATCH
            if self.training:
                self.rounds.append((_rows(own), sum(map(_rows, group))))
                yield own
            elif own is not NO_BATCH:
                yield own


class PerRankStream(Iterable[Any]):
    """Batches that only this process has; those who have none left are idle as long as others have."""

    def __init__(self, loader: Any, group: SingleProcess) -> None:
        self.loader, self.group = loader, group
        self.counts, self.offset = True, 0
        self.rounds: list[tuple[int, int]] = []

    def __len__(self) -> int:
        raise TypeError("how many rounds there are is known when nobody has a batch left")

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._rounds(iter(self.loader))

    def _rounds(self, batches: Iterator[Any]) -> Iterator[Any]:
        self.rounds = []
        for batch in itertools.chain(batches, itertools.repeat(NO_BATCH)):
            own = _rows(batch)
            total = int(self.group.all_reduce_sum(own))
            if not total:
                return
            self.rounds.append((own, total))
            yield batch


def _rows(batch: Any) -> int:
    return 0 if batch is NO_BATCH else batch_size(batch)
