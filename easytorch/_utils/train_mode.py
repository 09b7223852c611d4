"""Train and eval mode, restored for each submodule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def in_train_mode(module: nn.Module) -> Iterator[None]:
    """Train ``module`` inside; a module in train mode keeps those parts that the user froze by ``part.eval()``."""
    with _remembered(module):
        if not module.training:  # as found after evaluating by hand: nothing in it was frozen on purpose
            module.train()
        yield


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluate ``module`` inside."""
    with _remembered(module):
        module.eval()
        yield


def snapshot_buffers(module: nn.Module) -> Callable[[], None]:
    """Copy the buffers of ``module`` and return a function that restores them."""
    copies = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def restore() -> None:
        with torch.no_grad():
            for buffer, value in copies:
                buffer.copy_(value)

    return restore


@contextlib.contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``module`` at the end of the block."""
    restore = snapshot_buffers(module)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def _remembered(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
