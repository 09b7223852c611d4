"""The description of metrics: an expression of the sum of a batch, and what it is divided by."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easytorch._utils.registry import get_name
from easytorch._utils.rng import preserve_rng_state
from easytorch.losses.single_loss import SingleLoss
from easytorch.metrics.base import MeanMetric, Metric
from easytorch.metrics.epoch import EpochMetric
from easytorch.metrics.functional import BinaryHits, MulticlassHits, TopHits, absolute_error, square_root, squared_error
from easytorch.metrics.torchmetrics import NamedTorchMetric, TorchMetric
from easytorch.scripts.description import COUNTED, LABELS, SAMPLES, VALUES, MetricInfo, RunDescription
from easytorch.scripts.expressions import identifier, variable

if TYPE_CHECKING:
    from easytorch.model import Model
    from easytorch.scripts.describe import ExampleBatch

OBJECT, PAIR = "object", "pair"


def add_metrics(run: RunDescription, model: Model, batch: ExampleBatch | None) -> None:
    """Add the metrics of ``model`` to ``run``, with expressions if there is a first ``batch``."""
    names = model.metrics.evaluation_names
    functions = {run.loss.function: getattr(model.loss, "function", None)} if run.loss.is_custom else {}
    for name, entry in zip(names, model.metrics.entries, strict=True):
        in_training = not entry.is_validation_only
        if entry.is_weighted or entry.output is not None:
            run.refuse(
                f"the metric {name!r}, which uses sample weights or belongs to an output", "Pass it in metrics=[...]"
            )
            continue
        info = _describe_metric(run, name, entry.metric, model.loss, batch)
        if info is None:
            run.refuse(f"the metric {name!r}", "Pass a function f(y_pred, y), or an object of torchmetrics")
            continue
        function = getattr(entry.metric, "function", None)
        if info.function and functions.setdefault(info.function, function) is not function:
            run.refuse(f"two functions with the name {info.function!r}", "Rename one of them")
        run.metrics.append(dataclasses.replace(info, in_training=in_training))


def _describe_metric(
    run: RunDescription, name: str, metric: Metric, loss: Any, batch: ExampleBatch | None
) -> MetricInfo | None:
    """Return the description of ``metric``; None if it has none."""
    if isinstance(metric, (NamedTorchMetric, EpochMetric)):
        return None
    if not isinstance(metric, MeanMetric):
        is_integer = isinstance(metric, TorchMetric) and metric._rounds_targets
        return MetricInfo(name, "(targets > 0.5).long()" if is_integer else "targets", OBJECT, is_custom=True)
    if batch is None:
        return MetricInfo(name, "", SAMPLES, root=metric.finish is square_root)
    if not isinstance(batch.outputs, Tensor) or not isinstance(batch.y, Tensor) or not isinstance(loss, SingleLoss):
        return _custom_metric(name, metric, batch) if _is_custom(metric) else None
    y = copy.deepcopy(loss.targets)(batch.outputs, batch.y)
    find = BY_FUNCTION.get(type(metric.function))
    if find is not None:
        return find(run, name, metric.function, batch.outputs, y)
    if metric.function in (absolute_error, squared_error):
        return _error_metric(name, metric, batch.outputs, y)
    return _custom_metric(name, metric, batch._replace(y=y)) if _is_custom(metric) else None


def _is_custom(metric: MeanMetric) -> bool:
    return not isinstance(metric.function, functools.partial) and not str(
        getattr(metric.function, "__module__", type(metric.function).__module__)
    ).startswith("easytorch.")


def _multiclass(run: RunDescription, name: str, hits: MulticlassHits, outputs: Tensor, y: Tensor) -> MetricInfo:
    dimension = hits.class_dimension(outputs, y)
    if y.is_floating_point() and y.shape == outputs.shape:
        return MetricInfo(
            name, f"(outputs.argmax({dimension}) == targets.argmax({dimension})).sum().item()", _count(y[:, 0])
        )
    predicted = f"outputs.argmax({dimension})"
    target = "targets" if y.shape == outputs.select(dimension, 0).shape else f"targets.view_as({predicted})"
    return _counted(run, name, f"{predicted} == {target}", y)


def _top(run: RunDescription, name: str, hits: TopHits, outputs: Tensor, y: Tensor) -> MetricInfo:
    dimension = hits.class_dimension(outputs, y)
    largest = f"outputs.topk({min(hits.k, outputs.shape[dimension])}, dim={dimension}).indices"
    if y.is_floating_point() and y.shape == outputs.shape:
        target = f"targets.argmax({dimension}).unsqueeze({dimension})"
        return MetricInfo(name, f"({largest} == {target}).any({dimension}).sum().item()", _count(y[:, 0]))
    return _counted(run, name, f"{largest} == targets.unsqueeze({dimension})", y)


def _counted(run: RunDescription, name: str, hits: str, y: Tensor) -> MetricInfo:
    """Return a metric of hits, of which those with a label that is ignored do not count."""
    index = run.loss.ignore_index
    if index is None:
        return MetricInfo(name, f"({hits}).sum().item()", _count(y))
    mask = f"({hits}) & (targets != {index})" if index >= 0 else hits
    return MetricInfo(name, f"({mask}).sum().item()", COUNTED if run.loss.class_weight else LABELS)


def _binary(run: RunDescription, name: str, hits: BinaryHits, outputs: Tensor, y: Tensor) -> MetricInfo:
    is_logit = hits.criterion.family in (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
    probabilities = "outputs.sigmoid()" if is_logit else "outputs"
    target = "(targets > 0.5)" if y.shape == outputs.shape else "(targets > 0.5).view_as(outputs)"
    return MetricInfo(name, f"(({probabilities} > 0.5) == {target}).sum().item()", _count(y))


BY_FUNCTION: dict[type[Any], Callable[..., MetricInfo]] = {
    MulticlassHits: _multiclass,
    TopHits: _top,
    BinaryHits: _binary,
}


def _error_metric(name: str, metric: MeanMetric, outputs: Tensor, y: Tensor) -> MetricInfo | None:
    if outputs.is_complex() or y.is_complex():
        return None
    predicted = "outputs.view_as(targets)" if outputs.shape != y.shape and outputs.numel() == y.numel() else "outputs"
    end = ".abs()" if metric.function is absolute_error else ".square()"
    dtype = torch.result_type(outputs, y)
    options = "dtype=torch.float32" if dtype in (torch.float16, torch.bfloat16) else ""
    value = f"({predicted} - targets){end}.sum({options}).item()"
    return MetricInfo(name, value, _count(y), root=metric.finish is square_root)


def _count(y: Tensor) -> str:
    """Return what a sum over the values of ``y`` is divided by."""
    return SAMPLES if y.numel() == len(y) else VALUES


def _custom_metric(name: str, metric: MeanMetric, batch: ExampleBatch) -> MetricInfo | None:
    """Return the metric of a function of the user, which it calls with the first batch to see what it returns."""
    function = variable(get_name(metric.function), f"custom_{identifier(name)}")
    call = (
        f"{function}(outputs.detach(), targets)"
        if isinstance(batch.outputs, Tensor)
        else f"{function}(outputs, targets)"
    )
    info = functools.partial(MetricInfo, name, is_custom=True, function=function)
    with preserve_rng_state(), torch.no_grad():
        value = metric.function(batch.outputs, batch.y)
    if metric.finish is not None:
        return None
    if isinstance(value, tuple):
        return info(value=call, count=PAIR)
    if isinstance(value, Tensor) and value.ndim and (value.numel() > 1 or len(batch.y) == 1):
        # The mean over its values, which are one for each sample, or more.
        is_sample = value.numel() == len(batch.y)
        count = SAMPLES if is_sample else VALUES if value.numel() == batch.y.numel() else None
        return None if count is None else info(value=f"{call}.sum().item()", count=count)
    return info(value=f"float({call}) * len(targets)", count=SAMPLES)
