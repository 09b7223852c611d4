"""Stop flags that travel with the gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import map_leaves
from easytorch.distributed.process_group import SingleProcess


class ControlChannel(nn.Module):
    """The step itself as a module, to be wrapped, so that the user's stays the user's and a step may call any part of it.

    With the gradients travels a note, as that of one more parameter: what all processes must know at the same update costs no
    message of its own. Its parts are the wishes to stop and to be interrupted, the clock of process 0, and whether a loss was not
    finite. On a CPU it is read in every update; on an accelerator, which would have to be waited for, in one of ``EVERY``.

    Args:
        module: The user's.
        device: Where it lives.
        processes: Those who get the note.
        apart: Whether it must travel by itself, since parts of gradients are all that a process gets.
    """

    EVERY = 16
    __setattr__ = object.__setattr__  # type: ignore[assignment]  # that of a module looks for parameters, in every update
    note: nn.Parameter

    def __init__(self, module: nn.Module, device: torch.device, group: SingleProcess, apart: bool = False) -> None:
        super().__init__()
        self.add_module("module", module)
        self.group, self.apart = group, apart
        wide = {parameter.dtype for parameter in module.parameters()} == {torch.float64}
        dtype = torch.float64 if wide else torch.float32
        self.register_parameter("note", nn.Parameter(torch.zeros(4, device=device, dtype=dtype)))
        self.every = 1 if device.type == "cpu" else self.EVERY
        self._silence = torch.zeros(3, device=device, dtype=dtype)

    def begin(self) -> None:
        """Start the clock."""
        self.wishes, self.granted = [False, False], [False, False]  # of STOP and INTERRUPT
        self.timer, self.updates, self._began = 0.0, 0, time.monotonic()
        self._told: tuple[float, ...]
        self._told, self._message, self._lost = (0.0, 0.0, 0.0), self._silence, 0.0
        self.note.grad = None

    def forward(self, step: Callable[[Any], Any], synced: bool, batch: Any) -> Any:
        """Return ``step(batch)``, with the note at its loss."""
        outputs, message = step(batch), self._write() if synced else self._silence
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            return {**outputs, "loss": self._attach(outputs["loss"], message)}
        return map_leaves(lambda leaf: self._attach(leaf, message) if isinstance(leaf, Tensor) else leaf, outputs)

    def _attach(self, loss: Tensor, message: Tensor) -> Tensor:
        if loss.ndim or not loss.requires_grad:
            return loss
        carried: Tensor = AttachFlags.apply(loss, self.note, message)
        return carried

    def _write(self) -> Tensor:
        due = (self.updates + 1) % self.every == 0
        clock = round(time.monotonic() - self._began, 1) if due and self.group.is_main else 0.0
        told = (*map(float, self.wishes), clock)
        if told != self._told:
            self._told, self._message = told, self._silence.new_tensor(told)
        return self._message

    def read(self) -> None:
        """Read what all processes were told, if it is time."""
        self.updates += 1
        note = self.note
        if self.updates % self.every == 0 and note.grad is not None:
            if self.apart:
                note.grad = (
                    self.group.all_reduce_sum_on_device(note.grad, note.device).to(note.dtype) / self.group.world_size
                )
            *wishes, clock, self._lost = note.grad.tolist()
            self.granted = [wish > 0 for wish in wishes]
            self.timer = max(self.timer, clock * self.group.world_size)  # gradients are averaged

    def broken(self) -> Any:
        """Whether a loss was not finite."""
        if self.note.grad is None:
            return False
        return self._lost != self._lost if self.every == 1 else self.note.grad[-1].isnan()

    def end(self) -> None:
        """Forget what was read."""
        if self.updates % self.every == 0:
            self.note.grad = None


class AttachFlags(torch.autograd.Function):
    """A loss as it is; in the backward pass a message, and 0 or NaN for the loss, become the gradient of a note."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, note: Tensor, message: Tensor) -> Tensor:
        lost = (loss.detach() * 0).to(message.dtype).reshape(1)
        ctx.gradient = torch.cat([message, lost])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, ctx.gradient, None
