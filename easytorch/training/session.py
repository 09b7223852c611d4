"""Start and end of fit, evaluate and predict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils import train_mode
from easytorch._utils.internal import is_internal
from easytorch._utils.registry import find
from easytorch._utils.rng import get_rng_state, preserve_generators, preserve_rng_state, set_rng_state
from easytorch.callbacks.advice import WarnOnEndlessData, WarnOnNonFiniteLoss, WarnOnUntrainedParameters
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.data.batch import Window
from easytorch.data.loader import first_batch
from easytorch.data.splits import all_targets
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.optimizers import check_optimizer_is_current
from easytorch.training.signals import Interruption, SignalHandler, StopConsensus
from easytorch.training.state import TrainState

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.model import Model


@contextlib.contextmanager
def fit_session(
    model: Model,
    train_data: EpochIterator,
    val_data: Any,
    *,
    callbacks: list[Callback],
    state: TrainState,
    verbose: Any,
    on_interrupt: str,
) -> Iterator[None]:
    """Run the epochs of a fit inside, with everything that happens before and after them.

    On entry, in this order: signal handlers are installed, ``on_train_begin`` is called, a stopped run is restored, and one
    validation batch is tried. On exit, for whatever reason: ``on_train_end`` is called, handlers and modes are restored, and
    workers are shut down.
    If the first update fails, the model is restored as it was before.
    """
    on_interrupt = find("on_interrupt", on_interrupt, {"return": "return", "raise": "raise"})
    check_optimizer_is_current(model.require_optimizer("fit"), model.module)
    signals, first_step = SignalHandler(), state.step
    params = {"epochs": state.last, "steps": len(train_data) or None, "verbose": verbose}
    model.history.params, model.history.interrupted = params, False
    active = _list_callbacks(model, [*callbacks, signals], params | {"validated": val_data is not None})
    train_data.timer, train_data.first_epoch = model.strategy.timer, state.first
    own_callbacks = [callback for callback in callbacks if not is_internal(type(callback))]
    train_data.sources.others = {"model": model, "callbacks": own_callbacks}
    # A custom update may use its batches in any way, so every rank must have one.
    train_data.needs_batch_every_step = model.strategy.needs_batch_every_step or model.overrides("update")
    model.train_data = train_data
    with update_session(model, active, state), signals:
        error: BaseException | None = None
        try:
            model.metrics.reset()
            active.on_train_begin({})
            active.on_restore()
            _check_validation_data(model, val_data)
            with _prepared_loss(model, train_data.loader):
                yield
            _synchronize_ranks(model)
        except Interruption:
            model.history.interrupted = True
            signals.signal = int(model.strategy.group.all_reduce_max(signals.signal or 0))
            active.on_interrupt()
        except BaseException as caught:
            error = caught
            raise
        finally:
            if error is None or model.state.step > first_step:
                loader = train_data.loader
                model.last_fit = {"validation": val_data, "training": loader, "example": train_data.example}
            model.train_data, model.metrics.window = None, Window()
            train_data.close()
            active.finish(error, model.history.rows[-1] if model.history.rows else {})
    signals.exit_or_return(on_interrupt)


@contextlib.contextmanager
def _prepared_loss(model: Model, loader: Any) -> Iterator[None]:
    """Let the loss check the first batch of ``loader`` inside, and use what is known of its targets."""
    model.loss.prepare(all_targets(loader))
    with model.loss.knowing(_known_targets(model, loader)):
        yield


def _list_callbacks(model: Model, callbacks: list[Callback], params: dict[str, Any]) -> CallbackList:
    """Return the callbacks of a fit, with those that every fit has."""
    advice: list[Callback] = [WarnOnNonFiniteLoss(), WarnOnUntrainedParameters()]
    if not params["steps"]:
        advice.append(WarnOnEndlessData())
    consensus = [StopConsensus()] if model.strategy.group.world_size > 1 else []
    return CallbackList([*callbacks, *advice, *consensus], model, params)


@contextlib.contextmanager
def update_session(model: Model, callbacks: CallbackList, state: TrainState | None = None) -> Iterator[None]:
    """Update weights inside, starting from ``state``; if the first update fails, restore the model."""
    optimizer, previous, stops = model.require_optimizer("fit"), model.state, model.stop_training
    model.state = state or previous
    first_step = model.state.step
    restore_buffers = train_mode.snapshot_buffers(model.module)
    model.stop_training = False
    model.strategy.start(optimizer)
    with active_callbacks(model, callbacks), translate_errors(model.module), train_mode.in_train_mode(model.module):
        try:
            yield
        except BaseException:
            if model.state.step == first_step:
                model.state = previous
                restore_buffers()
            optimizer.zero_grad()
            raise
    if state is None:  # one batch, perhaps in a callback of a fit that is to stop
        model.stop_training = stops


@contextlib.contextmanager
def separate_metrics(model: Model) -> Iterator[None]:
    """Measure inside with metrics separate from those of the training epoch."""
    training_metrics, model.metrics = model.metrics, model.metrics.new_copy()
    try:
        yield
    finally:
        model.metrics = training_metrics


@contextlib.contextmanager
def evaluation_session(model: Model, loader: Any) -> Iterator[None]:
    """Evaluate ``loader`` inside: in eval mode, without gradients, with metrics separate from those of the training epoch."""
    model.strategy.timer.mark("rest")
    try:
        with (
            separate_metrics(model),
            translate_errors(model.module, without_gradients=True),
            train_mode.in_eval_mode(model.module),
            torch.no_grad(),
            model.loss.knowing(_known_targets(model, loader)),
        ):
            yield
    finally:
        model.strategy.timer.mark("validation")


@contextlib.contextmanager
def reporting_errors(model: Model, callbacks: CallbackList, x: Any = None) -> Iterator[None]:
    """Evaluate or predict inside; translate errors and call ``on_exception``.

    Args:
        model: The model.
        callbacks: The callbacks to call.
        x: The argument of ``predict``; None for ``evaluate``.
    """
    with active_callbacks(model, callbacks), translate_errors(model.module, x=x):
        try:
            yield
        except BaseException as error:
            callbacks.on_exception(error)
            raise


@contextlib.contextmanager
def active_callbacks(model: Model, callbacks: CallbackList) -> Iterator[None]:
    """Call only ``callbacks`` inside."""
    previous, model.callbacks = model.callbacks, callbacks
    try:
        yield
    finally:
        model.callbacks = previous


def _known_targets(model: Model, loader: Any) -> Any:
    """Return all targets that the loss will get, None if they are unknown or if ranks have different ones."""
    is_custom = any(map(model.overrides, ("train_step", "test_step", "unpack")))
    return None if is_custom or not model.strategy.group.splits_data else all_targets(loader)


def _synchronize_ranks(model: Model) -> None:
    """Give all ranks the random states and the buffers of rank 0, since each has used its own while training."""
    group = model.strategy.group
    if group.world_size > 1:
        set_rng_state(group.broadcast(get_rng_state()))
        group.broadcast_tensors(list(model.module.buffers()))


def _check_validation_data(model: Model, loader: Any) -> None:
    """Run one validation step, so that wrong validation data is reported before training and not after an epoch.

    It leaves no trace in the module.
    """
    batch = first_batch(loader)
    model.loss.prepare(all_targets(loader))
    if batch is None:
        return
    try:
        preserved = preserve_rng_state(), preserve_generators(model), train_mode.preserve_module(model.module)
        with evaluation_session(model, loader), preserved[0], preserved[1], preserved[2]:
            model.strategy.run(model.test_step, batch)
    except (ValueError, TypeError, IndexError) as error:
        # The constructor of a subclass may take other arguments.
        kind = next(kind for kind in (ValueError, TypeError, IndexError) if isinstance(error, kind))
        raise kind(f"The validation data failed the check before training: {error}") from error
