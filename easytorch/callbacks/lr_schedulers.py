"""Learning rate schedules."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from easytorch._utils import torch_private
from easytorch._utils.api_errors import suggest_scheduler
from easytorch._utils.api_hints import EPOCH_NAMES
from easytorch._utils.integers import non_negative_int
from easytorch._utils.registry import did_you_mean, find, quote_list, spellings
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.callbacks.counting_schedulers import CountedScheduler, counted
from easytorch.callbacks.early_stopping import Monitor, check_log_name, lacks_validation
from easytorch.errors import FileError
from easytorch.optimizer_group import OptimizerGroup, members_of

if TYPE_CHECKING:
    from easytorch.model import Model
    from easytorch.typing import SchedulerLike

TORCH_SCHEDULERS = (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)
PER_UPDATE = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
PER_EPOCH = (
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.ReduceLROnPlateau,
)
# Schedulers that multiply the current rate, so that another callback may change it too.
MULTIPLYING = (
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.LinearLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.ReduceLROnPlateau,
)
# What to do with a function of the epoch.
OF_THE_EPOCH = (
    "If the function returns the learning rate of an epoch, pass it to fit(): "
    "callbacks=[easytorch.callbacks.LearningRateScheduler(function)]. If it returns a factor of the learning rate, pass "
    "scheduler=easytorch.callbacks.LRScheduler(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, function), "
    "step_every='epoch')."
)
# Attributes of torch's schedulers with the number of their steps.
STEP_COUNTS = ("T_max", "T_0", "total_iters")
# Attributes of OneCycleLR that depend on the length of the schedule; it raises an error after its end.
LENGTH_ATTRIBUTES = ("total_steps", "_schedule_phases")


class LRScheduler(Callback):
    """Step a scheduler of torch after each update or after each epoch.

    Args:
        scheduler: A ``torch.optim.lr_scheduler`` of the model's optimizer, or any object with ``step()``, ``state_dict()`` and
            ``load_state_dict()``, or a scheduler of timm; or a function that creates one from the optimizer.
        step_every: ``"update"`` or ``"epoch"``. None decides by the class: ``OneCycleLR`` and ``CyclicLR`` count updates;
            ``StepLR``, ``MultiStepLR``, ``ExponentialLR`` and ``ReduceLROnPlateau`` count epochs. Others, such as
            ``CosineAnnealingLR``, count what their length is equal to: the updates or the epochs of the fit. Those of
            timm count epochs if their ``t_in_epochs`` is True, else updates.
        monitor: Name of the value for ``ReduceLROnPlateau``; by default ``val_loss`` with validation data, else ``loss``.

    Raises:
        ValueError: If ``step_every`` is needed, because a ``LambdaLR``, or a length that is neither the number of updates nor
            that of epochs, may count both; if the scheduler belongs to another optimizer; in ``fit``, if two callbacks control
            the rate.
        TypeError: If ``scheduler`` is neither a scheduler nor a function.

    Examples:
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> scheduler = LRScheduler(lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000), step_every="update")
        >>> model.compile("adam", "cross_entropy", scheduler=scheduler)
    """

    def __init__(
        self, scheduler: SchedulerLike | None, step_every: str | None = None, monitor: str | None = None
    ) -> None:
        if step_every not in (None, "update", "epoch"):
            raise ValueError(
                f"step_every must be 'update' or 'epoch', received {step_every!r}. Use step_every='update' for a schedule that "
                "counts updates."
            )
        self.scheduler: Any = scheduler
        self.step_every, self.monitor = step_every, monitor
        self._factory: Any = None if _is_scheduler(scheduler) else scheduler
        self._has_updated = False
        self._bound_optimizer: Optimizer | None = None
        self._rates: list[Any] | None = []  # after the last step; None after the warning that they were changed
        self.member = ""  # the name of the optimizer, if there are several and it belongs to one of them

    @property
    def sets_rate(self) -> bool:
        """Whether each step computes the rate without regard to its current value, and so undoes any other change."""
        return _is_scheduler(self.scheduler) and not _multiplies(self.scheduler)

    @classmethod
    def of(cls, scheduler: SchedulerLike, optimizer: Optimizer | None) -> LRScheduler:
        """Return the callback for ``compile(scheduler=...)``, bound to ``optimizer``.

        Args:
            scheduler: A name, a scheduler, a function that creates one, or an ``LRScheduler``.
            optimizer: The optimizer of the model, or None.

        Raises:
            ValueError: If there is no optimizer.
        """
        if isinstance(scheduler, str):
            scheduler = Schedule(scheduler)
        callback = scheduler if isinstance(scheduler, LRScheduler) else cls(scheduler)
        callback.bind(optimizer)
        return callback

    @classmethod
    def all_of(
        cls, scheduler: SchedulerLike | Mapping[str, SchedulerLike], optimizer: Optimizer | None
    ) -> list[LRScheduler]:
        """Return the callbacks for ``compile(scheduler=...)``: one, or one for each entry of a dict, in the optimizers' order.

        Raises:
            ValueError: If a name is that of no optimizer.
        """
        if not isinstance(scheduler, Mapping):
            return [cls.of(scheduler, optimizer)]
        members = members_of(require_optimizer(optimizer))
        for name in scheduler:
            if name not in members or not name:
                known = (
                    f"The names are {quote_list(list(members))}." if "" not in members else "There is one optimizer."
                )
                raise ValueError(
                    f"scheduler has {name!r}, which is no optimizer.{did_you_mean(str(name), members)} {known}"
                )
        callbacks = []
        for name in (name for name in members if name in scheduler):
            callbacks.append(cls.of(scheduler[name], members[name]))
            callbacks[-1].member = name
        return callbacks

    def optimizer_in(self, optimizer: Optimizer) -> Optimizer:
        """Return what this schedule sets the rate of: ``optimizer``, or one of its members."""
        return members_of(optimizer)[self.member] if self.member else optimizer

    def bind(self, optimizer: Optimizer | None) -> None:
        """Create the scheduler, if a function was passed, and decide when it steps."""
        optimizer = require_optimizer(optimizer)
        if self._factory is not None or not _is_scheduler(self.scheduler):
            self.scheduler = _create_scheduler(self._factory, optimizer)
        self.scheduler = counted(self.scheduler)
        _check_interface(self.scheduler)
        if getattr(self.scheduler, "optimizer", optimizer) is not optimizer:
            raise ValueError(
                "The scheduler belongs to another optimizer than the model's. Pass a function instead: "
                f"scheduler=lambda optimizer: {type(self.scheduler).__name__}(optimizer, ...)."
            )
        if self.step_every is None:
            self.step_every = _find_step_every(self.scheduler)
        if self.step_every is None and _length(self.scheduler) is None:
            raise _step_every_error(self.scheduler)
        self.watch(optimizer)

    def watch(self, optimizer: Optimizer) -> None:
        """Record the updates of ``optimizer``: with loss scaling some are skipped, and must not be counted."""
        for member in members_of(optimizer).values():
            member.register_step_post_hook(self._record_update)
        self._bound_optimizer = optimizer

    def _record_update(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused optimizer also steps in a skipped update, and leaves the weights unchanged.
        is_scaled = self.step_every == "update" and "model" in vars(self) and self.model.strategy.scales_loss
        self._has_updated |= not (is_scaled and bool(getattr(optimizer, "found_inf", False)))

    def on_train_begin(self, logs: Any = None) -> None:
        """Bind the optimizer, if ``compile`` did not."""
        optimizer = None if self.model.optimizer is None else self.optimizer_in(self.model.optimizer)
        if self._bound_optimizer is not optimizer:
            self.bind(optimizer)
        check_is_only_controller(self)
        if self.step_every is None:
            state = self.model.state
            epochs, updates = state.last - state.first, self._count_updates()
            self.step_every = self.find_step_every(epochs, updates)
            if self.step_every is None:
                raise _step_every_error(self.scheduler, epochs, updates)
        self._rates = list(getattr(self.scheduler, "_last_lr", []))
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau) and self.monitor is not None:
            check_log_name(self.monitor, "The scheduler monitors", self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Check, before the first epoch of a fit and after a stopped run is restored, that the schedule is long enough."""
        self.model.callbacks.disconnect(self, "on_epoch_begin")
        left, state = _steps_left(self.scheduler), self.model.state
        counts_updates = self.step_every == "update"
        needed = self._count_updates(epoch, state.epoch_step) if counts_updates else state.last - epoch
        if left is None or needed <= left:
            return
        unit = f"updates, {self.params['steps']} in each epoch" if counts_updates else "epochs"
        raise ValueError(
            f"{self!r} has {left} of its steps left, but this fit has {needed} more {unit}, and the scheduler raises an error "
            f"after its last step. Add {needed - left} to its total_steps, or pass scheduler='one_cycle' to compile(): it gets "
            "the number of updates from fit()."
        )

    def find_step_every(self, epochs: int, updates: int) -> str | None:
        """Return what the scheduler counts in a fit of so many epochs and updates, None if that is unknown."""
        return {updates: "update", epochs: "epoch"}.get(_length(self.scheduler) or 0)

    def _count_updates(self, epoch: int | None = None, epoch_step: int = 0) -> int:
        """Return the number of updates of the optimizer in this fit, or from an ``epoch`` and a step in it on."""
        state, optimizer = self.model.state, self.model.require_optimizer("fit")
        every = optimizer.update_every[self.member] if self.member and isinstance(optimizer, OptimizerGroup) else 1
        steps = self.params["steps"] or 0
        windows = max(steps * (state.last - (state.first if epoch is None else epoch)) - epoch_step, 0)
        return (state.step + windows) // every - state.step // every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Step after an update."""
        if self.step_every == "update" and self._has_updated:
            self.step()
        self._has_updated = False

    def step(self) -> None:
        """Step the scheduler; warn once if something else has changed a rate that it computes from the start."""
        groups = self.optimizer_in(self.model.require_optimizer("fit")).param_groups
        if self._rates is not None and self._rates not in ([], [group["lr"] for group in groups]) and self.sets_rate:
            self._rates = None  # warn once
            warn(
                f"The learning rate was changed, but {self!r} computes it in each step and undoes the change. Leave out one of "
                "the two."
            )
        self.scheduler.step()
        if self._rates is not None:
            self._rates = [group["lr"] for group in groups if not isinstance(group["lr"], Tensor)]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Step after an epoch."""
        if self.step_every != "epoch":
            return
        if not isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.step()
            return
        logs = logs or {}
        # An epoch without validation has no value: its loss cannot be compared with validation losses.
        uses_validation = "val_loss" in logs or lacks_validation(self.model, logs)
        name = self.monitor or ("val_loss" if uses_validation else "loss")
        if name in logs:
            self.scheduler.step(logs[name])

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ``FileError`` if ``state`` belongs to another kind of scheduler."""
        is_known = isinstance(self.scheduler, TORCH_SCHEDULERS)
        if state and is_known and not set(state["scheduler"]) <= set(vars(self.scheduler)):
            raise FileError(
                f"The file contains the state of another scheduler than {type(self.scheduler).__name__}. Compile the model with "
                "the scheduler that it was saved with, or load only the weights: load_weights()."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler; an empty dict before it exists."""
        return {"scheduler": self.scheduler.state_dict()} if _is_scheduler(self.scheduler) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the scheduler."""
        self.check_state(state)
        if state and _is_scheduler(self.scheduler):
            self.scheduler.load_state_dict(dict(state["scheduler"]))
            torch_private.mark_as_stepped(self.scheduler.optimizer)
            _restore_milestones(self.scheduler)
            self._rates = list(getattr(self.scheduler, "_last_lr", []))

    def __repr__(self) -> str:
        scheduler = self.scheduler.scheduler if isinstance(self.scheduler, CountedScheduler) else self.scheduler
        return f"{type(self).__name__}({type(scheduler).__name__})"


class Schedule(LRScheduler):
    """Schedule by name over all updates of a fit.

    Args:
        name: ``"warmup_cosine"`` rises linearly to the optimizer's learning rate and falls along half a cosine to 0;
            ``"cosine"`` only falls; ``"one_cycle"`` is ``torch.optim.lr_scheduler.OneCycleLR`` with that rate as its maximum.
            ``model.optimizer.lr = ...`` between two fits sets this rate.
        warmup: Share of all updates, from 0 to below 1, in which ``"warmup_cosine"`` rises.

    Raises:
        ValueError: If an argument is invalid; in ``fit``, if the data has no length.

    Examples:
        >>> model.compile("adam", "cross_entropy", scheduler=Schedule("warmup_cosine", warmup=0.2))
    """

    NAMES: ClassVar[dict[str, str]] = {name: name for name in ("warmup_cosine", "cosine", "one_cycle")}

    def __init__(self, name: str, warmup: float = 0.05) -> None:
        is_known = isinstance(name, str) and any(spelling in self.NAMES for spelling in spellings(name))
        if not is_known and (hint := suggest_scheduler(name)):
            raise ValueError(f"Unknown scheduler {name!r}.{hint} The names are {quote_list(self.NAMES)}.")
        self.name = find(
            "scheduler", name, self.NAMES, otherwise="a torch.optim.lr_scheduler or a function that creates one"
        )
        if not 0 <= warmup < 1:
            raise ValueError(
                f"warmup must be a share of all updates, from 0 to below 1, received {warmup!r}. Use warmup=0.05 for the first "
                "5%."
            )
        super().__init__(None, "update")
        self.warmup = 0.0 if self.name == "cosine" else warmup
        # The learning rate of each parameter group, which is the maximum of the schedule.
        self.rates: list[float] = []
        # Those that the schedule has left in the optimizer: others were set by the user.
        self._left_rates: list[float] = []
        self._total = 0
        self._has_warned = False

    @property
    def sets_rate(self) -> bool:
        """Whether each step computes the rate from the start: always."""
        return True

    def bind(self, optimizer: Optimizer | None) -> None:
        """Record the learning rates of the optimizer."""
        optimizer = require_optimizer(optimizer)
        self.rates = self._left_rates = _group_rates(optimizer)
        self.scheduler = None
        self.watch(optimizer)

    def on_train_begin(self, logs: Any = None) -> None:
        """Create the schedule for this fit."""
        super().on_train_begin(logs)
        self._has_warned, self._rates = False, []
        optimizer = self.optimizer_in(self.model.require_optimizer("fit"))
        if not self.params["steps"]:
            raise ValueError(
                f"scheduler={self.name!r} needs the number of updates, but the data has no length. Pass steps_per_epoch to fit()."
            )
        self._total = total = self._count_updates()
        self.rates = self.find_peaks(optimizer)
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
        if self.name == "one_cycle":
            has_momentum = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
            self.scheduler = lr_scheduler.OneCycleLR(optimizer, self.rates, total + 1, cycle_momentum=has_momentum)
        else:
            warmup_steps = round(self.warmup * total)
            factor = functools.partial(compute_warmup_cosine, warmup_steps, total)
            self.scheduler = lr_scheduler.LambdaLR(optimizer, factor)

    def find_peaks(self, optimizer: Optimizer) -> list[float]:
        """Return the maximum of the schedule for each parameter group: what the user has set since the last fit, if anything."""
        left_rates = self._left_rates
        if _is_scheduler(self.scheduler):
            left_rates = _last_rates(self.scheduler.state_dict())
        return self.rates if _group_rates(optimizer) == left_rates else _group_rates(optimizer)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Do nothing: the schedule is as long as the fit."""

    def step(self) -> None:
        """Step the schedule; after its end stay at the last rate, and warn once."""
        if self.scheduler.last_epoch < self._total:
            super().step()
        elif not self._has_warned:
            self._has_warned = True
            warn(
                f"The data has more than the {self.params['steps']} updates per epoch that its length promised, so "
                f"scheduler={self.name!r} has ended and the learning rate stays at its last value. Pass steps_per_epoch to fit()."
            )

    def __repr__(self) -> str:
        return f"scheduler={self.name!r}"

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler and the number of updates in the schedule."""
        state = super().state_dict()
        return {**state, "total": self._total, "rates": self.rates} if state else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state; the schedule ends with the current fit, which may be longer than the saved one."""
        attributes = getattr(self.scheduler, "__dict__", {})
        length = {name: attributes[name] for name in LENGTH_ATTRIBUTES if name in attributes}
        super().load_state_dict(state)
        if state:
            self.rates = list(state.get("rates", self.rates))
            self._left_rates = _last_rates(state["scheduler"])
        if length:
            vars(self.scheduler).update(length)
        steps = self.scheduler.last_epoch if _is_scheduler(self.scheduler) else 0
        if state.get("total", self._total) != self._total and 0 < steps <= self._total:
            # Compute the current rate again: the saved one is that of the shorter schedule.
            self.scheduler.last_epoch -= 1
            self.scheduler.step()
            self._rates = list(self.scheduler.get_last_lr())


def _group_rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _last_rates(state: Mapping[str, Any]) -> list[float]:
    """Return the rates after the last step of a scheduler with this ``state``."""
    return [float(rate) for rate in state["_last_lr"]]


def compute_warmup_cosine(warmup_steps: int, total: int, step: int) -> float:
    """Return the factor of the learning rate at ``step``: linear up to ``warmup_steps``, then half a cosine.

    Args:
        warmup_steps: Number of updates in which the rate rises.
        total: Number of updates in the schedule.
        step: Index of the update, from 0.
    """
    if step < warmup_steps:
        return float((step + 1) / (warmup_steps + 1))
    return float(0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total - warmup_steps, 1))))


class LearningRateScheduler(Callback):
    """Set the learning rate before each epoch.

    With several parameter groups, the function determines the rate of the first one; the others keep their ratio to it.

    Args:
        schedule: Function ``schedule(epoch, lr)`` or ``schedule(epoch)`` that returns the learning rate; epochs count from 0.
        verbose: 1 prints the learning rate.

    Raises:
        TypeError: If ``schedule`` is not callable; in ``fit``, if it does not return a number.

    Examples:
        >>> model.fit(x, y, epochs=3, callbacks=[LearningRateScheduler(lambda epoch, lr: 0.01 * 0.5**epoch)])
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a function schedule(epoch, lr), received {schedule!r}. Use LearningRateScheduler(lambda "
                "epoch, lr: 0.95 * lr)."
            )
        self.schedule, self.verbose = schedule, verbose
        # The last epoch whose learning rate was set: a resumed epoch must not set it again.
        self.applied_epoch: int | None = None
        self._ratios: list[float] = []

    @property
    def sets_rate(self) -> bool:
        """Whether the function ignores the current rate, so that it undoes any other change."""
        return not _takes_two(self.schedule)

    def on_train_begin(self, logs: Any = None) -> None:
        """Reset the state."""
        self.applied_epoch = None
        check_is_only_controller(self)
        rates = _read_rates(self.model)
        self._ratios = [rate / rates[0] if rates[0] else 1.0 for rate in rates]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the learning rate."""
        if epoch == self.applied_epoch:
            return
        self.applied_epoch = epoch
        rate = self.schedule(*((epoch, _read_lr(self.model)) if _takes_two(self.schedule) else (epoch,)))
        if not isinstance(rate, (numbers.Real, Tensor)):
            raise TypeError(
                f"schedule must return the learning rate as a number, received {rate!r} for epoch {epoch}. Return a float, such "
                "as 0.95 * lr."
            )
        # The function may draw a random number, or measure something on its rank.
        rate = self.model.strategy.group.broadcast(float(rate))
        _set_rates(self.model, [rate * ratio for ratio in self._ratios])
        if self.verbose:
            self.print_message(f"Epoch {epoch + 1}: learning rate {_read_lr(self.model):.4g}")

    def state_dict(self) -> dict[str, Any]:
        """Return the last epoch whose learning rate was set."""
        return {"applied": self.applied_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the last epoch whose learning rate was set."""
        self.applied_epoch = state["applied"]


class ReduceLROnPlateau(Monitor):
    """Reduce the learning rate when a value no longer improves.

    Args:
        monitor: Name of the value: ``"loss"``, a metric, or one of these with the prefix ``val_``.
        factor: Factor of the reduction, below 1.
        patience: Number of epochs without an improvement after which the rate is reduced.
        verbose: 1 prints a line for each reduction.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to ask the metric.
        min_delta: Smallest change that counts as an improvement.
        cooldown: Number of epochs after a reduction that do not count, the epoch of the reduction among them, as in Keras.
        min_lr: Lower bound of the learning rate.

    Raises:
        ValueError: If an argument is invalid.

    Examples:
        >>> plateau = ReduceLROnPlateau("val_accuracy", factor=0.5, patience=2)
        >>> model.fit(x, y, epochs=10, validation_split=0.2, callbacks=[plateau])
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
            raise ValueError(
                f"factor must be below 1 to reduce the learning rate, received {factor!r}. Use factor=0.1."
            )
        self.factor, self.min_lr, self.verbose = factor, min_lr, verbose
        self.patience, self.cooldown = non_negative_int("patience", patience), non_negative_int("cooldown", cooldown)
        self.wait = self.cooldown_left = 0

    sets_rate = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the monitored value, and that no other callback undoes a reduction."""
        super().on_train_begin(logs)
        check_is_only_controller(self)

    def reset(self) -> None:
        """Reset the best value and the counts."""
        super().reset()
        self.wait = self.cooldown_left = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count the epochs without an improvement, and reduce the learning rate."""
        if not self.follows_validations():
            self._compare(epoch, logs or {})

    def on_validation_end(self, logs: Any = None) -> None:
        """Count the validations without an improvement, if they follow updates, and reduce the learning rate."""
        if self.follows_validations():
            self._compare(self.model.state.epoch, logs or {})

    def _compare(self, epoch: int, logs: Mapping[str, float]) -> None:
        value = self.read_value(logs)
        if value is None:
            return
        if self.cooldown_left > 0:
            self.cooldown_left, self.wait = self.cooldown_left - 1, 0
        if self.is_better(value):
            self.best, self.wait = value, 0
        elif not self.cooldown_left:
            self.wait += 1
            if self.wait >= self.patience:
                self._reduce(epoch)

    def _reduce(self, epoch: int) -> None:
        rates = _read_rates(self.model)
        if max(rates) <= self.min_lr:
            return
        _set_rates(self.model, [min(rate, max(rate * self.factor, self.min_lr)) for rate in rates])
        self.cooldown_left, self.wait = self.cooldown, 0
        if self.verbose:
            rate = _read_lr(self.model)
            self.print_message(
                f"Epoch {epoch + 1}: {self.monitor} did not improve, learning rate reduced to {rate:.4g}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the counts."""
        return super().state_dict() | {"wait": self.wait, "cooling": self.cooldown_left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the best value and the counts."""
        super().load_state_dict(state)
        self.wait, self.cooldown_left = state["wait"], state["cooling"]


def as_saved(scheduler: Any, callbacks: list[LRScheduler]) -> Any:
    """Return the argument ``scheduler`` of ``compile`` as a file can hold it: a name, or names by optimizer; else an object."""
    names = scheduler.values() if isinstance(scheduler, Mapping) else [scheduler]
    if not all(isinstance(name, str) for name in names):
        return callbacks[0].scheduler
    return dict(scheduler) if isinstance(scheduler, Mapping) else scheduler


def require_optimizer(optimizer: Optimizer | None) -> Optimizer:
    """Return ``optimizer``; raise a ``ValueError`` if it is None."""
    if optimizer is None:
        raise ValueError("scheduler needs an optimizer, received None. Pass one to compile().")
    return optimizer


def _is_scheduler(scheduler: Any) -> bool:
    """Return whether ``scheduler`` is a scheduler, of torch or of another library, and not a function that creates one."""
    if isinstance(scheduler, TORCH_SCHEDULERS):
        return True
    return not isinstance(scheduler, type) and callable(getattr(scheduler, "step", None))


def _check_interface(scheduler: Any) -> None:
    """Raise an error unless ``scheduler`` can be stepped without arguments, saved and restored."""
    name = type(scheduler).__name__
    if not _is_scheduler(scheduler):
        raise TypeError(
            f"The scheduler function must return a scheduler, received {scheduler!r}. "
            f"{OF_THE_EPOCH if isinstance(scheduler, numbers.Number) else 'Return an object with step().'}"
        )
    if not all(callable(getattr(scheduler, method, None)) for method in ("state_dict", "load_state_dict")):
        raise ValueError(
            f"{name} has no state_dict() and load_state_dict(), so a run with it cannot be resumed. Define both; a torch "
            "scheduler such as LambdaLR has them."
        )
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return
    try:
        inspect.signature(scheduler.step).bind()
    except TypeError:
        raise ValueError(
            f"{name}.step{inspect.signature(scheduler.step)} needs arguments, but the loop calls step(). Leave it out of "
            "compile(), set model.scheduler = scheduler so that checkpoints contain it, and step it in a callback: "
            "LambdaCallback(on_epoch_end=lambda epoch, logs: scheduler.step(epoch + 1))."
        ) from None


def _create_scheduler(factory: Any, optimizer: Optimizer) -> Any:
    if not callable(factory):
        raise TypeError(
            "scheduler must be a torch.optim.lr_scheduler or a function that creates one from the optimizer, received "
            f"{factory!r}. Use lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)."
        )
    _check_takes_optimizer(factory)
    try:
        return factory(optimizer)
    except TypeError as error:
        if isinstance(factory, type):
            name = factory.__name__
            raise TypeError(
                f"{name} needs more arguments than the optimizer. Pass scheduler=lambda optimizer: {name}(optimizer, ...). "
                f"{error}"
            ) from None
        if f"'{type(optimizer).__name__}'" in str(error):  # computes with the optimizer as if it were a number
            raise TypeError(f"scheduler failed with the optimizer as its argument: {error}. {OF_THE_EPOCH}") from error
        raise


def _check_takes_optimizer(factory: Any) -> None:
    """Raise a ``TypeError`` if ``factory`` is a function of the epoch."""
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # a built-in function
        return
    if names and names[0] in EPOCH_NAMES:
        raise TypeError(
            f"scheduler gets the optimizer and returns a scheduler, received a function of {names[0]!r}. {OF_THE_EPOCH}"
        )


def check_is_only_controller(callback: Any) -> None:
    """Raise a ``ValueError`` if one of two callbacks that control the learning rate undoes what the other does."""
    controllers = [other for other in callback.model.callbacks.callbacks if hasattr(other, "sets_rate")]
    for other in controllers:
        members = getattr(other, "member", ""), getattr(callback, "member", "")
        are_apart = all(members) and members[0] != members[1]
        if other is not callback and not are_apart and (other.sets_rate or callback.sets_rate):
            absolute, changed = (other, callback) if other.sets_rate else (callback, other)
            raise ValueError(
                f"{_describe(absolute)} and {_describe(changed)} both control the learning rate. {_describe(absolute)} sets it "
                "without regard to its current value, so it would undo the changes of the other. Leave one of them out."
            )


def _describe(controller: Any) -> str:
    return repr(controller) if isinstance(controller, LRScheduler) else type(controller).__name__


def _multiplies(scheduler: Any) -> bool:
    if isinstance(scheduler, lr_scheduler.ChainedScheduler):
        return all(map(_multiplies, scheduler._schedulers))
    return type(scheduler) in MULTIPLYING


def _find_step_every(scheduler: Any) -> str | None:
    """Return what ``scheduler`` counts, None if it may count updates or epochs."""
    if isinstance(scheduler, PER_UPDATE):
        return "update"
    if isinstance(scheduler, CountedScheduler):
        return scheduler.step_every
    return "epoch" if isinstance(scheduler, PER_EPOCH) else None


def _length(scheduler: Any) -> int | None:
    """Return the number of steps of ``scheduler``, None if it has no end."""
    inner = list(getattr(scheduler, "_schedulers", ()))
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        last = _length(inner[-1])
        return None if last is None else scheduler._milestones[-1] + last
    if inner:
        return max((length for length in map(_length, inner) if length is not None), default=None)
    return next((getattr(scheduler, name) for name in STEP_COUNTS if hasattr(scheduler, name)), None)


def _steps_left(scheduler: Any) -> int | None:
    """Return how often ``scheduler`` can still step before torch raises an error, as ``OneCycleLR`` does; None without limit."""
    if isinstance(scheduler, lr_scheduler.OneCycleLR):
        return int(scheduler.total_steps) - scheduler.last_epoch
    inner = list(getattr(scheduler, "_schedulers", ()))
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        last = inner[-1]
        is_limited = isinstance(last, lr_scheduler.OneCycleLR)
        return scheduler._milestones[-1] + int(last.total_steps) - scheduler.last_epoch if is_limited else None
    return min((left for left in map(_steps_left, inner) if left is not None), default=None)


def _step_every_error(scheduler: Any, epochs: int = 0, updates: int = 0) -> ValueError:
    name, length = type(scheduler).__name__, _length(scheduler)
    planned = f", {updates} or {epochs}" if epochs else ""
    detail = (
        "" if length is None else f" Its length, {length}, is neither the number of updates nor of epochs{planned}."
    )
    return ValueError(
        f"{name} may count updates or epochs.{detail} Pass "
        "scheduler=easytorch.callbacks.LRScheduler(..., step_every='update') or step_every='epoch'."
    )


def _restore_milestones(scheduler: Any) -> None:
    """Convert the milestones of MultiStepLR from a dict, as in a file, to a Counter."""
    if isinstance(getattr(scheduler, "milestones", None), dict):
        scheduler.milestones = Counter(scheduler.milestones)
    for inner in getattr(scheduler, "_schedulers", ()):
        _restore_milestones(inner)


def _read_lr(model: Model) -> float:
    return float(model.require_optimizer("fit").param_groups[0]["lr"])


def _read_rates(model: Model) -> list[float]:
    return [float(group["lr"]) for group in model.require_optimizer("fit").param_groups]


def _set_rates(model: Model, rates: list[float]) -> None:
    """Set the learning rate of each parameter group."""
    for group, rate in zip(model.require_optimizer("fit").param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _takes_two(schedule: Callable[..., float]) -> bool:
    try:
        inspect.signature(schedule).bind(0, 0.1)
    except TypeError:
        return False
    return True
