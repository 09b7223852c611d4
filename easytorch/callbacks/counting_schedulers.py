"""Schedulers that take the number of epochs or updates, as those of timm do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer


class CountedScheduler:
    """A scheduler with ``step(epoch)`` and ``step_update(num_updates)`` as one with ``step()``, which counts.

    Args:
        scheduler: The scheduler. Its attribute ``t_in_epochs`` decides which of the two sets the rate.

    Attributes:
        count: Epochs or updates so far.

    Raises:
        ValueError: If the scheduler needs the value of a metric.
    """

    def __init__(self, scheduler: Any) -> None:
        if hasattr(scheduler, "lr_scheduler"):  # one of torch, for plateaus
            raise ValueError(
                f"{type(scheduler).__name__} needs the value of a metric, and its state lacks the number of bad epochs, so a run "
                "with it cannot be resumed. Pass easytorch.callbacks.ReduceLROnPlateau(...) to fit(callbacks=...)."
            )
        self.scheduler, self.count = scheduler, 0

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose rate it sets."""
        optimizer: Optimizer = self.scheduler.optimizer
        return optimizer

    @property
    def step_every(self) -> str:
        """What it counts: ``"epoch"`` or ``"update"``."""
        return "epoch" if self.scheduler.t_in_epochs else "update"

    def step(self) -> None:
        """Set the rate after one more epoch or update."""
        self.count += 1
        if self.scheduler.t_in_epochs:
            self.scheduler.step(self.count)
        else:
            self.scheduler.step_update(self.count)

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the state of the scheduler."""
        return {"count": self.count, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the count and the state of the scheduler."""
        self.count = state["count"]
        self.scheduler.load_state_dict(dict(state["scheduler"]))


def counted(scheduler: Any) -> Any:
    """Return ``scheduler``, or one that counts for it if it has the interface of timm."""
    is_counting = callable(getattr(scheduler, "step_update", None)) and hasattr(scheduler, "t_in_epochs")
    return CountedScheduler(scheduler) if is_counting and not isinstance(scheduler, type) else scheduler
