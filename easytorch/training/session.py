"""Start and end of fit, evaluate and predict."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from easytorch._utils import train_mode
from easytorch._utils.integers import boolean
from easytorch._utils.internal import is_internal
from easytorch._utils.registry import find
from easytorch._utils.rng import get_rng_state, set_rng_state
from easytorch.callbacks.advice import (
    WarnOnCustomUpdate,
    WarnOnEndlessData,
    WarnOnEndlessValidation,
    WarnOnLeakedGradients,
    WarnOnMisspelledEntry,
    WarnOnNonFiniteLoss,
    WarnOnSummedLoss,
    WarnOnUnscaledInputs,
    WarnOnUntrainedParameters,
)
from easytorch.callbacks.backup import BackupAndRestore, FinishRestore
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.callbacks.stop_after import LimitReached
from easytorch.data.loader import require_end
from easytorch.data.sharding import describe_size
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.optimizers import check_optimizer_is_current
from easytorch.training.attributes import warn_of_unreadable
from easytorch.training.closures import repeated_evaluations
from easytorch.training.consensus import ReplicaCheck, SharedLogs, fit_arguments
from easytorch.training.data_check import check_validation_data, compared_with_validation
from easytorch.training.dry_run import dry_run
from easytorch.training.evaluation import if_same_on_all_ranks, known_targets
from easytorch.training.fit_data import FitData
from easytorch.training.fit_record import FitRecord
from easytorch.training.overrides import measured_once
from easytorch.training.phases import plan_phases
from easytorch.training.signals import ON_INTERRUPT, Interruption, SignalHandler, StopConsensus
from easytorch.training.state import TrainState

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.model import Model
    from easytorch.training.validation import Validation

# Two threads must not both find that no fit is running.
_START_OF_FIT = threading.Lock()


@contextlib.contextmanager
def fit_session(
    model: Model,
    data: FitData,
    validation: Validation,
    *,
    record: FitRecord,
    callbacks: list[Callback],
    state: TrainState,
    on_interrupt: str,
    is_dry: bool,
    verbose: Any,
    **arguments: Any,
) -> Iterator[None]:
    """Run the epochs of a fit inside, with everything that happens before and after them.

    On entry, in this order: the ranks compare what they are going to do (``arguments`` too), signal handlers are installed,
    ``on_train_begin`` is called, a stopped run is restored, and one validation batch is tried. On exit, for whatever reason:
    ``on_train_end`` is called, handlers and modes are restored, and workers are shut down.
    If the first update fails, the model is restored as it was before. After a dry run, everything is.
    """
    on_interrupt = find("on_interrupt", on_interrupt, ON_INTERRUPT)
    is_dry = boolean("dry_run", is_dry)
    train_data = data.train
    run = dry_run(model, train_data, callbacks, validation, verbose) if is_dry else contextlib.nullcontext(callbacks)
    verbose = 0 if is_dry else verbose
    with _only_fit(model, train_data), run as callbacks, _named_data(model, data.class_names, data.columns):
        model.strategy.release_weights()
        optimizer = model.require_optimizer("fit")
        check_optimizer_is_current(optimizer, model.module, model.loss.modules.own_parameters())
        signals = SignalHandler()
        params = {"epochs": state.last, "steps": len(train_data) or None, "verbose": verbose}
        model.history.params, model.history.interrupted, model.history.stop_reason = params, False, ""
        model.metrics.data_sets = tuple(filter(None, validation.data_sets))
        active = _list_callbacks(
            model, [*callbacks, signals, validation], params | validation.describe() | {"record": record}
        )
        _prepare_data(model, train_data, callbacks, state)
        arguments |= {
            "validation_freq": str(validation.frequency),
            "class_names": str(data.class_names),
            "dry_run": is_dry,
        }
        arguments |= fit_arguments(model, train_data, data.validation, callbacks, state)
        with (
            model.strategy.group.call("fit", **arguments),
            update_session(model, active, state, train_data.loader),
            signals,
            _training(model, train_data, data.validation, active, signals, record),
        ):
            yield
    signals.exit_or_return(on_interrupt)


def _prepare_data(model: Model, train_data: EpochIterator, callbacks: list[Callback], state: TrainState) -> None:
    """Give the training data what it needs of the model, the callbacks and the epochs."""
    train_data.timer, train_data.first_epoch = model.strategy.timer, state.first
    own_callbacks = [callback for callback in callbacks if not is_internal(type(callback))]
    train_data.sources.others = {"model": model, "callbacks": own_callbacks}
    # A custom update may use its batches in any way, so every rank must have one.
    train_data.needs_batch_every_step = model.strategy.needs_batch_every_step or model.overrides("update")


def _start_attributes(model: Model, callbacks: CallbackList) -> None:
    """Prepare what the user has added to the model; warn of what checkpoints of this fit cannot hold."""
    model.attribute_state.start_fit(callbacks.callbacks)
    if any(isinstance(callback, BackupAndRestore) for callback in callbacks.callbacks):
        warn_of_unreadable(model.attribute_state.unreadable(callbacks.callbacks))


@contextlib.contextmanager
def _training(
    model: Model,
    train_data: EpochIterator,
    val_data: Any,
    active: CallbackList,
    signals: SignalHandler,
    record: FitRecord,
) -> Iterator[None]:
    """Call the callbacks before and after the epochs of a fit, which run inside, and end a fit that a signal interrupts."""
    error: BaseException | None = None
    first_step = model.state.step
    try:
        model.metrics.reset()
        _start_attributes(model, active)
        active.on_train_begin({})
        active.on_restore()
        check_validation_data(model, val_data, train_data.loader)
        with _prepared_loss(model, train_data.loader), compared_with_validation(model, val_data, train_data.loader):
            yield
        _synchronize_ranks(model)
    except (Interruption, LimitReached) as stop:
        model.history.interrupted = True
        signals.signal = int(model.strategy.group.all_reduce_max(signals.signal or 0)) or None
        model.history.stop_reason = signals.describe() or str(stop)
        active.on_interrupt()
    except BaseException as caught:
        # Before on_train_end, which may wait for ranks that do not know of the error.
        error = model.strategy.group.report(caught)
        active.fail(error)
        if error is not caught:
            raise error from caught
        raise
    finally:
        if error is None or model.state.step > first_step:
            loader = train_data.loader
            model.last_fit = {
                "validation": val_data, "training": loader, "example": train_data.example, "record": record
            }  # fmt: skip
        model.attribute_state.end_fit(active.callbacks)
        model.train_data = None
        model.metrics.release()
        train_data.close()
        active.finish(error, model.history.rows[-1] if model.history.rows else {})


@contextlib.contextmanager
def _only_fit(model: Model, train_data: EpochIterator) -> Iterator[None]:
    """Set ``model.train_data`` inside; raise a ``RuntimeError`` if a fit of ``model`` is running."""
    try:
        with _START_OF_FIT:
            if model.train_data is not None:
                raise RuntimeError(
                    "fit() of this model is running already, in this thread or another one, and a second fit() would train the "
                    "same weights. Call it when the first has ended. In a callback use train_on_batch(), evaluate() or "
                    "predict(), or fit a copy: copy.deepcopy(self.model).fit(...)."
                )
            model.train_data = train_data
        yield
    finally:
        if model.train_data is train_data:
            model.train_data = None


@contextlib.contextmanager
def _named_data(model: Model, class_names: Any, columns: list[Any] | None) -> Iterator[None]:
    """Give ``model`` the names of classes and columns; restore the previous names if the first update fails."""
    previous, first_step = (model.class_names, model.columns), model.state.step
    model.class_names, model.columns = class_names, columns
    try:
        yield
    except BaseException:
        if model.state.step == first_step:
            model.class_names, model.columns = previous
        raise


@contextlib.contextmanager
def _prepared_loss(model: Model, loader: Any) -> Iterator[None]:
    """Let the loss check the first batch of ``loader`` inside, and use what is known of its targets."""
    targets = known_targets(model, loader)
    model.loss.prepare(targets, model.class_names)
    with model.loss.knowing(if_same_on_all_ranks(model, targets)):
        yield


def _list_callbacks(model: Model, callbacks: list[Callback], params: dict[str, Any]) -> CallbackList:
    """Return the callbacks of a fit, with those that every fit has."""
    advice: list[Callback] = [WarnOnNonFiniteLoss(), WarnOnUntrainedParameters(), WarnOnUnscaledInputs()]
    advice.append(WarnOnMisspelledEntry())
    if any(isinstance(callback, BackupAndRestore) for callback in callbacks):
        advice.append(FinishRestore())
    if not params["steps"]:
        advice.append(WarnOnEndlessData())
    if params["validated"]:
        advice.append(WarnOnEndlessValidation())
    if model.overrides("update"):
        advice.append(WarnOnCustomUpdate())
        model.batch_advice = []  # of train_on_batch, which would repeat it
    elif model.overrides("train_step"):
        is_averaged = model.gradient_accumulation_steps > 1 or model.strategy.group.world_size > 1
        advice += [WarnOnLeakedGradients(), *[WarnOnSummedLoss()] * is_averaged]
    consensus: list[Callback] = []
    if model.strategy.group.world_size > 1:
        consensus = [*SharedLogs.after(callbacks), ReplicaCheck(), StopConsensus()]
    return CallbackList([*callbacks, *advice, *consensus], model, params)


@contextlib.contextmanager
def update_session(
    model: Model, callbacks: CallbackList, state: TrainState | None = None, loader: Any = None
) -> Iterator[None]:
    """Update weights inside, starting from ``state``, by batches of ``loader``; if the first update fails, restore the model."""
    optimizer, previous, stops = model.require_optimizer("fit"), model.state, model.stop_training
    model.state = state or previous
    first_step = model.state.step
    restore_buffers = train_mode.snapshot_buffers(model.module, model.loss.modules)
    model.stop_training = False
    previous_phases, model.phases = model.phases, plan_phases(model, optimizer)
    model.strategy.start(optimizer)
    with (
        contextlib.ExitStack() as stack,
        active_callbacks(model, callbacks),
        translate_errors(model.module, data=loader),
        train_mode.in_train_mode(model.module),
        measured_once(model),
        repeated_evaluations(model),
    ):
        stack.callback(model.strategy.release_weights)
        stack.callback(setattr, model, "phases", previous_phases)
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
def reporting_errors(
    model: Model, callbacks: CallbackList, name: str, loader: Any, *, steps: int | None = None, x: Any = None
) -> Iterator[None]:
    """Evaluate or predict inside, on all ranks; translate errors and call ``on_exception``.

    Args:
        model: The model.
        callbacks: The callbacks to call.
        name: The name of the method.
        loader: The batches.
        steps: Number of batches; None for all.
        x: The argument of ``predict``; None for ``evaluate``.
    """
    require_end(loader, "steps", steps)
    group = model.strategy.group
    arguments = {**describe_size(loader, group), "steps": steps} if group.world_size > 1 else {}
    translation = translate_errors(model.module, x=x, data=loader)
    with group.call(name, **arguments), active_callbacks(model, callbacks), translation:
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


def _synchronize_ranks(model: Model) -> None:
    """Give all ranks the random states and the buffers of rank 0, since each has used its own while training."""
    group = model.strategy.group
    if group.world_size > 1:
        set_rng_state(group.broadcast(get_rng_state()))
        group.broadcast_tensors(model.strategy.buffers())
