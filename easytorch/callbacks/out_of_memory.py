"""Smaller batches after an accelerator has run out of memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.integers import optional_positive_int
from easytorch._utils.rng import (
    find_generators,
    get_generator_states,
    get_host_rng_state,
    get_torch_rng_state,
    set_generator_states,
    set_host_rng_state,
    set_torch_rng_state,
)
from easytorch._utils.warnings import warn
from easytorch.callbacks.averaging import BATCH_NORMS
from easytorch.callbacks.base import Callback
from easytorch.data.batch import Window
from easytorch.optimizer_group import OptimizerGroup
from easytorch.optimizers import SAM
from easytorch.strategies.base import Strategy

# What a batch may contain besides tensors and arrays: values that belong to all samples.
SHARED_TYPES = (bool, int, float, str, type(None))


class SplitOnOutOfMemory(Callback):
    """Repeat an update that ran out of memory with batches of half the size, and accumulate their gradients.

    The update is equal to that of the whole batch, apart from the rounding of sums: each part gets the weight of its samples
    or labels, as with ``gradient_accumulation_steps``. Later updates use the smaller batches from the start, also after a
    resume. A warning names the size that fits.

    What the failed attempt has changed is restored first: gradients, metrics, random states and buffers. Layers and losses
    that compare the samples of a batch, such as batch normalization, see the smaller batches. Dropout draws another mask.

    Args:
        batch_size: Largest number of samples in one forward and backward pass; None for the whole batch, until it does not fit.

    Attributes:
        batch_size: The size that fits so far.

    Raises:
        ValueError: In ``fit``, with several processes or with a custom ``update`` or ``train_epoch``.
        torch.OutOfMemoryError: If one sample does not fit, if a batch cannot be divided into samples, or if an optimizer
            has changed weights in this update already: one of several, or LBFGS.

    Examples:
        >>> model.fit(loader, epochs=5, callbacks=[SplitOnOutOfMemory()])
    """

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = optional_positive_int("batch_size", batch_size)

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that an update can be repeated."""
        method = next((name for name in ("update", "train_epoch") if self.model.overrides(name)), None)
        if method is not None:
            raise ValueError(
                f"SplitOnOutOfMemory cannot repeat a custom {method}(), whose effect on the state is unknown. Override "
                "train_step instead, or remove the callback and use smaller batches: batch_size=16 in the data, and "
                "compile(..., gradient_accumulation_steps=2)."
            )
        if self.model.strategy.group.world_size > 1:
            raise ValueError(
                "SplitOnOutOfMemory works in one process: with several, a rank that repeats an update would leave the others "
                "waiting. Use smaller batches: batch_size=16 in the data, and compile(..., gradient_accumulation_steps=2)."
            )

    def wrap_update(self, update: Callable[[Window], None]) -> Callable[[Window], None]:
        """Return ``update`` with a repetition after an error."""
        modules = [*self.model.module.modules(), *self.model.loss.modules.modules()]
        places = [(module, name) for module in modules for name, _ in module.named_buffers(recurse=False)]
        generators = find_generators({"model": self.model})

        def split_and_update(window: Window) -> None:
            failed: str | None = None
            while True:
                parts = self._split(window)
                restore = self._record(places, generators)
                self.model.metrics.window = parts
                try:
                    update(parts)
                    break
                except torch.OutOfMemoryError as error:
                    if not _stopped_in_pass(error):
                        raise
                    self._check_unchanged(parts, error)
                    self._reduce(parts, error)
                    failed = failed or str(error)
                # The frames of the error, which hold the activations, are gone here.
                restore()
            if failed is not None:
                self._report(window)

        return split_and_update

    def _split(self, window: Window) -> Window:
        """Return ``window`` with batches of at most ``batch_size`` samples."""
        if self.batch_size is None or max(window.sizes, default=0) <= self.batch_size:
            return window
        parts = [
            part
            for batch, size in zip(window, window.sizes, strict=True)
            for part in self._split_batch(batch, size, -(-size // self.batch_size))
        ]
        divided = window.of_parts(parts)
        if sum(divided.sizes) != sum(window.sizes):
            raise TypeError("batch_size() of the model does not count the samples of the parts of a batch")
        return divided

    def _split_batch(self, batch: Any, size: int, count: int) -> list[Any]:
        return split_batch(batch, size, count, has_parts=not self.model.overrides("unpack"))

    def _reduce(self, window: Window, error: torch.OutOfMemoryError) -> None:
        """Halve the batch size; raise ``error`` with an explanation if that is impossible."""
        size = max(window.sizes)
        try:
            if size > 1:
                for batch, count in zip(window, window.sizes, strict=True):
                    self._split_batch(batch, count, 2)
        except (TypeError, RuntimeError) as reason:
            raise torch.OutOfMemoryError(
                f"An update ran out of memory with a batch of {size} samples, and SplitOnOutOfMemory cannot divide it, because "
                f"{reason}. Pass a smaller batch_size to the data, and compile(..., gradient_accumulation_steps=2). {error}"
            ) from error
        if size <= 1:
            raise torch.OutOfMemoryError(
                "An update ran out of memory with a batch of one sample, so smaller batches do not help. Use "
                f"compile(..., precision='bf16'), smaller inputs or a smaller module. {error}"
            ) from error
        self.batch_size = -(-size // 2)

    def _check_unchanged(self, window: Window, error: torch.OutOfMemoryError) -> None:
        """Raise ``error`` with an explanation if an optimizer has changed its weights or its state in this update already."""
        optimizer, evaluations = self.model.optimizer, self.model.strategy.evaluations
        changed = ""
        if isinstance(optimizer, OptimizerGroup) and optimizer.stepped:
            changed = f"after the optimizer {optimizer.stepped[-1]!r} had stepped"
        elif evaluations is not None and not isinstance(optimizer, SAM) and _stopped_in(error, evaluations.evaluate):
            # Only SAM restores the weights.
            changed = f"while {type(optimizer).__name__} stepped"
        if changed:
            size = max(window.sizes)
            raise torch.OutOfMemoryError(
                f"An update ran out of memory with a batch of {size} samples {changed}, so SplitOnOutOfMemory cannot repeat it. "
                "Create the model again, and pass a size that fits from the start: "
                f"SplitOnOutOfMemory(batch_size={-(-size // 2)}). {error}"
            ) from error

    def _record(self, places: list[tuple[nn.Module, str]], generators: dict[str, Any]) -> Callable[[], None]:
        """Record what an update changes before the optimizer steps; return the function that restores it."""
        model, device = self.model, self.model.device
        strategy, optimizer = model.strategy, model.require_optimizer("fit")
        host, accelerator, states = get_host_rng_state(), get_torch_rng_state(device), get_generator_states(generators)
        metrics, loss_count = model.metrics.snapshot(), len(strategy.losses)
        tensors = [(module, name, getattr(module, name)) for module, name in places]
        with torch.no_grad():
            buffers = [(*entry, entry[2].clone()) for entry in tensors if isinstance(entry[2], Tensor)]

        def restore() -> None:
            strategy.discard_update(optimizer, loss_count)
            model.metrics.load_state_dict(metrics)
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    setattr(module, name, buffer.copy_(value))  # forward() may have replaced it
            set_host_rng_state(host)
            set_torch_rng_state(accelerator, device)
            set_generator_states(generators, states)
            if device.type != "cpu":
                torch.accelerator.empty_cache()

        return restore

    def _report(self, window: Window) -> None:
        """Warn of the new batch size, and of what it changes."""
        assert self.batch_size is not None
        steps = sum(-(-size // self.batch_size) for size in window.sizes)
        norm = next((type(module).__name__ for module in self.model.module.modules() if _uses_batch(module)), None)
        effect = (
            ""
            if norm is None
            else (f" {norm} normalizes over the smaller batches, so results differ from those of whole batches.")
        )
        changed = self.model.attribute_state.has_changed([])
        attributes = (
            " Attributes that forward() or train_step() count may include the failed attempt." if changed else ""
        )
        warn(
            f"Update {self.model.state.step + 1} ran out of memory with batches of {max(window.sizes)} samples. It was "
            f"repeated with batches of {self.batch_size}, accumulating gradients, as all later updates will "
            f"be.{effect}{attributes} To save the failed attempt, use batch_size={self.batch_size} in the data and compile(..., "
            f"gradient_accumulation_steps={steps})."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the batch size that fits."""
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the batch size, so that a resumed run sums in the same order; a smaller one that was passed stays."""
        sizes = self.batch_size, optional_positive_int("batch_size", state["batch_size"])
        self.batch_size = min((size for size in sizes if size is not None), default=None)


def split_batch(batch: Any, size: int, count: int, *, has_parts: bool = True) -> list[Any]:
    """Divide ``batch`` into ``count`` batches whose sizes differ by one at most.

    Args:
        batch: Tensors and arrays whose first dimension is ``size``, in tuples, lists and dicts; and values of all samples.
        size: The number of samples.
        count: The number of parts.
        has_parts: Whether a list or tuple ``batch`` consists of inputs, targets and weights.

    Raises:
        TypeError: If something in it cannot be divided into samples for certain.
    """
    ends = [round(size * i / count) for i in range(count + 1)]
    return [
        _select(batch, size, slice(start, end), int(not has_parts))
        for start, end in itertools.pairwise(ends)
        if end > start
    ]


def _select(tree: Any, size: int, rows: slice, depth: int) -> Any:
    """Return the samples ``rows`` of a part of a batch."""
    if isinstance(tree, (Tensor, np.ndarray)):
        if not tree.ndim:
            return tree
        if len(tree) != size:
            raise TypeError(f"its {len(tree)} rows are not its {size} samples")
        return tree[rows]
    if isinstance(tree, SHARED_TYPES):
        return tree
    if isinstance(tree, list) and depth and len(tree) == size and not _holds_columns(tree, size):
        return tree[rows]
    if type(tree) in (tuple, list):
        if depth and len(tree) == size > 1:
            raise TypeError(f"a {type(tree).__name__} of {size} items may be samples or inputs")
        return type(tree)(_select(item, size, rows, depth + 1) for item in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_select(item, size, rows, depth + 1) for item in tree))
    if type(tree) is dict:
        return {key: _select(item, size, rows, depth + 1) for key, item in tree.items()}
    raise TypeError(f"it contains a {type(tree).__name__}")


def _holds_columns(items: list[Any], size: int) -> bool:
    """Return whether the items of a list may be inputs, each with all samples."""
    return all(isinstance(item, (Tensor, np.ndarray)) and item.ndim and len(item) == size for item in items)


def _uses_batch(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.training


def _stopped_in_pass(error: BaseException) -> bool:
    """Return whether ``error`` was raised in a forward or backward pass, and not in the step of an optimizer."""
    return _stopped_in(error, Strategy.run, Strategy.backward)


def _stopped_in(error: BaseException, *functions: Callable[..., Any]) -> bool:
    """Return whether ``error`` was raised in a call of one of ``functions``."""
    codes = [function.__code__ for function in functions]
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False
