"""Base class of metrics, and the mean of a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.api_hints import HelpfulInit
from easytorch._utils.pytree import leaves
from easytorch._utils.registry import get_name
from easytorch.checkpoint.serialization import to_serializable
from easytorch.metrics.aggregation import Mean, Scalar


class Metric(HelpfulInit):
    """What is measured over many batches: subclass it, or pass a function, a name or a torchmetrics object instead.

    A metric has a ``name`` for the logs and a ``mode``, ``"max"`` or ``"min"``, whichever is better (None: unknown).

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
    takes_all_outputs = (
        True  # where the loss takes several tensors; False: only the one that it compares with the targets
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything measured so far."""
        raise NotImplementedError(f"{type(self).__name__} must define reset()")

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch; tensors are on the device and should stay there."""
        raise NotImplementedError(f"{type(self).__name__} must define update(y_pred, y, sample_weight=None)")

    def compute(self) -> Scalar:
        """Return the value over all batches since the last reset, preferably as a scalar tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define compute()")

    def new_copy(self) -> Metric:
        """Return a copy that has measured nothing."""
        twin = copy.deepcopy(self)
        twin.reset()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs: every attribute that is made of tensors, numbers and text, or has a ``state_dict``."""
        own = {key: value for key, value in vars(self).items() if key not in ("name", "mode")}
        return {
            key: value.state_dict() if hasattr(value, "state_dict") else to_serializable(value)
            for key, value in own.items()
            if hasattr(value, "state_dict") or _is_plain(value)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        for key, value in state.items():
            if hasattr(getattr(self, key, None), "load_state_dict"):
                getattr(self, key).load_state_dict(value)
            else:
                setattr(self, key, value)

    def flush(self) -> None:
        """Sum up what waits in every ``Mean``: the pass is over, and what was measured is sent to other processes."""
        for value in vars(self).values():
            if isinstance(value, Mean):
                value.flush()

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the ``states`` of several processes, as if all had been measured here.

        By default every attribute that has a ``merge`` merges those of its kind, as ``Mean`` does; whatever else has not changed
        since ``reset``.

        Raises:
            ValueError: If the metric keeps what it measures somewhere else.
        """
        mergeable = [key for key in states[0] if hasattr(getattr(self, key, None), "merge")]
        settings = [key for key in states[0] if key not in mergeable]
        if not states[0] or any(not _same(state[key], getattr(self, key)) for key in settings for state in states):
            raise ValueError(
                f"The metric {self.name!r} keeps its numbers where those of other processes cannot be added. Keep them in an "
                "easytorch.Mean, or define state_dict(), load_state_dict(state) and merge(states)."
            )
        for key in mergeable:
            getattr(self, key).merge([state[key] for state in states])


class MeanMetric(Metric):
    """The mean of ``function(y_pred, y)`` over all samples.

    Args:
        function: Returns the mean of the batch, as a scalar; or one value for each sample; or a pair, the sum over
            those samples that count and their number, or for each sample its value and whether it counts.
        name: Its name in the logs; by default the function's.
        mode: ``"max"``, ``"min"`` or None, whichever is better.
        finish: What to do with the mean in the end, for example ``torch.sqrt``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        mode: str | None = None,
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        self.function, self.name, self.mode, self.finish = function, name or get_name(function), mode, finish
        super().__init__()

    def reset(self) -> None:
        """Forget everything measured so far."""
        self.mean = Mean()

    def new_copy(self) -> Metric:
        """Return a copy that has measured nothing."""
        twin = copy.copy(self)
        twin.reset()
        return twin

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch."""
        value = self.function(y_pred, y)
        if isinstance(value, Tensor):
            if value.requires_grad:  # made from the weights
                value = value.detach()
            if value.ndim and sample_weight is None:  # by far the most frequent case
                # Counting takes a ninth of the time of adding up.
                total = value.count_nonzero() if value.dtype is torch.bool else _total(value)
                self.mean.add_sum(total, value.numel())
                return
        if sample_weight is not None:
            self.mean.add_sum(*_weighted(value, sample_weight))
        elif isinstance(value, tuple):
            self.mean.add_sum(*map(_total, value))
        else:
            self.mean.add(value if isinstance(value, Tensor) else float(value), _rows(y_pred, y))

    def compute(self) -> Scalar:
        """Return the mean so far."""
        value = self.mean.compute()
        return self.finish(value) if self.finish else value


def _rows(y_pred: Any, y: Any) -> int:
    rows = y if isinstance(y, Tensor) and y.ndim else y_pred
    return len(rows) if isinstance(rows, Tensor) and rows.ndim else 1


def _total(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    short = value.dtype in (torch.float16, torch.bfloat16)  # in which a sum overflows, or loses its digits
    return value.sum(dtype=torch.float32 if short else None)


def _weighted(value: Any, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the values, and what to divide it by."""
    values, counts = value if isinstance(value, tuple) else (value, 1)
    if not isinstance(values, Tensor) or not values.ndim:
        raise ValueError(
            "it returns one number for the whole batch, but weights need one value for each sample; without weights it goes into "
            "metrics=, not weighted_metrics="
        )
    weight = _expand(sample_weight, values) * counts
    return _total(values * weight), _total(weight)


def _is_plain(value: Any) -> bool:
    """Whether a file can hold ``value`` and give it back as it is."""
    try:
        to_serializable(value)
    except TypeError:
        return False
    return not any(isinstance(leaf, np.ndarray) for leaf in leaves(value))


def _same(first: Any, second: Any) -> bool:
    ours, others = list(leaves(first)), list(leaves(second))
    return len(ours) == len(others) and all(
        torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(ours, others, strict=True)
    )


def _expand(sample_weight: Tensor, value: Tensor) -> Tensor:
    weight = (
        sample_weight.reshape(len(value), *[1] * (value.ndim - 1))
        if sample_weight.numel() == len(value)
        else sample_weight
    )
    return weight.expand_as(value)
