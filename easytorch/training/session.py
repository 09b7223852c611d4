"""Start and end of fit, evaluate and predict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch import data, optimizers
from easytorch._utils import train_mode
from easytorch._utils.registry import find
from easytorch._utils.rng import get_rng_state, preserve_rng_state, set_rng_state
from easytorch.callbacks.advice import WarnOnEndlessData, WarnOnNonFiniteLoss
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.data.loader import first_batch
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.training.signals import Interruption, SignalHandler, StopConsensus
from easytorch.training.state import TrainState

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.model import Model


@contextlib.contextmanager
def fit_session(
    model: Model,
    callbacks: list[Callback],
    state: TrainState,
    feed: EpochIterator,
    validation: Any,
    verbose: Any,
    on_interrupt: str,
) -> Iterator[None]:
    """Run the epochs of ``fit`` inside, from ``state`` on, and end them in order, however they end."""
    on_interrupt = find("on_interrupt", on_interrupt, {"return": "return", "raise": "raise"})
    optimizers.check_current(model._require_optimizer("fit"), model.module)
    interrupts, begin, group = SignalHandler(), state.step, model.strategy.group
    params = {"epochs": state.last, "steps": len(feed) or None, "verbose": verbose}
    notices = [WarnOnNonFiniteLoss()] if len(feed) else [WarnOnNonFiniteLoss(), WarnOnEndlessData()]
    every = [*callbacks, *notices, StopConsensus(), interrupts]
    listeners = CallbackList(every, model, params | {"validated": validation is not None})
    model.history.params, model.history.interrupted = params, False
    model.feed, feed.earlier, feed.timer = feed, state.first, model.strategy.timer
    # An update of the user's own may ask for anything of its batches, so that it must have one.
    feed.needs_batch_every_step, model.metrics.group = (
        model.strategy.needs_batch_every_step or model.overrides("update"),
        group,
    )
    with update_session(model, listeners, state), interrupts:
        error: BaseException | None = None
        try:
            model.metrics.reset()
            listeners.on_train_begin({})
            listeners.on_restore()
            _check_validation_data(model, validation)
            model.loss.prepare(data.all_targets(feed.loader))
            yield
            if group.world_size > 1:
                set_rng_state(group.broadcast(get_rng_state()))  # after training all go on alike
                group.broadcast_tensors(list(model.module.buffers()))
        except Interruption:
            model.history.interrupted = True
            interrupts.caught = int(group.all_reduce_max(interrupts.caught or 0))  # of one process, or of all
            listeners.on_interrupt()
        except BaseException as caught:
            error = caught
            raise
        finally:
            if error is None or model.state.step > begin:
                model.last_fit = {"validation": validation, "training": feed.loader, "example": feed.example}
            model.feed = None
            feed.close()
            rows = model.history.rows
            listeners.finish(error, rows[-1] if rows else {})
    interrupts.settle(on_interrupt)


@contextlib.contextmanager
def update_session(model: Model, callbacks: CallbackList, state: TrainState | None = None) -> Iterator[None]:
    """Update weights inside, from ``state`` on; if the very first update fails, the model is what it was before."""
    optimizer, before = model._require_optimizer("fit"), model.state
    model.state = state or before
    begin = model.state.step
    buffers = [(buffer, buffer.clone()) for buffer in model.module.buffers()]
    model.stop_training = False
    optimizer.zero_grad()
    model.strategy.begin()
    with active_callbacks(model, callbacks), translate_errors(model.module), train_mode.in_train_mode(model.module):
        try:
            yield
        except BaseException:
            if model.state.step == begin:
                model.state = before
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
            optimizer.zero_grad()
            raise


@contextlib.contextmanager
def evaluation_session(model: Model) -> Iterator[None]:
    """Measure inside, apart from what the training epoch measures, in eval mode and without gradients."""
    outer, model.metrics = model.metrics, model.metrics.new_copy()
    model.strategy.timer.mark("rest")
    try:
        with train_mode.in_eval_mode(model.module), torch.no_grad():
            yield
    finally:
        model.metrics = outer
        model.strategy.timer.mark("validation")


@contextlib.contextmanager
def reporting_errors(model: Model, callbacks: CallbackList) -> Iterator[None]:
    """Evaluate or predict inside; callbacks are told of an error, which is explained."""
    with active_callbacks(model, callbacks), translate_errors(model.module):
        try:
            yield
        except BaseException as error:
            callbacks.on_exception(error)
            raise


@contextlib.contextmanager
def active_callbacks(model: Model, callbacks: CallbackList) -> Iterator[None]:
    """Tell ``callbacks`` inside, nobody else."""
    outer, model.callbacks = model.callbacks, callbacks
    try:
        yield
    finally:
        model.callbacks = outer


def _check_validation_data(model: Model, loader: Any) -> None:
    """Take one step on the validation data, so that what is wrong with it is told before training, not after."""
    batch = first_batch(loader)
    model.loss.prepare(data.all_targets(loader))
    if batch is not None:
        try:
            with translate_errors(model.module), evaluation_session(model), preserve_rng_state():
                model.strategy.run(model.test_step, batch)
        except (ValueError, TypeError, IndexError) as error:
            kind = next(kind for kind in (ValueError, TypeError, IndexError) if isinstance(error, kind))
            raise kind(
                f"On the validation data, which is tried first: {error}"
            ) from error  # a subclass may want other arguments
