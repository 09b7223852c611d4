"""Best epoch of a fit, for the line at its end."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from easytorch.callbacks.checkpoint import ModelCheckpoint
from easytorch.callbacks.early_stopping import EarlyStopping, Monitor
from easytorch.data.data_sets import by_name

if TYPE_CHECKING:
    from easytorch.model import Model


class Best(NamedTuple):
    """The best value of a fit."""

    name: str
    value: float
    epoch: int


def find_best(model: Model, epochs: Iterable[int], rows: Iterable[Mapping[str, Any]]) -> Best | None:
    """Return the best value of the monitored quantity, or else of a loss; None if there is none.

    The loss is that of the validation data, of the first set if there are several, and otherwise of the training data.

    Args:
        model: The model, whose callbacks determine the quantity.
        epochs: The index of each epoch.
        rows: The values of each epoch.
    """
    table = list(zip(epochs, rows, strict=True))
    for name, mode in _list_quantities(model):
        rows_by_epoch = table
        if table and model.recorded_history.follows_updates(name):
            in_fit = (row for row in model.recorded_history.validations if row["epoch"] >= table[0][0])
            rows_by_epoch = [(int(row["epoch"]), row) for row in in_fit]
        values = [Best(name, float(row[name]), epoch) for epoch, row in rows_by_epoch if _is_number(row.get(name))]
        if values:
            return (min if mode == "min" else max)(values, key=lambda best: best.value)
    return None


def describe_restored(model: Model, best: Best | None) -> str:
    """Return that ``EarlyStopping`` has restored, or is about to restore, the weights of an epoch; else an empty string."""
    epochs = [
        callback.best_epoch
        for callback in model.callbacks.callbacks
        if isinstance(callback, EarlyStopping) and callback.restore_best_weights and callback.best_epoch is not None
    ]
    if not epochs:
        return ""
    is_best = best is not None and best.epoch == epochs[-1]
    return ", weights restored" if is_best else f"  weights of epoch {epochs[-1] + 1} restored"


def _list_quantities(model: Model) -> list[tuple[str, str]]:
    """Return names and directions: what stops training, selects files, or is monitored otherwise, and then the losses."""
    monitors = [callback for callback in model.callbacks.callbacks if isinstance(callback, Monitor)]
    monitors = [callback for callback in monitors if not isinstance(callback, ModelCheckpoint) or callback.compares]
    monitors.sort(
        key=lambda callback: (not isinstance(callback, EarlyStopping), not isinstance(callback, ModelCheckpoint))
    )
    sets = by_name(model.last_fit.get("validation"))
    losses = [*(f"val_{name}_loss" for name in sets if name), "val_loss", "loss"]
    return [*((callback.monitor, callback.direction) for callback in monitors), *((name, "min") for name in losses)]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not math.isnan(value)
