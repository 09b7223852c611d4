"""Metrics by name, function or object."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from easytorch._utils.api_errors import check_argument_order
from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean, get_name, quote_list, spellings, unknown_name_message
from easytorch._utils.warnings import warn
from easytorch.losses.criterion import Criterion
from easytorch.losses.keras import KERAS
from easytorch.losses.loss_arguments import LossArguments
from easytorch.losses.module_loss import ModuleLoss
from easytorch.losses.multi_output_loss import MultiOutputLoss
from easytorch.metrics.base import MeanMetric, Metric
from easytorch.metrics.collection import RESERVED, MetricCollection, MetricEntry
from easytorch.metrics.epoch import EpochMetric, find_epoch_function, unwrap
from easytorch.metrics.functional import ERRORS, BinaryHits, MulticlassHits, TopHits, with_target_shape
from easytorch.metrics.torchmetrics import (
    AVERAGED,
    AVERAGES,
    TORCHMETRICS,
    NamedTorchMetric,
    TorchMetric,
    is_torchmetric,
)

ACCURACIES = ("accuracy", "acc", "multiclass_accuracy", "binary_accuracy", "top_5_accuracy")
# Names in Keras of the accuracies above.
KERAS_ACCURACIES = ("categorical_accuracy", "sparse_categorical_accuracy")
KERAS_TOP_5 = ("top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy")
# Losses by other names.
KERAS_METRICS = {**KERAS, "log_cosh_error": KERAS["log_cosh"], "mean_squared_log_error": KERAS["msle"]}
AVERAGED_NAMES = {f"{name}_{average}": (name, average) for name in AVERAGED for average in AVERAGES}
NAMES = tuple(
    dict.fromkeys(
        [*ACCURACIES, *ERRORS, *KERAS_ACCURACIES, *KERAS_TOP_5, *TORCHMETRICS, *KERAS_METRICS, *AVERAGED_NAMES]
    )
)
# Losses of a regression, which has no accuracy.
REGRESSION_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.GaussianNLLLoss, nn.PoissonNLLLoss)
REGRESSION_KERAS = (
    "mape",
    "mean_absolute_percentage_error",
    "msle",
    "mean_squared_logarithmic_error",
    "log_cosh",
    "poisson",
)


def resolve_metrics(
    metrics: Any, criterion: Criterion, weighted: Any = (), validation_only: Sequence[str] = ()
) -> MetricCollection:
    """Return the metrics for the arguments of ``compile``.

    Args:
        metrics: A list of names, functions ``f(y_pred, y)``, ``Metric`` or torchmetrics objects. For several outputs, a
            dict of such lists by output, or a list of lists, one per output.
        criterion: The loss, which determines what ``"accuracy"`` means.
        weighted: Metrics that receive the sample weights, in the same forms.
        validation_only: Names in the logs of the metrics that are measured in evaluations only.

    Raises:
        ValueError: If a name is unknown, or if the loss does not determine its meaning.
        TypeError: If a metric has another type.
    """
    entries = [MetricEntry(metric, output, False) for metric, output in _resolve(metrics, criterion)]
    weighted_entries = [MetricEntry(metric, output, True) for metric, output in _resolve(weighted, criterion)]
    _check_distinct([entry.metric for entry in (*entries, *weighted_entries)])
    names = {entry.metric.name for entry in entries}
    for entry in weighted_entries:
        metric = entry.metric
        if isinstance(metric, TorchMetric):
            raise ValueError(
                f"weighted_metrics= has the torchmetrics metric {metric.name!r}, which takes no sample weights. Pass it in "
                "metrics=, or pass a function that returns one value per sample."
            )
        metric.name = f"weighted_{metric.name}" if metric.name in names else metric.name
    collection = MetricCollection([*entries, *weighted_entries], criterion)
    _check_names(collection.names, {*RESERVED, *criterion.term_names()})
    if not validation_only:
        return collection
    only = _check_validation_only(validation_only, collection.names)
    flagged = [
        entry._replace(is_validation_only=name in only)
        for name, entry in zip(collection.names, [*entries, *weighted_entries], strict=True)
    ]
    return MetricCollection(flagged, criterion)


def _check_validation_only(names: Any, known: Sequence[str]) -> set[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"validation_only must be a list of names of metrics, received {names!r}. Pass metrics=['f1_macro'] and "
            "validation_only=['f1_macro']."
        )
    for name in names:
        if name not in known:
            raise ValueError(
                f"validation_only has {name!r}, which is no metric.{did_you_mean(name, known)} Pass names that the logs have: "
                f"{quote_list(known)}."
            )
    return set(names)


def _check_distinct(metrics: Sequence[Metric]) -> None:
    """Raise an error if one object is passed for two metrics, which would mix their values."""
    objects = [metric.metric or metric if isinstance(metric, TorchMetric) else metric for metric in metrics]
    # Compare by identity, because torchmetrics objects overload ==.
    ids = [id(value) for value in objects]
    for metric, value in zip(metrics, ids, strict=True):
        if ids.count(value) > 1:
            raise ValueError(
                f"The metric object {metric.name!r} was passed twice, so it would mix two values. Create one object for each."
            )


def _check_names(names: list[str], reserved: set[str]) -> None:
    for name in names:
        if name in reserved or (name.startswith("val_") and name[4:] in {*reserved, *names}):
            raise ValueError(
                f"The name of the metric {name!r} is reserved: the logs have another value under it. Rename the function, or "
                "give the metric another name."
            )


# Metrics by output


def _resolve(metrics: Any, criterion: Criterion) -> list[tuple[Metric, str | None]]:
    """Return each metric and the output that it measures, None for all outputs."""
    items = _as_list(metrics)
    if isinstance(metrics, Mapping) or (isinstance(criterion, MultiOutputLoss) and any(map(_is_list, items))):
        return _resolve_by_output(metrics, criterion)
    if isinstance(criterion, MultiOutputLoss):
        criterion = _loss_of_only_output(items, criterion)
    return [(_resolve_metric(metric, criterion), None) for metric in items]


def _resolve_by_output(metrics: Any, criterion: Criterion) -> list[tuple[Metric, str | None]]:
    if not isinstance(criterion, MultiOutputLoss):
        raise ValueError(
            f"metrics by output, {describe(metrics)}, need losses by output. Pass loss={{output: ...}} too, or a "
            "plain list of metrics."
        )
    by_output = metrics if isinstance(metrics, Mapping) else _name_lists(metrics, criterion)
    for output, items in by_output.items():
        # An empty list is valid for an output without a loss.
        if output not in criterion.losses and (items or output not in criterion.outputs):
            raise ValueError(
                f"metrics= has metrics for the output {output!r}, which has no loss.{did_you_mean(output, criterion.names)} Pass "
                f"metrics for {quote_list(criterion.names)}."
            )
    return [
        (_resolve_metric(metric, criterion.losses[output]), output)
        for output, items in by_output.items()
        if output in criterion.losses
        for metric in _as_list(items)
    ]


def _name_lists(metrics: Sequence[Any], criterion: MultiOutputLoss) -> dict[str, Any]:
    """Return the lists of metrics by name of their output."""
    if len(metrics) != criterion.count:
        raise ValueError(
            f"There are {criterion.count} outputs, but {len(metrics)} lists of metrics. Pass one list per output, such as [] "
            "for none."
        )
    return dict(zip(criterion.outputs, metrics, strict=True))


def _loss_of_only_output(metrics: list[Any], criterion: MultiOutputLoss) -> Criterion:
    """Return the loss of the only output.

    Raises:
        ValueError: If there are several outputs and a metric is a name, whose output is unknown.
    """
    if criterion.count == 1 and criterion.names:
        return criterion.losses[criterion.names[0]]
    names = [metric for metric in metrics if isinstance(metric, str)]
    if not names:
        return criterion
    example: Any = {criterion.outputs[0]: names}
    if not criterion.by_name:
        example = [names, *[[] for _ in criterion.outputs[1:]]]
    raise ValueError(
        f"The metric {names[0]!r} could measure any of the outputs, {quote_list(criterion.outputs)}. Pass one list per output, "
        f"such as metrics={example!r}."
    )


def _as_list(metrics: Any) -> list[Any]:
    return [] if metrics is None else list(metrics) if _is_list(metrics) else [metrics]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


# One metric


def _resolve_metric(metric: Any, criterion: Criterion) -> Metric:
    if isinstance(metric, str):
        by_name = _find_by_name(metric, criterion)
        by_name.takes_all_outputs = False
        return by_name
    if isinstance(metric, EpochMetric):
        return metric.bind(criterion)
    if isinstance(metric, Metric):
        check_argument_order("metric", metric.name, metric.update)
        return metric
    if is_torchmetric(metric):
        if not hasattr(metric, "_defaults"):
            raise TypeError(
                f"metrics= expects one metric per item, received several in {metric!r}. Pass each one itself."
            )
        check_argument_order("metric", type(metric).__name__, metric.update)
        return TorchMetric(metric, criterion)
    if isinstance(metric, type):
        raise TypeError(
            f"metrics= expects objects, received the class {metric.__name__}. Create the object: {metric.__name__}()."
        )
    if callable(metric):
        _check_is_mean(metric)
        check_argument_order("metric", get_name(metric), metric)
        further = LossArguments.of_metric(get_name(metric), metric)
        return MeanMetric(metric, further_arguments=further)
    raise TypeError(
        f"Expected a metric, received {metric!r}. Pass a name such as 'accuracy', a function f(y_pred, y), an "
        "easytorch.Metric or a torchmetrics object."
    )


def _check_is_mean(function: Any) -> None:
    """Raise an error for a function of scikit-learn, and warn about a function that calls one that is not a mean."""
    title, plain = get_name(function), unwrap(function)
    if str(getattr(plain, "__module__", "")).startswith("sklearn.metrics"):
        raise ValueError(
            f"{title} of scikit-learn takes (y_true, y_pred), arrays of all samples, but a function in metrics= is called with "
            f"each batch. Pass easytorch.EpochMetric({title})."
        )
    name = find_epoch_function(plain)
    if name is not None:
        warn(
            f"The metric {title!r} calls {name} of scikit-learn on each batch. The mean of the batches is not its value over the "
            f"epoch. Pass easytorch.EpochMetric({name}, ...), which gets all samples."
        )


def _find_by_name(name: str, criterion: Criterion) -> Metric:
    key = next((spelling for spelling in spellings(name) if spelling in NAMES), spellings(name)[0])
    if key in AVERAGED_NAMES:
        key, average = AVERAGED_NAMES[key]
        return _torchmetrics_metric(name, TORCHMETRICS[key], criterion, average)
    if key in TORCHMETRICS:
        return _torchmetrics_metric(name, TORCHMETRICS[key], criterion)
    if (accuracy := _accuracy(name, key, criterion)) is not None:
        return accuracy
    if key in ERRORS:
        function, finish = ERRORS[key]
        return MeanMetric(function, name, "min", finish)
    if key in KERAS_METRICS:
        return MeanMetric(functools.partial(with_target_shape, KERAS_METRICS[key]), name, "min")
    raise ValueError(
        unknown_name_message(
            "metric",
            name,
            NAMES,
            near=did_you_mean(key, NAMES),
            otherwise="a function f(y_pred, y), an easytorch.Metric or a torchmetrics object",
            common=("accuracy", "top_5_accuracy", "f1", "auroc", "mae", "rmse", "r2"),
            full_list="easytorch.metrics.NAMES",
        )
    )


def _accuracy(name: str, key: str, criterion: Criterion) -> Metric | None:
    """Return the accuracy for ``key``, None if it is another metric."""
    if key in ("accuracy", "acc"):
        if _is_regression(criterion):
            raise ValueError(
                f"The loss, {criterion!r}, compares numbers, and a regression has no accuracy. Use 'mae', 'rmse' or 'r2' instead "
                f"of {name!r}. For classes, choose a loss such as 'cross_entropy'."
            )
        if criterion.kind is None:
            _check_has_loss(name, criterion)
            raise ValueError(
                f"The loss determines what {name!r} means, but it cannot be inferred from {criterion!r}. Pass "
                "'multiclass_accuracy' (the largest output is the prediction) or 'binary_accuracy' (probabilities above 0.5)."
            )
        key = f"{criterion.kind}_accuracy"
    if key in ("multiclass_accuracy", *KERAS_ACCURACIES):
        return MeanMetric(MulticlassHits(criterion), name, "max")
    if key == "binary_accuracy":
        return MeanMetric(BinaryHits(criterion), name, "max")
    match = re.fullmatch(r"top_([1-9]\d*)_accuracy", "top_5_accuracy" if key in KERAS_TOP_5 else key)
    return MeanMetric(TopHits(int(match[1]), criterion), name, "max") if match else None


def _check_has_loss(name: str, criterion: Criterion) -> None:
    """Raise a ``ValueError`` if ``compile`` got no loss, since the module or a custom step computes it."""
    if isinstance(criterion, ModuleLoss):
        raise ValueError(
            f"The loss determines what {name!r} means, but compile() got none. If the module or train_step computes the loss, "
            "pass the metric itself, such as 'multiclass_accuracy', 'binary_accuracy' or an easytorch.Metric, and call "
            f"self.metrics.update(y_pred, y) in a custom step. Or log it in the step: {{'loss': loss, {name!r}: value}}."
        )


def _is_regression(criterion: Criterion) -> bool:
    function = getattr(criterion, "function", None)
    return criterion.family in REGRESSION_LOSSES or any(KERAS[name] is function for name in REGRESSION_KERAS)


def _torchmetrics_metric(name: str, path: str, criterion: Criterion, average: str | None = None) -> Metric:
    if "classification" in path and criterion.kind is None:
        _check_has_loss(name, criterion)
        raise ValueError(
            f"{name!r} needs a classification task, but it cannot be inferred from the loss, {criterion!r}. Pass the "
            "torchmetrics object itself, for example torchmetrics.classification.MulticlassF1Score(num_classes=10)."
        )
    return NamedTorchMetric(name, path, criterion, average)
