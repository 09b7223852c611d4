"""Train and eval mode, restored for each submodule."""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from easytorch._utils import torch_private
from easytorch._utils.warnings import warn


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


@contextlib.contextmanager
def in_loss_mode(module: nn.Module) -> Iterator[None]:
    """Set ``module`` to train mode inside the block, and all layers, which have no submodules or are of torch, to eval mode.

    A module that returns losses in train mode and predictions in eval mode then returns losses, without dropout and without an
    update of running statistics.
    """
    with _preserve_modes(module):
        for submodule in module.modules():
            is_layer = type(submodule).__module__.startswith("torch.nn.") or not any(submodule.children())
            submodule.training = submodule is module or not is_layer
        yield


def snapshot_buffers(*modules: nn.Module) -> Callable[[], None]:
    """Copy the buffers of ``modules`` and return a function that restores them."""
    copies = [
        (submodule, name, buffer, buffer.clone())
        for module in modules
        for submodule in module.modules()
        for name, buffer in submodule.named_buffers(recurse=False)
    ]

    def restore() -> None:
        with torch.no_grad():
            for submodule, name, buffer, value in copies:
                buffer.copy_(value)
                setattr(submodule, name, buffer)  # forward() may have replaced it

    return restore


@contextlib.contextmanager
def preserve_buffers(*modules: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``modules`` at the end of the block."""
    restore = snapshot_buffers(*modules)
    try:
        yield
    finally:
        restore()


# Parameters with more values are not copied before the check of the validation data.
MAX_COPIED_VALUES = 2**22


@contextlib.contextmanager
def preserve_module(module: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers and other attributes of all submodules at the end of the block.

    Large parameters are not copied. If one of them has changed, a warning names it. Of a sharded module, whose attributes belong
    to FSDP, only the buffers are restored.
    """
    if any(hasattr(parameter, "to_local") for parameter in module.parameters()):
        with preserve_buffers(module):
            yield
        return
    tensors = [*filter(_is_copied, module.parameters()), *module.buffers()]
    large = {
        name: (tensor, torch_private.version(tensor))
        for name, tensor in module.named_parameters()
        if not _is_copied(tensor)
    }
    copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
    attributes = [(submodule, _copy_attributes(submodule)) for submodule in module.modules()]
    try:
        yield
    finally:
        for submodule, saved in attributes:
            _restore_attributes(submodule, saved)
        with torch.no_grad():
            for tensor, value in copies:
                if tensor.shape == value.shape:
                    tensor.copy_(value)
        changed = [name for name, (tensor, version) in large.items() if torch_private.version(tensor) != version]
        if changed:
            warn(
                f"The check of the validation data has changed {changed[0]!r}, a parameter that the module changes in eval mode. "
                "Training starts from the changed values."
            )


def _is_copied(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= MAX_COPIED_VALUES


def _copy_attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return each attribute with a copy of its content; the copy is None if the content is not restored."""
    return {name: (value, _copy_content(value)) for name, value in vars(module).items()}


def _copy_content(value: Any) -> Any:
    if type(value) in (list, dict, set, collections.deque, collections.OrderedDict):
        return copy.copy(value)
    return value.detach().clone() if isinstance(value, torch.Tensor) and _is_copied(value) else None


def _restore_attributes(module: nn.Module, saved: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in vars(module) if name not in saved]:
        del vars(module)[name]
    for name, (value, content) in saved.items():
        vars(module)[name] = value
        if isinstance(value, torch.Tensor) and content is not None:
            with torch.no_grad():
                value.copy_(content)
        elif content is not None:
            value.clear()
            (value.extend if isinstance(value, (list, collections.deque)) else value.update)(content)


@contextlib.contextmanager
def _preserve_modes(module: nn.Module) -> Iterator[None]:
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        yield
    finally:
        try:
            _set_modes(modes)
        except BaseException:  # Ctrl-C in the middle must not leave a submodule in the other mode
            _set_modes(modes)
            raise


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for submodule, mode in modes:
        submodule.training = mode
