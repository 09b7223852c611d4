"""Learning rate schedules."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from easytorch._utils.registry import find
from easytorch.callbacks.base import Callback
from easytorch.callbacks.early_stopping import Monitor, check_name, check_patience
from easytorch.errors import FileError

if TYPE_CHECKING:
    from easytorch.model import Model


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
        self._factory = None if _is_scheduler(scheduler) else scheduler
        if step_every not in (None, "update", "epoch"):
            raise ValueError(f"step_every must be 'update' or 'epoch', received {step_every!r}.")
        self._updated = False
        self._bound: torch.optim.Optimizer | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Take hold of the optimizer, where ``compile`` did not do it."""
        if self._bound is not self.model.optimizer:
            self.bind(self.model.optimizer)
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau) and self.monitor is not None:
            check_name(self.monitor, "The scheduler monitors", self.model)

    @classmethod
    def of(cls, scheduler: Any, optimizer: torch.optim.Optimizer | None) -> LRScheduler:
        """Return the callback for what the user passed to ``compile``, ready for ``optimizer``."""
        if isinstance(scheduler, str):
            scheduler = Schedule(scheduler)
        callback = scheduler if isinstance(scheduler, LRScheduler) else cls(scheduler)
        callback.bind(optimizer)
        return callback

    def bind(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Make the scheduler, where a function was given, and find out when it steps."""
        if optimizer is None:
            raise ValueError("A scheduler needs an optimizer: pass one to compile().")
        if not _is_scheduler(self.scheduler) or self._factory is not None:
            if not callable(self._factory):
                raise TypeError(
                    f"Expected a torch.optim.lr_scheduler, or a function that makes one from the optimizer; received "
                    f"{self.scheduler!r}."
                )
            self.scheduler = self._made(self._factory, optimizer)
        if self.scheduler.optimizer is not optimizer:
            raise ValueError(
                "The scheduler belongs to another optimizer than the model's. Pass a function instead: "
                f"scheduler=lambda optimizer: {type(self.scheduler).__name__}(optimizer, ...)."
            )
        if self.step_every is None:
            self.step_every = _step_every(self.scheduler)
        self.watch(optimizer)

    @staticmethod
    def _made(factory: Callable[..., Any], optimizer: torch.optim.Optimizer) -> Any:
        try:
            return factory(optimizer)
        except TypeError as error:
            if not isinstance(factory, type):
                raise
            raise TypeError(
                f"{factory.__name__} needs more than the optimizer. Pass scheduler=lambda optimizer: "
                f"{factory.__name__}(optimizer, ...). {error}"
            ) from None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the updates of ``optimizer``."""
        # With loss scaling an update may be skipped; a scheduler that counts updates must not count those.
        optimizer.register_step_post_hook(self._note_update)
        self._bound = optimizer

    def _note_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A fused optimizer is stepped in a skipped update too, and leaves the weights alone by itself.
        scaled = self.step_every == "update" and "model" in vars(self) and self.model.strategy._scales_loss
        self._updated = not (scaled and bool(getattr(optimizer, "found_inf", False)))

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
            logs = logs or {}
            # An epoch that is not validated has no value, rather than another one to be compared with the best.
            unmeasured = self.model.callbacks.params["validated"] and not any(name.startswith("val_") for name in logs)
            name = self.monitor or ("val_loss" if unmeasured or "val_loss" in logs else "loss")
            if name in logs:
                self.scheduler.step(logs[name])
        else:
            self.scheduler.step()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise an error if ``state`` is none that the scheduler can go on from."""
        if state and _is_scheduler(self.scheduler) and not set(state["scheduler"]) <= set(vars(self.scheduler)):
            raise FileError(
                f"The file has the state of another scheduler than {type(self.scheduler).__name__}. Compile with the one that it "
                "was saved with, or take the weights alone: load_weights()."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, none where it is made only when training begins."""
        return {"scheduler": self.scheduler.state_dict()} if _is_scheduler(self.scheduler) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.check_state(state)
        if state and _is_scheduler(self.scheduler):
            self.scheduler.load_state_dict(dict(state["scheduler"]))
            _count_milestones(self.scheduler)


def _count_milestones(scheduler: Any) -> None:
    """Make the milestones of MultiStepLR, which a file has as a dict, a Counter again."""
    if isinstance(getattr(scheduler, "milestones", None), dict):
        scheduler.milestones = Counter(scheduler.milestones)
    for part in getattr(scheduler, "_schedulers", ()):
        _count_milestones(part)


class Schedule(LRScheduler):
    """A schedule over all updates of a fit, by name; its length is known when ``fit`` begins.

    Args:
        name: ``"warmup_cosine"`` rises in a line to the optimizer's learning rate and falls along half a cosine to 0;
            ``"cosine"`` only falls; ``"one_cycle"`` is ``torch.optim.lr_scheduler.OneCycleLR`` up to that rate.
        warmup: The share of all updates in which ``"warmup_cosine"`` rises.
    """

    NAMES: ClassVar[dict[str, str]] = {"warmup_cosine": "warmup_cosine", "cosine": "cosine", "one_cycle": "one_cycle"}

    def __init__(self, name: str, warmup: float = 0.05) -> None:
        self.name = find(
            "scheduler", name, self.NAMES, otherwise="a torch.optim.lr_scheduler or a function that makes one"
        )
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of all updates between 0 and 1, received {warmup!r}.")
        super().__init__(None, "update")
        self.warmup = 0.0 if self.name == "cosine" else warmup
        self.rates: list[float] = []
        self._total = 0

    def bind(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Note the optimizer and its learning rates, the highest of the schedule."""
        if optimizer is None:
            raise ValueError("A scheduler needs an optimizer: pass one to compile().")
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.watch(optimizer)

    def on_train_begin(self, logs: Any = None) -> None:
        """Make the schedule for this fit."""
        super().on_train_begin(logs)
        optimizer = self.model.require_optimizer("fit")
        if not self.params["steps"]:
            raise ValueError(
                f"scheduler={self.name!r} must know how long training is, but this data has no length. Pass steps_per_epoch."
            )
        self._total = total = self.params["steps"] * (self.model.state.last - self.model.state.first)
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
        if self.name == "one_cycle":
            cycles = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
            self.scheduler = lr_scheduler.OneCycleLR(optimizer, self.rates, total + 1, cycle_momentum=cycles)
            return
        rise = round(self.warmup * total)
        self.scheduler = lr_scheduler.LambdaLR(optimizer, functools.partial(_warmup_cosine, rise, total))

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state and the number of updates that it is for."""
        state = super().state_dict()
        return {**state, "total": self._total} if state else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, to the end of the fit that runs now, which may be longer than the one before."""
        length = ("total_steps", "_schedule_phases")  # of OneCycleLR, which raises an error behind its end
        kept = {name: value for name, value in getattr(self.scheduler, "__dict__", {}).items() if name in length}
        super().load_state_dict(state)
        if kept:
            vars(self.scheduler).update(kept)
        done = self.scheduler.last_epoch if _is_scheduler(self.scheduler) else 0
        if state.get("total", self._total) != self._total and 0 < done <= self._total:
            self.scheduler.last_epoch -= 1
            self.scheduler.step()  # or the next update would have the rate of the shorter schedule


def _warmup_cosine(rise: int, total: int, step: int) -> float:
    if step < rise:
        return float((step + 1) / (rise + 1))
    return float(0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))))


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch.

    Args:
        schedule: ``schedule(epoch, lr)`` or ``schedule(epoch)`` returns the learning rate; epochs count from 0.
        verbose: 1 prints it.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(f"Expected a function schedule(epoch, lr), received {schedule!r}.")
        self.schedule, self.verbose = schedule, verbose
        self.applied: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Start anew."""
        self.applied = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the learning rate, once for each epoch: one that is resumed has it already."""
        if epoch == self.applied:
            return
        self.applied = epoch
        lr = float(self.model.require_optimizer("fit").param_groups[0]["lr"])
        value = self.schedule(*((epoch, lr) if _takes_two(self.schedule) else (epoch,)))
        if not isinstance(value, numbers.Real) and not isinstance(value, Tensor):
            raise TypeError(
                f"The schedule returned {value!r} for epoch {epoch}. It is to return the learning rate, a number."
            )
        _set_lr(self.model, value)
        if self.verbose:
            self.say(f"Epoch {epoch + 1}: learning rate {_lr(self.model):.4g}")

    def state_dict(self) -> dict[str, Any]:
        """Return which epoch has its learning rate."""
        return {"applied": self.applied}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.applied = state["applied"]


class ReduceLROnPlateau(Monitor):
    """Lowers the learning rate when a value has stopped getting better.

    Args:
        monitor: The value to watch.
        factor: What the learning rate is multiplied by, below 1.
        patience: Epochs without a better value after which it is lowered.
        verbose: 1 says when it is.
        mode: ``"min"``, ``"max"`` or ``"auto"``, which asks the metric.
        min_delta: What counts as better must be better by more than this.
        cooldown: Epochs after a lowering in which nothing is counted.
        min_lr: It goes no lower.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if not factor < 1:
            raise ValueError(f"factor must be below 1, or the learning rate would not fall; received {factor!r}.")
        self.factor, self.patience, self.verbose, self.cooldown, self.min_lr = (
            factor,
            check_patience(patience),
            verbose,
            cooldown,
            min_lr,
        )
        self.wait = self.cooling = 0

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self.wait = self.cooling = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count the epochs without a better value."""
        value = self.value(logs or {})
        if value is None:
            return
        cooling, self.cooling = self.cooling > 0, max(self.cooling - 1, 0)
        if self.improved(value):
            self.best, self.wait = value, 0
            return
        if cooling:  # Keras counts the last epoch of it
            return
        self.wait += 1
        rates = [float(group["lr"]) for group in self._groups()]
        if self.wait >= self.patience and max(rates) > self.min_lr:
            _set_lr(self.model, *(min(rate, max(rate * self.factor, self.min_lr)) for rate in rates))
            self.cooling, self.wait = self.cooldown, 0
            if self.verbose:
                self.say(f"Epoch {epoch + 1}: {self.monitor} has not been better; learning rate {_lr(self.model):.4g}")

    def _groups(self) -> list[dict[str, Any]]:
        return self.model.require_optimizer("fit").param_groups

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the counts."""
        return super().state_dict() | {"wait": self.wait, "cooling": self.cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        self.wait, self.cooling = state["wait"], state["cooling"]


def _lr(model: Model) -> float:
    return float(model.require_optimizer("fit").param_groups[0]["lr"])


def _set_lr(model: Model, *rates: float) -> None:
    groups = model.require_optimizer("fit").param_groups
    for group, rate in zip(groups, rates if len(rates) == len(groups) else rates[:1] * len(groups), strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = float(rate)


def _takes_two(schedule: Callable[..., float]) -> bool:
    try:
        inspect.signature(schedule).bind(0, 0.1)
    except TypeError:
        return False
    return True


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
