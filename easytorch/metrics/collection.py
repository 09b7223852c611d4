"""Everything that is measured in a pass over the data."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from easytorch._utils.pytree import describe, map_leaves
from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn
from easytorch.distributed.process_group import SingleProcess
from easytorch.losses.criterion import Criterion
from easytorch.metrics.aggregation import Logs, Mean, Scalar
from easytorch.metrics.base import Metric


class MetricCollection:
    """All that is logged: the terms of the loss, then every metric, in the order of ``compile``.

    Args:
        metrics: ``(metric, output name or None, weighted)`` of each.
        criterion: The loss; it finds the part that a metric measures among the module's outputs.
    """

    def __init__(self, metrics: Sequence[tuple[Metric, str | None, bool]], criterion: Criterion) -> None:
        self._metrics = list(metrics)
        self.criterion = criterion
        self._terms: dict[str, Mean] = {}
        self._losses: collections.deque[Any] = collections.deque(maxlen=0)
        self.names = _unique(
            [f"{output}_{metric.name}" if output else metric.name for metric, output, _ in self._metrics]
        )
        self.logs = Logs(self._values)
        self._updated = False  # in this pass
        self._told: list[str] = []  # in this fit, by this one or by a copy for another pass
        self.group = SingleProcess()  # those who measure, while they train

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch with every metric; nothing waits for the device."""
        if not self._metrics or self.group.idle:
            return
        self._updated = True
        y_pred = y_pred.detach() if isinstance(y_pred, Tensor) else map_leaves(_detached, y_pred)
        parts = [self.criterion.part(y_pred, y, output) for _, output, _ in self._metrics]
        for (metric, output, weighted), (part, target) in zip(self._metrics, parts, strict=True):
            part = part if metric.takes_all_outputs else self.criterion.prediction(part, output)
            self._update_metric(
                metric, part, target, self.criterion.weight(sample_weight, output) if weighted else None
            )

    def _update_metric(self, metric: Metric, y_pred: Any, y: Any, sample_weight: Any) -> None:
        """Update one metric. Errors are explained by the arguments of this method."""
        metric.update(y_pred, y, sample_weight)

    def record(self, terms: Mapping[str, Any], size: int) -> None:
        """Count what a step returned, each value the mean of ``size`` samples."""
        if self.group.idle:
            return
        for name, value in terms.items():
            scalar = _scalar(name, value)
            if name not in self._terms:
                _check_term(name, self.names)
                self._terms[name] = Mean()
            self._terms[name].add(scalar, size)
            if name == "loss":
                self._losses.append(scalar)

    def last_losses(self, count: int) -> collections.deque[Any]:
        """Return what will hold the losses of the last ``count`` steps that were recorded, from now on."""
        if self._losses.maxlen != count:
            self._losses = collections.deque(maxlen=count)
        return self._losses

    def compute(self) -> dict[str, Scalar]:
        """Return every value of a pass that ends, as scalars that may still be on the device."""
        self._tell_of_idle()
        return self._values()

    def _tell_of_idle(self) -> None:
        if self._updated or not self._terms or not self._metrics or self._told:
            return
        self._told.append("never updated")
        were, them = ("was", "it") if len(self.names) == 1 else ("were", "them")
        warn(
            f"{', '.join(self.names)} {were} never updated: call self.metrics.update(y_pred, y) in train_step and test_step, or "
            f"take {them} out of compile."
        )

    def _values(self) -> dict[str, Scalar]:
        values = {name: mean.compute() for name, mean in self._terms.items()}
        for name, (metric, *_) in zip(self.names, self._metrics, strict=True):
            values[name] = self._value(name, metric)
        return values

    @staticmethod
    def _value(name: str, metric: Metric) -> Scalar:
        try:
            value = metric.compute()
        except Exception as error:
            raise ValueError(f"The metric {name!r} failed in compute(): {type(error).__name__}: {error}") from error
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"The metric {name!r} is {describe(value)}, not one number. Let compute() return a scalar."
            )
        return value

    def reset(self) -> None:
        """Forget everything measured so far."""
        if not self._terms:  # a fit begins
            self._told.clear()
        self._terms, self._updated = {}, False
        for metric, *_ in self._metrics:
            metric.reset()

    def new_copy(self) -> MetricCollection:
        """Return a copy that has measured nothing, for another pass at the same time."""
        twins = [(metric.new_copy(), output, weighted) for metric, output, weighted in self._metrics]
        fresh = MetricCollection(twins, self.criterion)
        fresh._told = self._told
        return fresh

    def flush(self) -> None:
        """Sum up what waits to be summed: the pass is over, and what was measured is sent to other processes."""
        for mean in self._terms.values():
            mean.flush()
        for metric, *_ in self._metrics:
            metric.flush()

    def merged(self, states: Sequence[Mapping[str, Any]]) -> MetricCollection:
        """Return a copy that has measured what those of several processes have, given the ``state_dict`` of each."""
        self._tell_of_idle()
        whole = self.new_copy()
        whole._updated = True
        names = dict.fromkeys(name for state in states for name in state["terms"])
        for name in names:
            whole._terms[name] = Mean()
            whole._terms[name].merge([state["terms"][name] for state in states if name in state["terms"]])
        for i, (metric, *_) in enumerate(whole._metrics):
            metric.merge([state["metrics"][i] for state in states])
        return whole

    def mode(self, name: str) -> str:
        """Return ``"min"`` or ``"max"``, whichever is better for a value in the logs.

        Raises:
            ValueError: If nobody knows.
        """
        bare = name.removeprefix("val_")
        known = dict(zip(self.names, (metric.mode for metric, *_ in self._metrics), strict=True))
        mode = known.get(bare) or ("min" if bare == "loss" or bare.endswith("_loss") else None)
        if mode is None:
            hint = did_you_mean(bare, {"loss", *self.names} - {bare})
            raise ValueError(
                f"It is not known whether {name!r} is better high or low.{hint} Pass mode='min' or mode='max'."
            )
        return mode

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart in the middle of a pass needs."""
        return {
            "names": self.names,
            "terms": {name: mean.state_dict() for name, mean in self._terms.items()},
            "metrics": [metric.state_dict() for metric, *_ in self._metrics],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._updated = True  # what was saved does not tell
        self._terms = {name: Mean() for name in state["terms"]}
        for name, mean in self._terms.items():
            mean.load_state_dict(state["terms"][name])
        for (metric, *_), saved in zip(self._metrics, state["metrics"], strict=True):
            if self._terms and not saved and type(metric).state_dict is Metric.state_dict:
                warn(
                    f"The metric {metric.name!r} keeps its numbers where no checkpoint finds them, so those of this epoch so far "
                    "are lost. Keep them in tensors, numbers or an easytorch.Mean, or define state_dict() and load_state_dict()."
                )
            metric.load_state_dict(saved)


def loss_of(outputs: Any) -> Any:
    """Return the loss of what ``train_step`` returned.

    Raises:
        TypeError: If it is not a dict with the key ``"loss"``.
    """
    try:
        return outputs["loss"]
    except (KeyError, TypeError, IndexError):
        raise TypeError(
            f"train_step returned {describe(outputs)}, expected a dict with the key 'loss'. Return {{'loss': loss}} with a "
            "scalar tensor. All other values in the dict are logged."
        ) from None


RESERVED = ("loss", "lr", "epoch")  # in the logs


def _check_term(name: str, measured: Sequence[str]) -> None:
    if name in measured:
        raise ValueError(
            f"A step returned {name!r}, and compile(metrics=...) measures it too. Return it under another name, or take it out "
            "there."
        )
    if name in RESERVED and name != "loss":
        raise ValueError(
            f"A step returned {name!r}, a reserved name: the logs have another value under it. Return it under another name."
        )


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _scalar(name: str, value: Any) -> Scalar:
    if isinstance(value, Tensor):
        return value.detach() if value.ndim == 0 else value.detach().float().mean()  # one value for each sample
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"A step returned {describe(value)} as {name!r}, which is not a number to be logged.") from None


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{count}" if count else name)
    return unique
