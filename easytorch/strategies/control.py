"""What ranks must agree on at each update: stop flags, non-finite losses, a common clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import map_leaves
from easytorch.distributed.process_group import SingleProcess

STOP, INTERRUPT = 0, 1  # topics of ``any_rank``


class SingleProcessControl:
    """Control of a single process: every answer is its own."""

    def any_rank(self, topic: int, value: bool) -> bool:
        """Return whether ``value`` is true on any rank. Asked after each update; all ranks get the same answer.

        Args:
            topic: ``STOP`` or ``INTERRUPT``.
            value: The value of this rank.
        """
        return value

    def loss_not_finite(self, local: Any) -> Any:
        """Return whether a loss of this update is not finite on any rank; ``local`` is the value of this rank."""
        return local

    def now(self) -> float:
        """Return the seconds of a clock that is the same on all ranks."""
        return time.monotonic()


class ControlChannel(nn.Module, SingleProcessControl):
    """Runs steps as a module that DDP or FSDP can wrap, and sends flags with their gradients.

    DDP and FSDP synchronize gradients when the wrapped module is called. Wrapping the step itself, instead of the user's module,
    lets a step call any part of that module.

    The flags are the gradient of one extra parameter, so that they need no further collective and no synchronization:
    two requests to stop, the clock of rank 0, and NaN if the loss is not finite. They are read after each update on a CPU. On
    an accelerator, where reading waits for the device, they are read every ``EVERY`` updates.

    Args:
        module: The user's module.
        device: The device of the module.
        group: The ranks that train together.
        loss_modules: The losses that have parameters or buffers; None without any.
    """

    EVERY = 16
    # nn.Module.__setattr__ looks for parameters, which takes too long for attributes that change in each update.
    __setattr__ = object.__setattr__  # type: ignore[assignment]  # nn.Module declares a narrower type
    flags: nn.Parameter

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        group: SingleProcess,
        *,
        loss_modules: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.add_module("module", module)
        self.add_module("loss", loss_modules)
        self.group = group
        is_double = {parameter.dtype for parameter in module.parameters()} == {torch.float64}
        dtype = torch.float64 if is_double else torch.float32
        self.register_parameter("flags", nn.Parameter(torch.zeros(4, device=device, dtype=dtype)))
        self._every = 1 if device.type == "cpu" else self.EVERY
        self._no_flags = torch.zeros(3, device=device, dtype=dtype)

    def start(self) -> None:
        """Start the clock and clear all flags."""
        self._requested, self._confirmed = [False, False], [False, False]  # STOP, INTERRUPT
        self._seconds, self._updates, self._started = 0.0, 0, time.monotonic()
        self._last_values: tuple[float, ...] = (0.0, 0.0, 0.0)
        self._outgoing, self._loss_flag = self._no_flags, 0.0
        self.flags.grad = None

    def forward(self, step: Callable[[Any], Any], sync: bool, batch: Any) -> Any:
        """Return ``step(batch)``, with the flags attached to its loss.

        Args:
            step: Returns a mapping with ``"loss"``, or scalars.
            sync: Whether the gradients of this batch are reduced over the ranks.
            batch: The batch.
        """
        outputs, flags = step(batch), self._pack() if sync else self._no_flags
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, Tensor):
            return {**outputs, "loss": self._attach(loss, flags)}
        if isinstance(loss, tuple):  # (sum, count)
            return {**outputs, "loss": (self._attach(loss[0], flags), *loss[1:])}
        return map_leaves(lambda leaf: self._attach(leaf, flags) if isinstance(leaf, Tensor) else leaf, outputs)

    def _attach(self, loss: Tensor, flags: Tensor) -> Tensor:
        if loss.ndim or not loss.requires_grad:
            return loss
        attached: Tensor = AttachFlags.apply(loss, self.flags, flags)
        return attached

    def _pack(self) -> Tensor:
        """Return the flags of this rank as a tensor, reused while they do not change."""
        is_due = (self._updates + 1) % self._every == 0
        seconds = round(time.monotonic() - self._started, 1) if is_due and self.group.is_main else 0.0
        values = (*map(float, self._requested), seconds)
        if values != self._last_values:
            self._last_values, self._outgoing = values, self._no_flags.new_tensor(values)
        return self._outgoing

    def pack(self, not_finite: Any) -> Tensor:
        """Return the flags of this rank, and 0 or NaN for ``not_finite``, for a reduction without DDP."""
        value = torch.as_tensor(not_finite, dtype=self.flags.dtype, device=self.flags.device)
        return torch.cat([self._pack(), value.reshape(1)])

    def receive(self) -> None:
        """Read the flags of all ranks, if they are due in this update."""
        self._updates += 1
        flags = self.flags
        if self._updates % self._every == 0 and flags.grad is not None:
            flags.grad = self._reduce(flags.grad)
            *requests, seconds, self._loss_flag = flags.grad.tolist()
            self._confirmed = [request > 0 for request in requests]
            self._seconds = max(self._seconds, seconds * self.group.world_size)  # gradients are averaged

    def _reduce(self, flags: Tensor) -> Tensor:
        """Return the mean of ``flags`` over all ranks, which DDP has computed with the gradients."""
        return flags

    def finish_update(self) -> None:
        """Clear the flags that were read in this update."""
        if self._updates % self._every == 0:
            self.flags.grad = None

    def any_rank(self, topic: int, value: bool) -> bool:
        """Return whether any rank set this flag before the last update."""
        self._requested[topic] |= value
        return self._confirmed[topic]

    def loss_not_finite(self, local: Any) -> Any:
        """Return whether a loss of this update is not finite on any rank."""
        if self.flags.grad is None:
            return False
        return self._loss_flag != self._loss_flag if self._every == 1 else self.flags.grad[-1].isnan()

    def now(self) -> float:
        """Return the seconds since training started, on the clock of rank 0 at the last update."""
        return self._seconds


class AttachFlags(torch.autograd.Function):
    """The identity for a loss, whose backward pass makes flags the gradient of the extra parameter."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, parameter: Tensor, flags: Tensor) -> Tensor:
        """Return the loss; append 0 to the flags, or NaN if the loss is not finite."""
        not_finite = (loss.detach() * 0).to(flags.dtype).reshape(1)
        ctx.gradient = torch.cat([flags, not_finite])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradient of the loss unchanged, and the flags as the gradient of the parameter."""
        return gradient, ctx.gradient, None
