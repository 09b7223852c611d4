"""State after the last finished update, to which a run that fails returns before its checkpoint is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils import torch_private
from easytorch._utils.internal import is_internal
from easytorch._utils.rng import (
    get_generator_states,
    get_host_rng_state,
    set_generator_states,
    set_host_rng_state,
)
from easytorch.callbacks.base import HOOKS, Callback, has_hook
from easytorch.optimizer_group import OptimizerGroup
from easytorch.strategies.base import Strategy

if TYPE_CHECKING:
    from easytorch.model import Model

# Hooks that a failed update has not reached.
HOOKS_AFTER_AN_UPDATE = {
    "on_train_begin", "on_train_batch_end", "on_validation_end", "on_epoch_end", "on_train_end", "on_exception",
}  # fmt: skip
# Buffers with more values are not copied in each update.
MAX_VALUES = 2**22


class LastUpdate:
    """What an update changes before the optimizer steps: random states, buffers, measurements and the position in the data.

    Recording them takes some microseconds per update. Weights and optimizer change only at the end of an update, so that they
    still have the values after the last one. What a step or a hook of the user may have changed since then is unknown, so there
    is no return if they keep a state.
    """

    def __init__(self) -> None:
        self._place: tuple[int, ...] | None = None  # epoch and update, and the update of the last validation
        self._generators: dict[str, Any] | None = None

    def record(self, model: Model) -> None:
        """Record the state of a run that has just finished an update, or an epoch."""
        train_data = model.train_data
        buffers = list(model.strategy.buffers())
        is_small = sum(buffer.numel() for buffer in buffers) <= MAX_VALUES
        if train_data is None or not is_small or not _can_return(model):
            self._place = None
            return
        if self._generators is None:
            self._generators = train_data.sources.find_generators()
        self._place = _get_place(model)
        self._position = train_data.get_position()
        self._random = get_host_rng_state(), _get_device_state(model.device)
        self._generator_states = get_generator_states(self._generators)
        self._metrics = model.metrics.snapshot()
        self._versions, self._settings = _get_versions(model), _get_settings(model)
        with torch.no_grad():
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self, model: Model, error: BaseException) -> bool:
        """Return to the recorded state after ``error``; return False if that is not possible."""
        is_last = self._place == _get_place(model)
        if not is_last or model.train_data is None or not isinstance(error, Exception) or _stopped_in_step(error):
            return False
        if self._may_have_changed(model):
            return False
        if not model.train_data.set_position(self._position):
            return False
        model.metrics.load_state_dict(self._metrics)
        host, device = self._random
        set_host_rng_state(host)
        if device is not None:
            torch.get_device_module(model.device).set_rng_state(device, model.device)
        set_generator_states(self._generators or {}, self._generator_states)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        return True

    def _may_have_changed(self, model: Model) -> bool:
        """Return whether the user's code may have changed more than is recorded."""
        # An average of the weights is loaded into the module while it is evaluated, and the weights are loaded again.
        has_average = any(hasattr(callback, "averaged") for callback in model.callbacks.callbacks)
        has_other_weights = not has_average and self._versions != _get_versions(model)
        return (
            has_other_weights
            or self._settings != _get_settings(model)
            or any(map(_keeps_state, model.callbacks.callbacks))
            or model.attribute_state.has_changed(model.callbacks.callbacks)
        )


def _get_place(model: Model) -> tuple[int, ...]:
    return model.state.epoch, model.state.step, model.recorded_history.last_validated_update()


def _get_versions(model: Model) -> list[int | None]:
    """Return a number for each parameter that differs when it was changed in place."""
    return [torch_private.version(parameter) for parameter in model.module.parameters()]


def _get_settings(model: Model) -> list[dict[str, Any]]:
    """Return the settings of the optimizer's groups; of a tensor, its number of changes."""
    return [
        {
            name: torch_private.version(value) if isinstance(value, torch.Tensor) else value
            for name, value in group.items()
            if name != "params"
        }
        for group in model.require_optimizer("fit").param_groups
    ]


def _keeps_state(callback: Callback) -> bool:
    """Return whether ``callback`` is one of the user that saves itself, and may change before an update has ended."""
    kind = type(callback)
    is_own = not is_internal(kind) and kind.state_dict is not Callback.state_dict
    return is_own and any(has_hook(callback, hook) for hook in HOOKS if hook not in HOOKS_AFTER_AN_UPDATE)


def _can_return(model: Model) -> bool:
    """Return whether weights change only at the end of an update: not if the user steps optimizers, or each has a step."""
    if isinstance(model.optimizer, OptimizerGroup) and model.optimizer.steps:
        return False
    is_alone = model.strategy.group.world_size == 1
    return is_alone and not model.overrides("update") and not model.attribute_state.has_optimizers()


def _stopped_in_step(error: BaseException) -> bool:
    """Return whether the optimizer was changing the weights when ``error`` was raised."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code is Strategy.step.__code__:
            return True
        traceback = traceback.tb_next
    return False


def _get_device_state(device: torch.device) -> Any:
    return None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
