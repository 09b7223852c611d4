"""Metrics by name, function or object."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from easytorch._utils.api_hints import check_argument_order
from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean, get_name, quote_list, spellings, unknown_name_message
from easytorch.losses.criterion import Criterion, MultiOutputLoss
from easytorch.losses.keras import KERAS
from easytorch.metrics.base import MeanMetric, Metric
from easytorch.metrics.collection import RESERVED, MetricCollection
from easytorch.metrics.functional import ERRORS, BinaryHits, MulticlassHits, TopHits, with_target_shape
from easytorch.metrics.torchmetrics import TORCHMETRICS, NamedTorchMetric, TorchMetric, is_torchmetric


def resolve_metrics(metrics: Any, criterion: Criterion, weighted: Any = ()) -> MetricCollection:
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
    measures = MetricCollection([*found, *heavy], criterion)
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


def _check_names(names: list[str], reserved: set[str]) -> None:
    for name in names:
        if name in reserved or (name.startswith("val_") and name[4:] in {*reserved, *names}):
            raise ValueError(
                f"The name of the metric {name!r} is reserved: the logs have another value under it. Rename the function, or "
                "give the metric another name."
            )


def _by_output(metrics: Any, criterion: Criterion) -> list[tuple[Metric, str | None]]:
    if isinstance(metrics, Mapping) or (
        isinstance(criterion, MultiOutputLoss) and any(map(_listed, _as_list(metrics)))
    ):
        if not isinstance(criterion, MultiOutputLoss):
            raise ValueError(
                f"metrics by output, {describe(metrics)}, need losses by output. Pass loss={{output: ...}} too, or a "
                "plain list of metrics."
            )
        named = metrics if isinstance(metrics, Mapping) else _in_order(metrics, criterion)
        for name, some in named.items():
            if name not in criterion.losses and (some or name not in criterion.outputs):
                raise ValueError(
                    f"metrics name the output {name!r}, which has no loss.{did_you_mean(name, criterion.names)}"
                )
        return [
            (_resolve_one(metric, criterion.losses[name]), name)
            for name, some in named.items()
            if name in criterion.losses
            for metric in _as_list(some)
        ]
    listed = _as_list(metrics)
    if isinstance(criterion, MultiOutputLoss):
        criterion = _of_the_only_output(listed, criterion)
    return [(_resolve_one(metric, criterion), None) for metric in listed]


def _in_order(metrics: Sequence[Any], criterion: MultiOutputLoss) -> dict[str, Any]:
    if len(metrics) != criterion.count:
        raise ValueError(
            f"There are {criterion.count} outputs, but {len(metrics)} lists of metrics. Pass one for each; it may be empty."
        )
    return dict(zip(criterion.outputs, metrics, strict=True))


def _of_the_only_output(metrics: list[Any], criterion: MultiOutputLoss) -> Criterion:
    """Return the loss of the only output; of several, a name does not say which one it measures."""
    if criterion.count == 1 and criterion.names:
        return criterion.losses[criterion.names[0]]
    named = [metric for metric in metrics if isinstance(metric, str)]
    if named:
        each: Any = {criterion.outputs[0]: named}
        each = each if criterion.by_name else [named, *[[] for _ in criterion.outputs[1:]]]
        raise ValueError(
            f"The metric {named[0]!r} does not say which of the outputs, {quote_list(criterion.outputs)}, it measures. Pass a list "
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
        named.takes_all_outputs = False
        return named
    if isinstance(metric, Metric):
        check_argument_order("metric", metric.name, metric.update)
        return metric
    if is_torchmetric(metric):
        if not hasattr(metric, "_defaults"):
            raise TypeError(f"{metric!r} holds several metrics. Pass them one by one.")
        check_argument_order("metric", type(metric).__name__, metric.update)
        return TorchMetric(metric, criterion)
    if isinstance(metric, type):
        raise TypeError(
            f"Expected a metric, received the class {metric.__name__}. Make an object of it: {metric.__name__}()."
        )
    if callable(metric):
        check_argument_order("metric", get_name(metric), metric)
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
        return MeanMetric(functools.partial(with_target_shape, KERAS[name]), typed, "min")
    raise ValueError(
        unknown_name_message(
            "metric",
            typed,
            NAMES,
            near=did_you_mean(name, NAMES),
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
