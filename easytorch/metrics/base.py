"""Base class of metrics, and the mean of a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.api_errors import HelpfulInit
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe, leaves
from easytorch._utils.registry import get_name
from easytorch.checkpoint.serialization import to_serializable
from easytorch.data.sample_weights import align_weights
from easytorch.losses.loss_arguments import LossArguments
from easytorch.metrics.aggregation import Mean, Scalar


class Metric(HelpfulInit):
    """Base class of metrics, which aggregate values over many batches.

    A subclass defines ``reset``, ``update`` and ``compute``. For most metrics, a function ``f(y_pred, y)``, a name or a
    torchmetrics object is enough.

    Attributes:
        name: Name in the logs.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is better, None if unknown.
        is_final: Whether ``compute`` is called only at the end of a pass, because it takes long.
        takes_all_outputs: Matters if the loss compares only a part of the outputs with the targets, as ``gaussian_nll``
            compares the mean. True: ``update`` receives all outputs. False: it receives that part.

    Examples:
        >>> class Bias(Metric):
        ...     name, mode = "bias", None
        ...     def reset(self):
        ...         self.mean = Mean()
        ...     def update(self, y_pred, y, sample_weight=None):
        ...         self.mean.add_sum((y_pred - y).sum(), y.numel())
        ...     def compute(self):
        ...         return self.mean.compute()
    """

    name: str = "metric"
    mode: str | None = None
    takes_all_outputs = True
    is_final = False
    further_arguments: LossArguments | None = None  # what ``update`` gets by name

    def __init__(self) -> None:
        self.reset()

    def check(self, y_pred: Any, y: Any) -> None:
        """Raise a ``ValueError`` if the metric cannot measure such outputs and targets; called with the first batch of a pass.

        Args:
            y_pred: Outputs of the module for the first batch.
            y: Its targets.

        Examples:
            >>> class Bias(EpochMetric):
            ...     def check(self, y_pred, y):
            ...         if y_pred.shape != y.shape:
            ...             raise ValueError(f"Expected outputs of shape {list(y.shape)}.")
        """

    def reset(self) -> None:
        """Remove everything measured so far.

        Raises:
            NotImplementedError: If the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define reset()")

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch.

        Args:
            y_pred: Outputs of the module, detached, on the device. Values should stay there.
            y: Targets.
            sample_weight: Weights of the samples, only for ``weighted_metrics``.

        Raises:
            NotImplementedError: If the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(y_pred, y, sample_weight=None)")

    def compute(self) -> Any:
        """Return the value over all batches since the last reset, preferably a scalar tensor.

        Entries of a tensor with one or two dimensions, or of a dict of numbers, are logged separately: ``name_0``, ``name_1``.

        Raises:
            NotImplementedError: If the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute()")

    def new_copy(self) -> Metric:
        """Return a copy without measurements."""
        metric = copy.deepcopy(self)
        metric.reset()
        return metric

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint.

        It contains each attribute that has a ``state_dict``, or that consists of tensors, numbers and text.
        """
        attributes = {key: value for key, value in vars(self).items() if key not in ("name", "mode")}
        return {
            key: value.state_dict() if hasattr(value, "state_dict") else to_serializable(value)
            for key, value in attributes.items()
            if hasattr(value, "state_dict") or _is_serializable(value)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        for key, value in state.items():
            if hasattr(getattr(self, key, None), "load_state_dict"):
                getattr(self, key).load_state_dict(value)
            else:
                setattr(self, key, value)

    def flush(self) -> None:
        """Sum the waiting values of every ``Mean``, before the state is sent to other ranks."""
        for value in vars(self).values():
            if isinstance(value, Mean):
                value.flush()

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the ``states`` of all ranks, as if one rank had measured all batches.

        By default, merge every attribute that has a ``merge`` method, such as ``Mean``. All other attributes must be
        unchanged since ``reset``.

        Args:
            states: The ``state_dict`` of each rank.

        Raises:
            ValueError: If another attribute has changed.
        """
        mergeable = [key for key in states[0] if hasattr(getattr(self, key, None), "merge")]
        settings = [key for key in states[0] if key not in mergeable]
        if not states[0] or any(not _is_equal(state[key], getattr(self, key)) for key in settings for state in states):
            raise ValueError(
                f"The metric {self.name!r} cannot be merged across ranks, because its values are not in mergeable attributes. "
                "Store them in an easytorch.Mean, or define state_dict(), load_state_dict(state) and merge(states)."
            )
        for key in mergeable:
            getattr(self, key).merge([state[key] for state in states])


@runtime_checkable
class HelpfulCheck(Protocol):
    """A function that checks its first batch."""

    def check(self, name: str, y_pred: Any, y: Any) -> None:
        """Raise a ``ValueError`` if it cannot measure such outputs and targets."""


class MeanMetric(Metric):
    """The mean of ``function(y_pred, y)`` over all samples.

    Args:
        function: Returns a scalar, the mean of the batch; or one value per sample; or a pair. A pair is the sum of the
            samples that count and their number, or the value of each sample and whether it counts.
        name: Name in the logs; by default that of the function.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is better, None if unknown.
        finish: Function of the mean that returns the value, for example ``torch.sqrt``.
        further_arguments: What the function gets by name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        mode: str | None = None,
        finish: Callable[[Any], Any] | None = None,
        further_arguments: LossArguments | None = None,
    ) -> None:
        self.function, self.name, self.mode, self.finish = function, name or get_name(function), mode, finish
        if further_arguments is not None:
            self.further_arguments = further_arguments
        super().__init__()

    def check(self, y_pred: Any, y: Any) -> None:
        """Let a function of this package check its first batch."""
        if is_internal(type(self.function)) and isinstance(self.function, HelpfulCheck):
            self.function.check(self.name, y_pred, y)

    def reset(self) -> None:
        """Remove everything measured so far."""
        self.mean = Mean()

    def new_copy(self) -> Metric:
        """Return a copy without measurements."""
        metric = copy.copy(self)
        metric.reset()
        return metric

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None, **further: Any) -> None:
        """Measure one batch; ``further`` are further arguments of the function."""
        value = self.function(y_pred, y, **further)
        if isinstance(value, Tensor):
            if value.requires_grad:
                # The function read the parameters of the module.
                value = value.detach()
            if value.ndim and value.numel() == 1 and _sample_count(y_pred, y) > 1:
                # A mean in the shape [1]
                value = value.reshape(())
            if value.ndim and sample_weight is None:
                # This is the most frequent case. Counting takes a ninth of the time of summing.
                total = value.count_nonzero() if value.dtype is torch.bool else _sum(value)
                self.mean.add_sum(total, value.numel())
                return
        if not isinstance(value, (Tensor, float, int, np.number)) and not (
            isinstance(value, tuple) and len(value) == 2
        ):
            raise ValueError(
                f"it returned {describe(value)}, which is not one number, one value per sample, or a pair (sum, count)"
            )
        if sample_weight is not None:
            self.mean.add_sum(*_weighted_sum(value, sample_weight))
        elif isinstance(value, tuple):
            self.mean.add_sum(*map(_sum, value))
        else:
            self.mean.add(value if isinstance(value, Tensor) else float(value), _sample_count(y_pred, y))

    def compute(self) -> Scalar:
        """Return the mean of all samples since the last reset."""
        value = self.mean.compute()
        return self.finish(value) if self.finish else value

    def counts_nothing(self) -> bool:
        """Return whether batches were measured, but none of their samples counts."""
        return self.mean.counts_nothing()


def _sample_count(y_pred: Any, y: Any) -> int:
    """Return the number of samples, from the targets or else from the outputs."""
    return next((len(leaf) for leaf in leaves((y, y_pred)) if isinstance(leaf, Tensor) and leaf.ndim), 1)


def _sum(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    # A sum in 16 bits overflows or loses digits.
    return value.sum(dtype=torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else None)


def _weighted_sum(value: Any, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the values, and the sum of their weights."""
    values, counts = value if isinstance(value, tuple) else (value, 1)
    if not isinstance(values, Tensor) or not values.ndim:
        raise ValueError(
            "sample weights need one value per sample, but the function returns one number per batch. Return one value per "
            "sample, or move the metric from weighted_metrics= to metrics="
        )
    aligned = align_weights(sample_weight, values)
    if aligned is None:
        raise ValueError(
            f"the sample weights have the shape {list(sample_weight.shape)}, but the function returns values of shape "
            f"{list(values.shape)}. Pass one weight per sample, or one per value"
        )
    weight = aligned.expand_as(values) * counts
    return _sum(values * weight), _sum(weight)


def _is_serializable(value: Any) -> bool:
    """Return whether a checkpoint stores ``value`` without changing its type."""
    try:
        to_serializable(value)
    except TypeError:
        return False
    return not any(isinstance(leaf, np.ndarray) for leaf in leaves(value))


def _is_equal(first: Any, second: Any) -> bool:
    first_leaves, second_leaves = list(leaves(first)), list(leaves(second))
    return len(first_leaves) == len(second_leaves) and all(
        torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(first_leaves, second_leaves, strict=True)
    )
