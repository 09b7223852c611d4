"""Updates of optimizers that evaluate the loss several times, such as LBFGS and SAM."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easytorch._utils import torch_private
from easytorch._utils.rng import (
    get_host_rng_state,
    get_torch_rng_state,
    set_host_rng_state,
    set_torch_rng_state,
)
from easytorch._utils.train_mode import snapshot_buffers
from easytorch.optimizer_group import OptimizerGroup, members_of
from easytorch.optimizers import SAM, needs_closure, starts_with_closure

if TYPE_CHECKING:
    from easytorch.model import Model
    from easytorch.strategies.base import Strategy


def check_closure(model: Model, optimizer: torch.optim.Optimizer | None, strategy: Strategy) -> None:
    """Raise a ``ValueError`` if ``optimizer`` needs a closure that ``strategy`` cannot run correctly.

    A custom ``update`` may use the optimizer in any way.
    """
    if optimizer is None or model.overrides("update"):
        return
    if isinstance(optimizer, OptimizerGroup):
        name = next((name for name, member in members_of(optimizer).items() if needs_closure(member)), None)
        if name is not None:
            raise ValueError(
                f"The optimizer {name!r}, {type(optimizer[name]).__name__}, evaluates the loss several times in each update, "
                "which works for a single optimizer only. Pass another optimizer for it, or this one for all parameters."
            )
    if not needs_closure(optimizer):
        return
    title = f"{type(optimizer).__name__} evaluates the loss several times in each update"
    if strategy.scales_loss:
        raise ValueError(
            f"{title}, and the loss scale of precision='fp16' is set once for each update. Pass precision='bf16' or 'fp32'."
        )
    if strategy.shards_weights and not isinstance(optimizer, SAM):
        raise ValueError(
            f"{title}, and strategy='fsdp' gives it only this rank's shard of the weights and gradients. Pass strategy='ddp'."
        )


@contextlib.contextmanager
def repeated_evaluations(model: Model) -> Iterator[None]:
    """Let ``strategy.step`` pass a closure to the optimizer inside, if the optimizer needs one and ``update`` is not custom."""
    strategy, outer, optimizer = model.strategy, model.strategy.evaluations, model.optimizer
    if optimizer is not None and needs_closure(optimizer):
        torch_private.complete_copy(optimizer)
        if outer is None and not model.overrides("update"):
            strategy.evaluations = Evaluations(model)
    try:
        yield
    finally:
        strategy.evaluations = outer


class Evaluations:
    """Runs the step of an optimizer with a closure that may be called any number of times.

    Each evaluation is the same function of the weights. It starts with the random states and the buffers of the first one, so
    that dropout masks are equal and a line search is consistent. An update changes the buffers, such as the statistics of
    BatchNorm, as one evaluation does. The metrics measure the first evaluation.

    Args:
        model: The model that is trained.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def start(self, closure: Callable[[], None]) -> None:
        """Compute the gradients of an update by ``closure`` for the first time."""
        self._closure = closure
        self._random = get_host_rng_state(), get_torch_rng_state(self.model.device)
        self._restore_buffers = snapshot_buffers(self.model.module, self.model.loss.modules)
        self._first_loss = self.model.strategy.total_loss(closure)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters; change nothing if a callback has deleted the gradients of the first evaluation."""
        if all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"]):
            return
        # LBFGS starts with a call of its closure. Other optimizers may use the gradients, and call it at other weights.
        self._known_loss = self._first_loss if starts_with_closure(optimizer) else None
        step: Any = torch_private.find_step(optimizer)
        step(self.evaluate)

    def evaluate(self) -> Tensor:
        """Return the loss of the window at the current weights, over all ranks, and replace the gradients by its gradients."""
        loss, self._known_loss = self._known_loss, None
        return self._repeat() if loss is None else loss

    def _repeat(self) -> Tensor:
        """Evaluate the loss once more, and change nothing but the gradients."""
        model, strategy = self.model, self.model.strategy
        restore_buffers = snapshot_buffers(model.module, model.loss.modules)
        self._restore_buffers()
        host_state, device_states = self._random
        set_torch_rng_state(device_states, model.device)
        set_host_rng_state(host_state)
        assert model.optimizer is not None
        strategy.zero_grad(model.optimizer)
        strategy.repeat_backward()
        watched, strategy.losses = strategy.losses, type(strategy.losses)(maxlen=0)
        try:
            with torch.enable_grad(), model.metrics.paused():
                return strategy.total_loss(self._closure)
        finally:
            strategy.losses = watched
            restore_buffers()
