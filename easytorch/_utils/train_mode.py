"""Train and eval mode, restored for each submodule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def in_train_mode(module: nn.Module) -> Iterator[None]:
    """Set ``module`` to train mode inside the block.

    If ``module`` is in train mode already, submodules in eval mode stay there: the user has frozen them.
    """
    with _preserve_modes(module):
        if not module.training:
            module.train()
        yield


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Set ``module`` to eval mode inside the block."""
    with _preserve_modes(module):
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
def _preserve_modes(module: nn.Module) -> Iterator[None]:
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
