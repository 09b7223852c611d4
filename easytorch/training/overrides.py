"""Methods of subclasses of Model, adapted to what the loop expects of them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe
from easytorch.data.batch import Batch, Window
from easytorch.optimizer_group import OptimizerGroup

if TYPE_CHECKING:
    from easytorch.model import Model

STEP_IN_STEP = (
    "train_step called optimizer.step(), and fit() calls it for the loss that train_step returns: the weights would be updated "
    "twice. Leave backward(), optimizer.step() and zero_grad() out of train_step, or override update(window)."
)


def adapt_overrides(cls: type) -> None:
    """Wrap the methods that ``cls``, a subclass of ``Model``, defines: ``unpack`` and ``train_step``."""
    for name, wrap in (("unpack", _as_batch), ("train_step", without_leaks)):
        method = vars(cls).get(name)
        if inspect.isfunction(method):
            setattr(cls, name, wrap(method))


def _as_batch(unpack: Callable[..., Any]) -> Callable[..., Batch]:
    """Return ``unpack``, whose result may be any tuple, as a method that returns a ``Batch``."""

    @functools.wraps(unpack)
    def unpack_as_batch(self: Model, batch: Any) -> Batch:
        parts = unpack(self, batch)
        if isinstance(parts, Batch):
            return parts
        # A tensor could be split into its rows.
        if not isinstance(parts, (tuple, list)) or not 1 <= len(parts) <= len(Batch._fields):
            raise TypeError(
                f"{type(self).__name__}.unpack must return (x, y), (x, y, sample_weight) or easytorch.Batch(x), received "
                f"{describe(parts)}. Write return x, y. Put several inputs into one tuple: return (x1, x2), y."
            )
        return Batch(*parts)

    return unpack_as_batch


def without_leaks(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``train_step`` as a method that leaves gradients and weights of the optimizer as they are.

    The gradients of earlier batches of a window stay, those of the step are deleted; ``WarnOnLeakedGradients`` reports them. A
    custom ``update`` may use the gradients of its steps in any way.
    """

    @functools.wraps(train_step)
    def step_without_leaks(self: Model, batch: Any) -> Any:
        if self.optimizer is None or not torch.is_grad_enabled() or not is_internal(type(self).update):
            return train_step(self, batch)
        with self.strategy.isolated_step() as others:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            parameters.extend(others)
            gradients = [parameter.grad for parameter in parameters]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = None
            try:
                with _refused_step(self.optimizer):
                    outputs = train_step(self, batch)
                has_leaked = any(parameter.grad is not None for parameter in parameters)
            finally:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if parameter.grad is not gradient:
                        parameter.grad = gradient
        self.callbacks.has_leaked |= has_leaked
        return outputs

    return step_without_leaks


class _refused_step:  # noqa: N801  # a context manager, faster than a generator
    """Raise a ``RuntimeError`` if ``optimizer.step``, or that of a member of a group, is called inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.attributes = [vars(optimizer)]
        if isinstance(optimizer, OptimizerGroup):
            self.attributes += map(vars, optimizer.members.values())
        self.steps: list[Any] = []

    def __enter__(self) -> None:
        for attributes in self.attributes:
            # A scheduler of torch replaces the method too.
            self.steps.append(attributes.get("step"))
            attributes["step"] = _refuse_step

    def __exit__(self, *_: object) -> None:
        for attributes, step in zip(self.attributes, self.steps, strict=True):
            if step is None:
                del attributes["step"]
            else:
                attributes["step"] = step


def _refuse_step(*_: Any, **__: Any) -> None:
    raise RuntimeError(STEP_IN_STEP)


@contextlib.contextmanager
def measured_once(model: Model) -> Iterator[None]:
    """Measure each batch of an update once inside, by its first run: a custom ``update`` may run a step several times.

    LBFGS and SAM run a step at different weights; the first run has the weights from before the update.
    """
    strategy: Any = model.strategy
    # A callback of a fit may call train_on_batch.
    if not model.overrides("update") or isinstance(strategy.run, MeasuringOnce):
        yield
        return
    strategy.run = MeasuringOnce(model, strategy.run)
    try:
        yield
    finally:
        del strategy.run


class MeasuringOnce:
    """``Strategy.run`` that lets a step measure each batch of a window once.

    Args:
        model: The model that is trained.
        run: The method of its strategy.
    """

    def __init__(self, model: Model, run: Callable[..., Any]) -> None:
        self.model, self.run = model, run
        self._window = Window()
        # The batches are held, so that no other object gets their identity.
        self._runs: list[tuple[Any, Any]] = []

    def __call__(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``step(batch)``, measured if it is the first run of ``step`` on ``batch`` in this window."""
        metrics = self.model.metrics
        if not torch.is_grad_enabled():
            return self.run(step, batch)
        if metrics.window is not self._window:
            self._window, self._runs = metrics.window, []
        if any(batch is other and step == other_step for other_step, other in self._runs):
            with metrics.paused():
                return self.run(step, batch)
        self._runs.append((step, batch))
        return self.run(step, batch)
