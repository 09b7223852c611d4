"""Signals and the workers of a DataLoader."""

from __future__ import annotations

import atexit
import copy
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader


def shield_workers(loader: Any) -> Any:
    """Return a twin of a ``DataLoader`` whose workers outlive the signals meant for the process that trains."""
    if not isinstance(loader, DataLoader):
        return loader
    twin = copy.copy(loader)
    vars(twin)["_iterator"] = None
    if loader.num_workers:
        twin.worker_init_fn = IgnoreSignals(loader.worker_init_fn)
        _end_workers_at_exit()
    return twin


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def iterate(loader: Any) -> Iterator[Any]:
    """Return ``iter(loader)``; signals wait until workers that are to outlive them are ready to."""
    if not isinstance(getattr(loader, "worker_init_fn", None), IgnoreSignals) or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which the workers inherit
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class IgnoreSignals:
    """Starts a worker that does not die of the signals meant for the process that trains: no Ctrl-C, not the first SIGTERM."""

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self.init = init

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if self.init is not None:
            self.init(worker)


@functools.cache
def _end_workers_at_exit() -> None:
    """Send every child that is left a SIGTERM before ``multiprocessing`` does: the second ends a worker for sure."""

    def terminate() -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    atexit.register(terminate)
