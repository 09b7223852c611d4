"""What surrounds the loop: callbacks told, modes put back, errors explained, and nothing lost if the first step fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch import data, modes
from easytorch.callbacks.callback import CallbackList
from easytorch.explain import explained
from easytorch.state import random_states_kept

if TYPE_CHECKING:
    from easytorch.model import Model


@contextlib.contextmanager
def training(model: Model, callbacks: CallbackList, feed: Any = None, validation: Any = None) -> Iterator[None]:
    """Train inside; if the very first update fails, the model is what it was before."""
    optimizer, begin = model.need_optimizer("fit"), model.state.step
    model.last_fit = {"validation": validation, "training": getattr(feed, "loader", None)}
    model.loss.expect(data.targets_of(getattr(model.last_fit["training"], "dataset", None)))
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    model.stop_training = False
    optimizer.zero_grad()
    with listening(model, callbacks), explained(model.module), modes.training(model.module):
        try:
            callbacks.on_train_begin({})
            _try_out(model, validation)
            yield
        except BaseException as error:
            if model.state.step == begin:
                model.module.load_state_dict(buffers, strict=False)
            optimizer.zero_grad()
            callbacks.on_exception(error)
            raise
        model.last_fit["example"] = getattr(feed, "example", None)
        callbacks.on_train_end(model.history.rows[-1] if model.history.rows else {})


@contextlib.contextmanager
def measuring(model: Model) -> Iterator[None]:
    """Measure inside, apart from what the training epoch measures, in eval mode and without gradients."""
    outer, model.metrics = model.metrics, model.metrics.fresh()
    try:
        with modes.evaluating(model.module), torch.no_grad():
            yield
    finally:
        model.metrics = outer


@contextlib.contextmanager
def listening(model: Model, callbacks: CallbackList) -> Iterator[None]:
    """Tell ``callbacks`` inside, nobody else."""
    outer, model.callbacks = model.callbacks, callbacks
    try:
        yield
    finally:
        model.callbacks = outer


def _try_out(model: Model, loader: Any) -> None:
    """Take one step on the validation data, so that what is wrong with it is told before training, not after."""
    batch = data.first_batch(loader)
    if batch is not None:
        with measuring(model), random_states_kept():
            model.strategy.run(model.test_step, batch)
