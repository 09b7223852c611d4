"""Callbacks that change the learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from easytorch.callbacks.callback import Callback

PER_UPDATE = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
PER_EPOCH = (
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.ReduceLROnPlateau,
)


class LRScheduler(Callback):
    """Steps a scheduler of torch, after each update or after each epoch.

    Args:
        scheduler: A ``torch.optim.lr_scheduler`` object of the model's optimizer, or a function that makes one from it.
        step_every: ``"update"`` or ``"epoch"``. None goes by the class: ``OneCycleLR`` and ``CyclicLR`` count updates;
            ``StepLR``, ``MultiStepLR``, ``ExponentialLR`` and ``ReduceLROnPlateau`` count epochs.
        monitor: What ``ReduceLROnPlateau`` looks at; by default ``val_loss`` where there is one, else ``loss``.

    Raises:
        ValueError: If the class counts either, so that only you can know (``CosineAnnealingLR``, ``LambdaLR``, ...).
    """

    def __init__(self, scheduler: Any, step_every: str | None = None, monitor: str | None = None) -> None:
        self.scheduler, self.step_every, self.monitor = scheduler, step_every, monitor
        if step_every not in (None, "update", "epoch"):
            raise ValueError(f"step_every must be 'update' or 'epoch', received {step_every!r}.")
        self._updated = False

    @classmethod
    def of(cls, scheduler: Any, optimizer: torch.optim.Optimizer | None) -> LRScheduler:
        """Return the callback for what the user passed to ``compile``, ready for ``optimizer``."""
        callback = scheduler if isinstance(scheduler, LRScheduler) else cls(scheduler)
        callback.bind(optimizer)
        return callback

    def bind(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Make the scheduler, where a function was given, and find out when it steps."""
        if optimizer is None:
            raise ValueError("A scheduler needs an optimizer: pass one to compile().")
        if not _is_scheduler(self.scheduler):
            if not callable(self.scheduler):
                raise TypeError(
                    f"Expected a torch.optim.lr_scheduler, or a function that makes one from the optimizer; received "
                    f"{self.scheduler!r}."
                )
            self.scheduler = self.scheduler(optimizer)
        if self.scheduler.optimizer is not optimizer:
            raise ValueError(
                "The scheduler belongs to another optimizer than the model's. Pass a function instead: "
                f"scheduler=lambda optimizer: {type(self.scheduler).__name__}(optimizer, ...)."
            )
        if self.step_every is None:
            self.step_every = _step_every(self.scheduler)
        # With loss scaling an update may be skipped; a scheduler that counts updates must not count those.
        optimizer.register_step_post_hook(self._note_update)

    def _note_update(self, *_: Any) -> None:
        self._updated = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Step after an update."""
        if self.step_every == "update" and self._updated:
            self.scheduler.step()
        self._updated = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Step after an epoch."""
        if self.step_every != "epoch":
            return
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            name = self.monitor or ("val_loss" if "val_loss" in (logs or {}) else "loss")
            if name in (logs or {}):
                self.scheduler.step(logs[name])
        else:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        return {"scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.scheduler.load_state_dict(dict(state["scheduler"]))


def _is_scheduler(scheduler: Any) -> bool:
    return isinstance(scheduler, (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau))


def _step_every(scheduler: Any) -> str:
    if isinstance(scheduler, PER_UPDATE):
        return "update"
    if isinstance(scheduler, PER_EPOCH):
        return "epoch"
    name = type(scheduler).__name__
    counts = [
        key
        for key in inspect.signature(type(scheduler)).parameters
        if key in ("T_max", "T_0", "total_iters", "milestones")
    ]
    what = f" Its {counts[0]} may count either." if counts else ""
    raise ValueError(
        f"{name} may count updates or epochs.{what} Say which: "
        f"scheduler=easytorch.callbacks.LRScheduler(..., step_every='update') or step_every='epoch'."
    )
