"""Signals and the workers of a DataLoader."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from easytorch._utils import torch_private

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def shield_workers(loader: Any) -> Any:
    """Return a copy of a ``DataLoader`` whose workers survive the signals that stop training; other loaders as they are."""
    if not isinstance(loader, DataLoader):
        return loader
    twin = torch_private.copy_loader(loader)
    if loader.num_workers:
        twin.worker_init_fn = IgnoreSignals(loader.worker_init_fn)
        _terminate_workers_at_exit()
    return twin


def iterate(loader: Any) -> Iterator[Any]:
    """Return ``iter(loader)``; signals are blocked until shielded workers have installed their handlers."""
    if not isinstance(getattr(loader, "worker_init_fn", None), IgnoreSignals) or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by the workers
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


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
