"""Check of the data before training: which data is at fault if a batch fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils import train_mode
from easytorch._utils.pytree import describe
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch.data.data_sets import by_name
from easytorch.data.loader import first_batch
from easytorch.diagnostics.layer_errors import PROBLEM
from easytorch.training.evaluation import evaluation_session, known_targets

if TYPE_CHECKING:
    from easytorch.model import Model


def check_validation_data(model: Model, val_data: Any, train_loader: Any) -> None:
    """Run one validation step, so that wrong validation data is reported before training and not after an epoch.

    If it fails, the training data is tried too: the message names the data at fault, or neither if the module or the loss is.
    """
    for name, loader in by_name(val_data).items():
        try:
            _check_data_set(model, loader, train_loader)
        except (ValueError, TypeError, IndexError) as error:
            if not name:
                raise
            raise _copy_error(error, f"In validation_data[{name!r}]: {error}") from error


def _check_data_set(model: Model, val_data: Any, train_loader: Any) -> None:
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
def compared_with_validation(model: Model, val_data: Any, train_loader: Any) -> Iterator[None]:
    """Train inside; if the first update fails, compare the training data with the validation data, which did not fail."""
    first_step = model.state.step
    try:
        yield
    except Exception:
        train_batch = _first_batch_alone(model, train_loader) if model.state.step == first_step else None
        first_data_set = next(iter(by_name(val_data).values()), None)
        batch = None if train_batch is None else first_batch(first_data_set)
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
