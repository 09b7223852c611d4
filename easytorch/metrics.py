"""All that is measured, by name or by object: weighted by true sample counts, on the device until somebody reads it."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from easytorch._utils.api_hints import check_order
from easytorch._utils.pytree import describe, map_leaves
from easytorch._utils.registry import name_of, nearest, quoted, spellings, unknown
from easytorch._utils.warnings import warn
from easytorch.distributed.process_group import Alone
from easytorch.logs import Logs, Mean, Scalar
from easytorch.losses.criterion import Criterion, SeveralLosses
from easytorch.losses.keras import KERAS
from easytorch.metric import ERRORS, BinaryHits, MeanMetric, Metric, MulticlassHits, TopHits, of_alike
from easytorch.torchmetric import TORCHMETRICS, NamedTorchMetric, TorchMetric, is_torchmetric


class Metrics:
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
        self.processes = Alone()  # those who measure, while they train

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch with every metric; nothing waits for the device."""
        if not self._metrics or self.processes.idle:
            return
        self._updated = True
        y_pred = y_pred.detach() if isinstance(y_pred, Tensor) else map_leaves(_detached, y_pred)
        parts = [self.criterion.part(y_pred, y, output) for _, output, _ in self._metrics]
        for (metric, output, weighted), (part, target) in zip(self._metrics, parts, strict=True):
            part = part if metric.takes_all else self.criterion.prediction(part, output)
            metric.update(part, target, self.criterion.weight(sample_weight, output) if weighted else None)

    def record(self, terms: Mapping[str, Any], size: int) -> None:
        """Count what a step returned, each value the mean of ``size`` samples."""
        if self.processes.idle:
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

    def fresh(self) -> Metrics:
        """Return a copy that has measured nothing, for another pass at the same time."""
        twins = [(metric.fresh(), output, weighted) for metric, output, weighted in self._metrics]
        fresh = Metrics(twins, self.criterion)
        fresh._told = self._told
        return fresh

    def settle(self) -> None:
        """Sum up what waits to be summed: the pass is over, and what was measured is sent to other processes."""
        for mean in self._terms.values():
            mean.settle()
        for metric, *_ in self._metrics:
            metric.settle()

    def merged(self, states: Sequence[Mapping[str, Any]]) -> Metrics:
        """Return a copy that has measured what those of several processes have, given the ``state_dict`` of each."""
        self._tell_of_idle()
        whole = self.fresh()
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
            hint = nearest(bare, {"loss", *self.names} - {bare})
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


def resolve_metrics(metrics: Any, criterion: Criterion, weighted: Any = ()) -> Metrics:
    """Return the metrics for what the user passed to ``compile``.

    Args:
        metrics: A list of names, functions ``f(y_pred, y)``, ``Metric`` or torchmetrics objects. For several outputs a
            dict of such lists by output, or a list of lists, one for each output.
        criterion: The loss; it tells what ``"accuracy"`` means.
        weighted: Metrics, in the same forms, that take the sample weights into account.

    Raises:
        ValueError: If a name is unknown, or cannot be resolved from the loss.
        TypeError: If something is none of these.
    """
    found = [(*one, False) for one in _by_output(metrics, criterion)]
    heavy = [(*one, True) for one in _by_output(weighted, criterion)]
    _check_own([metric for metric, *_ in (*found, *heavy)])
    for metric, _, _ in heavy:
        if isinstance(metric, TorchMetric):
            raise ValueError(
                f"The metric {metric.name!r} is one of torchmetrics, which takes no sample weights. Pass it in metrics=, "
                "or pass a function that returns one value for each sample."
            )
        metric.name = f"weighted_{metric.name}" if metric.name in {m.name for m, *_ in found} else metric.name
    measures = Metrics([*found, *heavy], criterion)
    _check_names(measures.names, {*RESERVED, *criterion.term_names()})
    return measures


def _check_own(metrics: Sequence[Metric]) -> None:
    """Raise a ``ValueError`` if one object is to measure two things, which would be mixed in it."""
    measured = [metric.metric or metric if isinstance(metric, TorchMetric) else metric for metric in metrics]
    for metric, one in zip(metrics, measured, strict=True):
        if sum(other is one for other in measured) > 1:
            raise ValueError(
                f"The metric {metric.name!r} was passed twice, and one object would mix both in one number. Make an object for "
                "each."
            )


RESERVED = ("loss", "lr", "epoch")  # in the logs


def _check_names(names: list[str], reserved: set[str]) -> None:
    for name in names:
        if name in reserved or (name.startswith("val_") and name[4:] in {*reserved, *names}):
            raise ValueError(
                f"The name of the metric {name!r} is reserved: the logs have another value under it. Rename the function, or "
                "give the metric another name."
            )


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


def _by_output(metrics: Any, criterion: Criterion) -> list[tuple[Metric, str | None]]:
    if isinstance(metrics, Mapping) or (isinstance(criterion, SeveralLosses) and any(map(_listed, _as_list(metrics)))):
        if not isinstance(criterion, SeveralLosses):
            raise ValueError(
                f"metrics by output, {describe(metrics)}, need losses by output. Pass loss={{output: ...}} too, or a "
                "plain list of metrics."
            )
        named = metrics if isinstance(metrics, Mapping) else _in_order(metrics, criterion)
        for name, some in named.items():
            if name not in criterion.losses and (some or name not in criterion.outputs):
                raise ValueError(
                    f"metrics name the output {name!r}, which has no loss.{nearest(name, criterion.names)}"
                )
        return [
            (_resolve_one(metric, criterion.losses[name]), name)
            for name, some in named.items()
            if name in criterion.losses
            for metric in _as_list(some)
        ]
    listed = _as_list(metrics)
    if isinstance(criterion, SeveralLosses):
        criterion = _of_the_only_output(listed, criterion)
    return [(_resolve_one(metric, criterion), None) for metric in listed]


def _in_order(metrics: Sequence[Any], criterion: SeveralLosses) -> dict[str, Any]:
    if len(metrics) != criterion.count:
        raise ValueError(
            f"There are {criterion.count} outputs, but {len(metrics)} lists of metrics. Pass one for each; it may be empty."
        )
    return dict(zip(criterion.outputs, metrics, strict=True))


def _of_the_only_output(metrics: list[Any], criterion: SeveralLosses) -> Criterion:
    """Return the loss of the only output; of several, a name does not say which one it measures."""
    if criterion.count == 1 and criterion.names:
        return criterion.losses[criterion.names[0]]
    named = [metric for metric in metrics if isinstance(metric, str)]
    if named:
        each: Any = {criterion.outputs[0]: named}
        each = each if criterion.by_name else [named, *[[] for _ in criterion.outputs[1:]]]
        raise ValueError(
            f"The metric {named[0]!r} does not say which of the outputs, {quoted(criterion.outputs)}, it measures. Pass a list "
            f"for each, such as metrics={each!r}."
        )
    return criterion


def _as_list(metrics: Any) -> list[Any]:
    return [] if metrics is None else list(metrics) if _listed(metrics) else [metrics]


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _resolve_one(metric: Any, criterion: Criterion) -> Metric:
    if isinstance(metric, str):
        named = _by_name(metric, criterion)
        named.takes_all = False
        return named
    if isinstance(metric, Metric):
        check_order("metric", metric.name, metric.update)
        return metric
    if is_torchmetric(metric):
        if not hasattr(metric, "_defaults"):
            raise TypeError(f"{metric!r} holds several metrics. Pass them one by one.")
        check_order("metric", type(metric).__name__, metric.update)
        return TorchMetric(metric, criterion)
    if isinstance(metric, type):
        raise TypeError(
            f"Expected a metric, received the class {metric.__name__}. Make an object of it: {metric.__name__}()."
        )
    if callable(metric):
        check_order("metric", name_of(metric), metric)
        return MeanMetric(metric)
    raise TypeError(
        f"Expected a metric, received {metric!r}. Pass a name such as 'accuracy', a function f(y_pred, y), an "
        "easytorch.Metric or a torchmetrics object."
    )


MULTICLASS = ("multiclass_accuracy", "categorical_accuracy", "sparse_categorical_accuracy")
LEAN = ("accuracy", "acc", "multiclass_accuracy", "binary_accuracy", "top_5_accuracy", *ERRORS)
TOP_5 = ("top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy")  # as Keras has them by default
OF_KERAS = ("categorical_accuracy", "sparse_categorical_accuracy", *TOP_5)
NAMES = tuple(dict.fromkeys([*LEAN, *OF_KERAS, *TORCHMETRICS, *KERAS]))


def _by_name(typed: str, criterion: Criterion) -> Metric:
    name = next((name for name in spellings(typed) if name in NAMES), spellings(typed)[0])
    if name in TORCHMETRICS:
        return _of_torchmetrics(typed, TORCHMETRICS[name], criterion)
    if name in ("accuracy", "acc"):
        name = _counted_accuracy(typed, criterion)
    if name in MULTICLASS:
        return MeanMetric(MulticlassHits(criterion.ignored), typed, "max")
    if name == "binary_accuracy":
        return MeanMetric(BinaryHits(criterion), typed, "max")
    if top := re.fullmatch(r"top_([1-9]\d*)_accuracy", "top_5_accuracy" if name in TOP_5 else name):
        return MeanMetric(TopHits(int(top[1]), criterion.ignored), typed, "max")
    if name in ERRORS:
        function, finish = ERRORS[name]
        return MeanMetric(function, typed, "min", finish)
    if name in KERAS:
        return MeanMetric(functools.partial(of_alike, KERAS[name]), typed, "min")
    raise ValueError(
        unknown(
            "metric",
            typed,
            NAMES,
            near=nearest(name, NAMES),
            otherwise="a function f(y_pred, y), an easytorch.Metric or a torchmetrics object",
            common=("accuracy", "top_5_accuracy", "f1", "auroc", "mae", "rmse", "r2"),
            whole="easytorch.metrics.NAMES",
        )
    )


def _counted_accuracy(typed: str, criterion: Criterion) -> str:
    """Return the name of the accuracy that goes with the loss."""
    if criterion.kind is None:
        raise ValueError(
            f"{typed!r} is resolved from the loss, but {criterion!r} does not tell what is counted. Name it: "
            "'multiclass_accuracy' (the largest output wins) or 'binary_accuracy' (probabilities above 0.5)."
        )
    return f"{criterion.kind}_accuracy"


def _of_torchmetrics(typed: str, path: str, criterion: Criterion) -> Metric:
    if "classification" in path and criterion.kind is None:
        raise ValueError(
            f"{typed!r} needs to know the task, but {criterion!r} does not tell it. Pass the torchmetrics object itself, "
            "for example torchmetrics.classification.MulticlassF1Score(num_classes=10)."
        )
    return NamedTorchMetric(typed, path, criterion)


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
