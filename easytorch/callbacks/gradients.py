"""Statistics of gradients, updates and activations by layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.integers import boolean
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.callbacks.every import Every, as_every

# Modules whose outputs are exactly zero for a unit that is not active.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish)
# The start of the names of values that belong to a layer.
NAMES_BY_LAYER = ("grad_norm/", "update_ratio/", "dead/", "non_finite/")


class GradientStatistics(Callback):
    """Measure gradients, updates and dead units of each layer in every n-th update.

    - ``grad_norm``: the norm of the gradient of all batches of the update, of all ranks, after unscaling under fp16 and before
      clipping.
    - ``update_ratio``: the norm of the change of the parameters, divided by their norm before the update. About 0.001 is usual.
    - ``dead``: the share of units of ``nn.ReLU``, ``nn.ReLU6`` and ``nn.Hardswish`` modules that are zero for all samples of
      the update. A unit is a channel of images, and a feature otherwise.
    - ``non_finite``: the number of gradients that are NaN or infinite.

    Each is a value of the whole module, and ``grad_norm/<layer>`` is that of a layer. ``non_finite/<layer>`` appears only if it
    is not 0. Loggers get each measurement in ``on_log(values, step)``. At the end of an epoch the logs get the mean of its
    measurements, and the sum for ``non_finite``; the printed lines leave out the values of layers.

    Updates that are not measured do not wait for the device. A measured update copies the parameters.

    Args:
        every: Measure every n-th update, counted over all epochs: an integer or ``Every(updates=...)``.
        layers: Whether to measure each layer, besides the whole module.

    Raises:
        ValueError: If ``every`` is not a number of updates.

    Examples:
        >>> model.fit(loader, 5, callbacks=[GradientStatistics(every=100), TensorBoard("logs")])
        >>> norms = [name for name in model.history if name.startswith("grad_norm")]
    """

    # Before the loggers, which write what it adds to the logs.
    priority = -1

    def __init__(self, every: int | Every = 100, *, layers: bool = True) -> None:
        self.every, self.layers = as_every("every", as_every("every", every), ("updates",)), boolean("layers", layers)
        self._sums: dict[str, list[float]] = {}  # sum and number of the measurements of this epoch
        self._handles: list[Any] = []
        self._is_due = False
        self._active: dict[str, Tensor] = {}
        self._gradients: dict[str, list[Tensor]] = {}
        self._weights: dict[str, Tensor] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the activations."""
        self._sums = {}
        named = [(name or "module", layer) for name, layer in self.model.module.named_modules()]
        self._activations = {name: layer for name, layer in named if isinstance(layer, ACTIVATIONS)}
        # Of [N, T, F] the units are the last dimension, unless it is the length of a signal.
        self._has_signals = any(isinstance(layer, nn.Conv1d) for _, layer in named)
        if self._activations and self.model.strategy.jit_compile:
            self._activations = {}
            warn(
                "GradientStatistics does not measure dead units, because torch.compile ignores hooks of layers. Use "
                "jit_compile=False for them."
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Observe the activations, if the update is measured."""
        self._is_due = self.every.is_due_after_update(self.model.state.step + 1, 0.0)
        if self._is_due:
            self._handles = [
                layer.register_forward_hook(functools.partial(self._observe, name))
                for name, layer in self._activations.items()
            ]

    def _observe(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        """Record which units are not zero for a sample of a batch."""
        if not isinstance(output, Tensor) or output.ndim < 2 or self.model.metrics.window.is_padding:
            return
        axis = output.ndim - 1 if output.ndim == 3 and not self._has_signals else 1
        active = (output.detach() != 0).transpose(0, axis).flatten(1).any(1)
        previous = self._active.get(name)
        self._active[name] = active if previous is None or previous.shape != active.shape else previous | active

    def on_before_optimizer_step(self) -> None:
        """Measure the gradients, and copy the parameters."""
        if not self._is_due:
            return
        for name, parameter in self.model.module.named_parameters():
            if parameter.grad is None:
                continue
            gradient = _to_local(parameter.grad.detach())
            self._gradients[name] = [_squared_norm(gradient), (~gradient.isfinite()).sum()]
            self._weights.setdefault(name, _to_local(parameter.detach()).clone())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Add the measurement of this update, and pass it to the loggers."""
        if not self._is_due:
            return
        values = self._measure_parameters() | self._measure_activations()
        self._release()
        for name, value in values.items():
            total = self._sums.setdefault(name, [0.0, 0])
            total[0], total[1] = total[0] + value, total[1] + 1
        self.model.callbacks.on_log(values, self.model.state.step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the means of the epoch to the logs."""
        for name, (total, count) in self._sums.items():
            logs[name] = total if name.startswith("non_finite") else total / count
        self._sums = {}

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the hooks."""
        self._release()

    def _release(self) -> None:
        """Remove the hooks of the update, and what it has recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._is_due = [], False
        self._active, self._gradients, self._weights = {}, {}, {}

    def _measure_parameters(self) -> dict[str, float]:
        """Return the norms, ratios and counts of non-finite gradients of the module and of each layer."""
        parameters = dict(self.model.module.named_parameters())
        rows = {
            name: [*self._gradients[name], _squared_norm(weight), _squared_norm(_to_local(parameters[name]) - weight)]
            for name, weight in self._weights.items()
        }
        values: dict[str, float] = {}
        sums: dict[str, list[float]] = {}
        for name, row in zip(rows, self._sum_shards(rows, parameters), strict=True):
            layer = name.rpartition(".")[0] or name
            for key in ("", f"/{layer}") if self.layers else ("",):
                sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * 4), row, strict=True)]
        for key, (gradient, non_finite, weight, change) in sums.items():
            values[f"grad_norm{key}"] = math.sqrt(gradient)
            values[f"update_ratio{key}"] = math.sqrt(change / weight) if weight else math.nan
            if non_finite or not key:
                values[f"non_finite{key}"] = non_finite
        return values

    def _sum_shards(self, rows: Mapping[str, list[Tensor]], parameters: Mapping[str, Any]) -> list[list[float]]:
        """Return ``rows`` as floats; of parameters that are sharded, the sums over all ranks."""
        if not rows:
            return []
        group = self.model.strategy.group
        is_sharded = [hasattr(parameters[name], "to_local") for name in rows]
        table = torch.stack([torch.stack([value.to(_widest(value)) for value in row]) for row in rows.values()])
        if any(is_sharded):
            # The other parameters are the same on all ranks.
            counts = torch.tensor([[1.0 if sharded or group.is_main else 0.0] for sharded in is_sharded])
            counts = counts.to(table.device, table.dtype)
            table = group.all_reduce_sum_on_device(torch.where(counts == 0, 0.0, table), table.device)
        rows_as_floats: list[list[float]] = table.tolist()
        return rows_as_floats

    def _measure_activations(self) -> dict[str, float]:
        """Return the share of dead units of the module and of each activation, over the samples of all ranks."""
        group = self.model.strategy.group
        ranks = group.gather({name: len(active) for name, active in self._active.items()})
        sizes = {name: size for rank in ranks for name, size in rank.items()}
        values, dead, total = dict[str, float](), 0.0, 0
        for name in sorted(sizes):
            if any(rank.get(name, sizes[name]) != sizes[name] for rank in ranks):
                continue  # the ranks have units that cannot be compared
            active = self._active.get(name, torch.zeros(sizes[name], dtype=torch.bool))
            counts = group.all_reduce_sum_on_device(active.to(_widest(active)), self.model.device)
            count = int((torch.as_tensor(counts) == 0).sum())
            dead, total = dead + count, total + sizes[name]
            if self.layers:
                values[f"dead/{name}"] = count / sizes[name]
        return {"dead": dead / total, **values} if total else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements of the epoch so far."""
        return {"sums": {name: list(total) for name, total in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the measurements of the epoch."""
        self._sums = {name: list(total) for name, total in state["sums"].items()}


def _squared_norm(tensor: Tensor) -> Tensor:
    """Return the sum of the squares of ``tensor``, in the widest float of its device."""
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=_widest(tensor))
    return norm.square()


def _widest(tensor: Tensor) -> torch.dtype:
    # MPS has no float64.
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _to_local(tensor: Any) -> Any:
    """Return this rank's shard of a sharded tensor; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
