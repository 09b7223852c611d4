"""Errors of torch as messages that name layer, batch or target.

Nothing here runs before an exception. The inputs, outputs and targets are read from the arguments of the functions in its
traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from easytorch.diagnostics.data_errors import (
    add_batch_dimension_advice,
    collate_error,
    detection_error,
    unpacking_error,
)
from easytorch.diagnostics.frames import Failure
from easytorch.diagnostics.layer_errors import (
    dict_error,
    forward_error,
    layer_error,
    missing_forward_error,
    missing_label_error,
    swapped_error,
    text_error,
)
from easytorch.diagnostics.loss_errors import (
    backward_error,
    closure_error,
    evaluation_error,
    loss_error,
    metric_error,
    optimizer_error,
)
from easytorch.diagnostics.module_loss_errors import (
    decoder_input_error,
    module_loss_error,
    text_length_error,
    vocabulary_error,
)
from easytorch.diagnostics.table_errors import (
    null_error,
    plain_rows_error,
    table_error,
)
from easytorch.distributed.agreement import is_connection_error
from easytorch.errors import RankError

# The first rule that returns an error wins. Each looks for calls of certain functions in the traceback. A call comes after the
# calls that it may contain: layers run inside of forward(), and the loss may run inside of a metric.
RULES: tuple[Callable[[Failure], Exception | None], ...] = (
    null_error,
    table_error,
    plain_rows_error,
    collate_error,
    unpacking_error,
    detection_error,
    evaluation_error,
    missing_forward_error,
    missing_label_error,
    dict_error,
    text_error,
    decoder_input_error,
    vocabulary_error,
    module_loss_error,
    swapped_error,
    layer_error,
    forward_error,
    loss_error,
    metric_error,
    backward_error,
    closure_error,
    optimizer_error,
)


@contextlib.contextmanager
def translate_errors(
    module: nn.Module, *, x: Any = None, without_gradients: bool = False, data: Any = None
) -> Iterator[None]:
    """Replace an exception by one that explains it, with the original as its cause.

    Args:
        module: The module that runs inside.
        x: The input of ``predict``; None outside of it. An error about dimensions then explains how to add one.
        without_gradients: Whether steps run without gradients inside.
        data: The loader of the batches; None if it is unknown.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, AssertionError) as error:
        explanation = explain(Failure(error, module, x, without_gradients, data))
        if explanation is None:
            raise
        raise explanation from error


def explain(failure: Failure) -> Exception | None:
    """Return an error that explains ``failure``, None if no rule applies."""
    if isinstance(failure.error, (torch.OutOfMemoryError, RankError)) or is_connection_error(failure.error):
        return None
    too_long = text_length_error(failure)
    if too_long is not None:  # torch's reason is a dimension, but no sample lacks one
        return too_long
    explanations = (rule(failure) for rule in RULES)
    explanation = next((error for error in explanations if error is not None), None)
    return add_batch_dimension_advice(failure, explanation)
