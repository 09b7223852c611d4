"""Start and end of fit, evaluate and predict."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils import train_mode
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe
from easytorch._utils.registry import find
from easytorch._utils.rng import get_rng_state, preserve_generators, preserve_rng_state, set_rng_state
from easytorch.callbacks.advice import (
    WarnOnCustomUpdate,
    WarnOnEndlessData,
    WarnOnEndlessValidation,
    WarnOnLeakedGradients,
    WarnOnNonFiniteLoss,
    WarnOnSummedLoss,
    WarnOnUnscaledInputs,
    WarnOnUntrainedParameters,
)
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.callbacks.checkpoint import BackupAndRestore, FinishRestore
from easytorch.data.batch import Window
from easytorch.data.loader import first_batch, require_end
from easytorch.data.sharding import describe_size
from easytorch.data.splits import all_targets
from easytorch.diagnostics.layer_errors import PROBLEM
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.optimizers import check_optimizer_is_current
from easytorch.training.attributes import warn_of_unreadable
from easytorch.training.consensus import ReplicaCheck, SharedLogs, fit_arguments
from easytorch.training.overrides import measured_once
from easytorch.training.signals import ON_INTERRUPT, Interruption, SignalHandler, StopConsensus
from easytorch.training.state import TrainState

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.data.loader import ValidationSchedule
    from easytorch.model import Model

# Methods between the samples of the data and the loss. A custom one may give the loss other targets.
TARGET_METHODS = ("unpack", "train_step", "test_step", "update", "train_epoch", "test_epoch")

# Two threads must not both find that no fit is running.
_START_OF_FIT = threading.Lock()


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
    schedule: ValidationSchedule,
    class_names: Any = None,
    **arguments: Any,
) -> Iterator[None]:
    """Run the epochs of a fit inside, with everything that happens before and after them.

    On entry, in this order: the ranks compare what they are going to do (``arguments`` too), signal handlers are installed,
    ``on_train_begin`` is called, a stopped run is restored, and one validation batch is tried. On exit, for whatever reason:
    ``on_train_end`` is called, handlers and modes are restored, and workers are shut down.
    If the first update fails, the model is restored as it was before.
    """
    on_interrupt = find("on_interrupt", on_interrupt, ON_INTERRUPT)
    with _only_fit(model, train_data), _named_classes(model, class_names):
        model.strategy.release_weights()
        optimizer = model.require_optimizer("fit")
        check_optimizer_is_current(optimizer, model.module, model.loss.modules.own_parameters())
        signals = SignalHandler()
        params = {"epochs": state.last, "steps": len(train_data) or None, "verbose": verbose}
        model.history.params, model.history.interrupted = params, False
        params = params | {"validated": val_data is not None, "count_validations": schedule.plan.count}
        active = _list_callbacks(model, [*callbacks, signals], params)
        train_data.timer, train_data.first_epoch = model.strategy.timer, state.first
        own_callbacks = [callback for callback in callbacks if not is_internal(type(callback))]
        train_data.sources.others = {"model": model, "callbacks": own_callbacks}
        # A custom update may use its batches in any way, so every rank must have one.
        train_data.needs_batch_every_step = model.strategy.needs_batch_every_step or model.overrides("update")
        arguments |= {"validation_freq": str(schedule.frequency), "class_names": str(class_names)}
        arguments |= fit_arguments(model, train_data, val_data, callbacks, state)
        with (
            model.strategy.group.call("fit", **arguments),
            update_session(model, active, state),
            signals,
            _training(model, train_data, val_data, active, signals),
        ):
            yield
    signals.exit_or_return(on_interrupt)


def _start_attributes(model: Model, callbacks: CallbackList) -> None:
    """Prepare what the user has added to the model; warn of what checkpoints of this fit cannot hold."""
    model.attribute_state.start_fit(callbacks.callbacks)
    if any(isinstance(callback, BackupAndRestore) for callback in callbacks.callbacks):
        warn_of_unreadable(model.attribute_state.unreadable(callbacks.callbacks))


@contextlib.contextmanager
def _training(
    model: Model, train_data: EpochIterator, val_data: Any, active: CallbackList, signals: SignalHandler
) -> Iterator[None]:
    """Call the callbacks before and after the epochs of a fit, which run inside, and end a fit that a signal interrupts."""
    error: BaseException | None = None
    first_step = model.state.step
    try:
        model.metrics.reset()
        _start_attributes(model, active)
        active.on_train_begin({})
        active.on_restore()
        _check_validation_data(model, val_data, train_data.loader)
        with _prepared_loss(model, train_data.loader), _compared_with_validation(model, val_data, train_data.loader):
            yield
        _synchronize_ranks(model)
    except Interruption:
        model.history.interrupted = True
        signals.signal = int(model.strategy.group.all_reduce_max(signals.signal or 0))
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
            model.last_fit = {"validation": val_data, "training": loader, "example": train_data.example}
        model.attribute_state.end_fit(active.callbacks)
        model.train_data, model.metrics.window = None, Window()
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
def _named_classes(model: Model, class_names: Any) -> Iterator[None]:
    """Give the classes of ``model`` their names; restore the previous names if the first update fails."""
    previous, first_step = model.class_names, model.state.step
    model.class_names = class_names
    try:
        yield
    except BaseException:
        if model.state.step == first_step:
            model.class_names = previous
        raise


@contextlib.contextmanager
def _prepared_loss(model: Model, loader: Any) -> Iterator[None]:
    """Let the loss check the first batch of ``loader`` inside, and use what is known of its targets."""
    targets = known_targets(model, loader)
    model.loss.prepare(targets, model.class_names)
    with model.loss.knowing(_if_same_on_all_ranks(model, targets)):
        yield


def _list_callbacks(model: Model, callbacks: list[Callback], params: dict[str, Any]) -> CallbackList:
    """Return the callbacks of a fit, with those that every fit has."""
    advice: list[Callback] = [WarnOnNonFiniteLoss(), WarnOnUntrainedParameters(), WarnOnUnscaledInputs()]
    if any(isinstance(callback, BackupAndRestore) for callback in callbacks):
        advice.append(FinishRestore())
    if not params["steps"]:
        advice.append(WarnOnEndlessData())
    if params["validated"]:
        advice.append(WarnOnEndlessValidation())
    if model.overrides("update"):
        advice.append(WarnOnCustomUpdate())
    elif model.overrides("train_step"):
        is_averaged = model.gradient_accumulation_steps > 1 or model.strategy.group.world_size > 1
        advice += [WarnOnLeakedGradients(), *[WarnOnSummedLoss()] * is_averaged]
    consensus: list[Callback] = []
    if model.strategy.group.world_size > 1:
        consensus = [*SharedLogs.after(callbacks), ReplicaCheck(), StopConsensus()]
    return CallbackList([*callbacks, *advice, *consensus], model, params)


@contextlib.contextmanager
def update_session(model: Model, callbacks: CallbackList, state: TrainState | None = None) -> Iterator[None]:
    """Update weights inside, starting from ``state``; if the first update fails, restore the model."""
    optimizer, previous, stops = model.require_optimizer("fit"), model.state, model.stop_training
    model.state = state or previous
    first_step = model.state.step
    restore_buffers = train_mode.snapshot_buffers(model.module, model.loss.modules)
    model.stop_training = False
    model.strategy.start(optimizer)
    with (
        contextlib.ExitStack() as stack,
        active_callbacks(model, callbacks),
        translate_errors(model.module),
        train_mode.in_train_mode(model.module),
        measured_once(model),
    ):
        stack.callback(model.strategy.release_weights)
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
            model.strategy.evaluating(),
            translate_errors(model.module, without_gradients=True),
            train_mode.in_eval_mode(model.module),
            train_mode.in_eval_mode(model.loss.modules),
            torch.no_grad(),
            model.loss.knowing(_if_same_on_all_ranks(model, known_targets(model, loader))),
        ):
            yield
    finally:
        model.strategy.timer.mark("validation")


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
    with group.call(name, **arguments), active_callbacks(model, callbacks), translate_errors(model.module, x=x):
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


def known_targets(model: Model, loader: Any) -> Any:
    """Return all targets that the loss will get from ``loader``; None if a custom step or ``unpack`` may change them."""
    is_custom = any(map(model.overrides, TARGET_METHODS))
    return None if is_custom else all_targets(loader)


def _if_same_on_all_ranks(model: Model, targets: Any) -> Any:
    """Return ``targets``, None if each rank has its own."""
    return targets if model.strategy.group.splits_data else None


def _synchronize_ranks(model: Model) -> None:
    """Give all ranks the random states and the buffers of rank 0, since each has used its own while training."""
    group = model.strategy.group
    if group.world_size > 1:
        set_rng_state(group.broadcast(get_rng_state()))
        group.broadcast_tensors(model.strategy.buffers())


def _check_validation_data(model: Model, val_data: Any, train_loader: Any) -> None:
    """Run one validation step, so that wrong validation data is reported before training and not after an epoch.

    If it fails, the training data is tried too: the message names the data at fault, or neither if the module or the loss is.
    """
    if val_data is None:
        return
    batch = first_batch(val_data)
    model.loss.prepare(known_targets(model, val_data), model.class_names)
    error = None if batch is None else _try_batch(model, val_data, batch)
    if error is None:
        return
    train_batch = _first_batch_alone(model, train_loader)
    if train_batch is None:
        raise _copy_error(error, f"The validation data failed the check before training: {error}") from error
    model.loss.prepare(known_targets(model, train_loader), model.class_names)
    train_error = _try_batch(model, train_loader, train_batch)
    raise _data_error(error, train_error, "validation", _compare_inputs(model, train_batch, batch))


@contextlib.contextmanager
def _compared_with_validation(model: Model, val_data: Any, train_loader: Any) -> Iterator[None]:
    """Train inside; if the first update fails, compare the training data with the validation data, which did not fail."""
    first_step = model.state.step
    try:
        yield
    except Exception:
        train_batch = _first_batch_alone(model, train_loader) if model.state.step == first_step else None
        batch = None if train_batch is None else first_batch(val_data)
        shapes = "" if batch is None else _compare_inputs(model, train_batch, batch)
        error = _try_batch(model, train_loader, train_batch) if shapes else None
        if error is not None:
            raise _data_error(error, None, "training", shapes) from error
        raise


def _first_batch_alone(model: Model, loader: Any) -> Any:
    """Return the first batch of ``loader``; None if there are several ranks, which would have to agree on another step."""
    return first_batch(loader) if model.strategy.group.world_size == 1 else None


def _try_batch(model: Model, loader: Any, batch: Any) -> Exception | None:
    """Run one validation step on ``batch``, which leaves no trace in the model, and return the error if it fails."""
    restore_attributes = model.attribute_state.snapshot(model.callbacks.callbacks)
    try:
        # The module is preserved outside of the evaluation, in which FSDP gathers its weights.
        with (
            train_mode.preserve_module(model.module),
            train_mode.preserve_module(model.loss.modules),
            contextlib.ExitStack() as stack,
            evaluation_session(model, loader),
            preserve_rng_state(),
            preserve_generators(model),
        ):
            stack.callback(restore_attributes)
            model.strategy.run(model.test_step, batch)
    except (ValueError, TypeError, IndexError) as error:
        return error
    return None


def _compare_inputs(model: Model, train_batch: Any, val_batch: Any) -> str:
    """Return a sentence about the inputs if a sample of training and one of validation differ in shape; else an empty string."""
    inputs = model.unpack(train_batch).x, model.unpack(val_batch).x
    if not all(isinstance(x, torch.Tensor) for x in inputs) or inputs[0].shape[1:] == inputs[1].shape[1:]:
        return ""
    return f"The inputs of a batch are {describe(inputs[0])} in training and {describe(inputs[1])} in validation."


def _data_error(error: Exception, other_error: Exception | None, kind: str, shapes: str) -> Exception:
    """Return the error for a batch that failed.

    Args:
        error: Why it failed.
        other_error: Why a batch of the other data failed, None if it did not.
        kind: ``"training"`` or ``"validation"``: the data with the batch.
        shapes: How the inputs of both differ; empty if they do not.
    """
    if other_error is not None and not shapes:  # the module or the loss is at fault
        return other_error
    other = {"training": "validation", "validation": "training"}[kind]
    problem = getattr(error, PROBLEM, None) if shapes else None
    if other_error is not None:
        message = f"{shapes} Give both the same shape. {problem or error}"
    elif problem is not None:
        message = (
            f"The {kind} data does not fit the module, but the {other} data does: {problem} {shapes} Use one shape."
        )
    else:
        message = f"The {kind} data failed the check before training, but the {other} data did not: {error}"
    explanation = _copy_error(error, message)
    explanation.__cause__ = error
    return explanation


def _copy_error(error: Exception, message: str) -> Exception:
    """Return an error of the same standard type with another message; the constructor of a subclass may take other arguments."""
    return next(kind for kind in (ValueError, TypeError, IndexError) if isinstance(error, kind))(message)
