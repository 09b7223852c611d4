"""Workers of a DataLoader: signals, and the epoch that they see."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from easytorch._utils import torch_private
from easytorch._utils.object_graph import get_attributes, walk
from easytorch._utils.pytree import leaves
from easytorch._utils.warnings import warn
from easytorch.data.combined import CombinedLoader
from easytorch.data.random_sources import has_set_epoch

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def shield_workers(loader: Any) -> Any:
    """Return a copy of a ``DataLoader`` whose workers survive the signals that stop training; other loaders as they are."""
    if isinstance(loader, CombinedLoader):  # of an evaluation; in training each part is shielded by itself
        return loader.map(_shield_part)
    if not isinstance(loader, DataLoader):
        return loader
    twin = torch_private.copy_loader(loader)
    if loader.num_workers:
        twin.worker_init_fn = IgnoreSignals(loader.worker_init_fn)
        _terminate_workers_at_exit()
    return twin


def _shield_part(loader: Any) -> Any:
    """Return a shielded copy whose workers start in each pass: those that persist draw no new seed, unlike in a resumed run."""
    if isinstance(loader, DataLoader) and loader.persistent_workers:
        loader = torch_private.copy_loader(loader, persistent_workers=False)
    return shield_workers(loader)


def refresh_workers(loader: Any) -> Any:
    """Return ``loader``, without persistent workers if ``set_epoch`` of its dataset would not reach them."""
    if not isinstance(loader, DataLoader) or not loader.num_workers or not loader.persistent_workers:
        return loader
    objects = walk({"dataset": loader.dataset, "collate_fn": loader.collate_fn}).values()
    source = next((source for source in objects if has_set_epoch(source) and not _shares_memory(source)), None)
    if source is None:
        return loader
    name = type(source).__name__
    warn(
        f"persistent_workers=True has no effect: {name}.set_epoch reaches a worker only when it starts, so workers start again "
        f"in each epoch. Remove persistent_workers=True, or let {name} store the epoch in shared memory: "
        "self.epoch = torch.zeros((), dtype=torch.int64).share_memory_(), and self.epoch.fill_(epoch) in set_epoch."
    )
    return torch_private.copy_loader(loader, persistent_workers=False)


def _shares_memory(source: Any) -> bool:
    """Return whether an attribute of ``source`` is in shared memory, as the epoch may be."""
    values: Iterable[Any] = get_attributes(source).values()
    return any(
        getattr(value, "is_shared", bool)()
        if isinstance(value, torch.Tensor)
        else type(value).__module__.startswith("multiprocessing.")
        for value in values
    )


def iterate(loader: Any) -> Iterator[Any]:
    """Return ``iter(loader)``; signals are blocked until shielded workers have installed their handlers."""
    if not isinstance(getattr(loader, "worker_init_fn", None), IgnoreSignals) or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by the workers
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def report_repeated_stream(loader: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """Return ``batches`` of ``loader``, with a warning if two workers yield the same: then each yields all samples."""
    is_stream = isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
    # A length shows it anyway.
    is_unknown = is_stream and loader.num_workers > 1 and not hasattr(loader.dataset, "__len__")
    return _compare_first_two(loader, batches) if is_unknown else batches


def _compare_first_two(loader: Any, batches: Iterator[Any]) -> Iterator[Any]:
    first = None
    for i, batch in enumerate(batches):
        if i == 1 and _are_equal(first, batch):
            warn(
                f"The first batches of two workers are equal: each of the {loader.num_workers} workers seems to yield all "
                f"samples of {type(loader.dataset).__name__}, so that every sample is used {loader.num_workers} times. Divide "
                "them in __iter__ by torch.utils.data.get_worker_info(), or use num_workers=1."
            )
        first = batch if i == 0 else None
        yield batch


def _are_equal(batch: Any, other: Any) -> bool:
    """Return whether two batches have equal tensors, which are not all constant."""
    tensors, others = ([leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)] for tree in (batch, other))
    is_varied = any(tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any()) for tensor in tensors)
    return is_varied and len(tensors) == len(others) and all(map(torch.equal, tensors, others))


class IgnoreSignals:
    """Worker init function: the worker ignores Ctrl-C and the first SIGTERM, which are meant for the training process."""

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self.init = init

    def __call__(self, worker: int) -> None:
        """Install the handlers, then call the user's init function."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if self.init is not None:
            self.init(worker)


@functools.cache
def _terminate_workers_at_exit() -> None:
    """Send each remaining child a SIGTERM before ``multiprocessing`` does, since a worker ends at the second."""

    def terminate() -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    atexit.register(terminate)
