"""Evaluation mode, and what is known of the targets of a pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils import train_mode
from easytorch.data.splits import all_targets
from easytorch.diagnostics.torch_errors import translate_errors

if TYPE_CHECKING:
    from easytorch.model import Model

# Methods between the samples of the data and the loss. A custom one may give the loss other targets.
TARGET_METHODS = ("unpack", "train_step", "test_step", "update", "train_epoch", "test_epoch")


@contextlib.contextmanager
def separate_metrics(model: Model, *, evaluates: bool | None = None) -> Iterator[None]:
    """Measure inside with metrics separate from those of the training epoch; all of them if the pass ``evaluates``."""
    training_metrics = model.metrics
    # Ctrl-C may come between any two lines: before the inner "finally" has run, the outer one still will.
    try:
        try:
            model.metrics = training_metrics.new_copy(evaluates=evaluates)
            yield
        finally:
            model.metrics = training_metrics
    finally:
        model.metrics = training_metrics


@contextlib.contextmanager
def evaluation_session(model: Model, loader: Any) -> Iterator[None]:
    """Evaluate ``loader`` inside: in eval mode, without gradients, with metrics separate from those of the training epoch."""
    model.strategy.timer.mark("rest")
    try:
        with (
            separate_metrics(model, evaluates=True),
            model.strategy.evaluating(),
            translate_errors(model.module, without_gradients=True, data=loader),
            train_mode.in_eval_mode(model.module),
            train_mode.in_eval_mode(model.loss.modules),
            torch.no_grad(),
            model.loss.knowing(if_same_on_all_ranks(model, known_targets(model, loader))),
        ):
            yield
    finally:
        model.strategy.timer.mark("validation")


def known_targets(model: Model, loader: Any) -> Any:
    """Return all targets that the loss will get from ``loader``; None if a custom step or ``unpack`` may change them."""
    is_custom = any(map(model.overrides, TARGET_METHODS))
    return None if is_custom else all_targets(loader)


def if_same_on_all_ranks(model: Model, targets: Any) -> Any:
    """Return ``targets``, None if each rank has its own."""
    return targets if model.strategy.group.splits_data else None
