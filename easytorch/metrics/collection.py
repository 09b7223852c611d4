"""All values that are logged: the terms of the loss and the metrics."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from easytorch._utils.pytree import describe, map_leaves
from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn
from easytorch.data.batch import Window, divide
from easytorch.data.sample_weights import check_is_weight
from easytorch.losses.criterion import Criterion
from easytorch.metrics.aggregation import LazyLogs, Mean, Scalar, Sum
from easytorch.metrics.base import MeanMetric, Metric

# Names in the logs that no metric may have.
RESERVED = ("loss", "lr", "epoch")
# Numbers of one metric that are logged, such as the entries of a confusion matrix of 20 classes.
MAX_ENTRIES = 400
# Errors of compute() that depend on the data, such as too few samples.
NOT_COMPUTABLE = (ValueError, RuntimeError, ZeroDivisionError, IndexError)
# Warnings of a fit.
NOTHING_COUNTS = "nothing counts"
ZERO_LOSS = "zero loss"
NO_METRIC = "a metric counts nothing"


def loss_of(outputs: Any) -> Any:
    """Return the loss in the ``outputs`` of a training step: a scalar, or a pair ``(sum, count)``.

    Raises:
        TypeError: If ``outputs`` is not a dict with ``"loss"``.
    """
    # torch would warn of this index of a tensor.
    if not isinstance(outputs, Tensor):
        with contextlib.suppress(KeyError, TypeError, IndexError):
            return outputs["loss"]
    raise TypeError(
        f"train_step returned {describe(outputs)}, which has no 'loss'. Return a dict with a scalar tensor to optimize: "
        "{'loss': loss}. Other values in the dict are logged."
    )


class MetricEntry(NamedTuple):
    """A metric and what it measures.

    Attributes:
        metric: The metric.
        output: Name of the output that it measures, None for all outputs.
        is_weighted: Whether it receives the sample weights.
        is_validation_only: Whether it is measured in evaluations only, and not in training.
    """

    metric: Metric
    output: str | None
    is_weighted: bool
    is_validation_only: bool = False


class MetricCollection:
    """The terms of the loss and the metrics, in the order of ``compile``.

    Args:
        entries: The metrics and what each one measures.
        criterion: The loss, which selects predictions and targets for each metric.
        evaluates: Whether the pass is an evaluation, which measures all metrics.

    Attributes:
        names: Name of each metric of the pass in the logs.
        evaluation_names: Name of each metric of an evaluation in the logs.
        logs: The current values, by name, as floats.
        window: The batches of the current update. The model sets it; batches that are padding are not measured.
        batch: The current batch of an evaluation, which has no window.
        outputs: What the last step returned, until the next step.
        data_sets: The names of the validation data of the last fit, if there are several.
    """

    def __init__(self, entries: Sequence[MetricEntry], criterion: Criterion, evaluates: bool = False) -> None:
        self.criterion, self.evaluates = criterion, evaluates
        self.evaluation_names = _unique(
            [f"{entry.output}_{entry.metric.name}" if entry.output else entry.metric.name for entry in entries]
        )
        measured = [evaluates or not entry.is_validation_only for entry in entries]
        self.names = list(itertools.compress(self.evaluation_names, measured))
        self.logs = LazyLogs(self._values, self._value)
        self.window = Window()
        self.batch: Any = None
        self.outputs: Any = None
        self.data_sets: tuple[str, ...] = ()
        self._is_paused = False
        self._all_entries = list(entries)
        self._entries = list(itertools.compress(entries, measured))
        self._terms: dict[str, Mean] = {}
        # Whether update() was called since the last reset.
        self._is_updated = False
        # The warnings of this fit. Copies for validation share the set, so that each warning appears once.
        self._warnings: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which holds no data."""
        return vars(self) | {"window": Window(), "batch": None, "outputs": None}

    def release(self) -> None:
        """Forget the current batches and outputs."""
        self.window, self.batch, self.outputs = Window(), None, None

    @property
    def entries(self) -> list[MetricEntry]:
        """All metrics, also those that are measured in evaluations only, in the order of ``evaluation_names``."""
        return list(self._all_entries)

    def current_batches(self) -> list[Any]:
        """Return the batches of the current step; empty if no step runs."""
        return list(self.window) if self.batch is None else [self.batch]

    def current_outputs(self) -> Any:
        """Return what the last step returned, without gradients; None if there was no step."""
        return map_leaves(_detach, self.outputs)

    def bind(self, model: Any) -> None:
        """Let functions with further parameters use ``model``, and keep the entries that they take out of its inputs."""
        for arguments in (entry.metric.further_arguments for entry in self._all_entries):
            if arguments is not None:
                arguments.model = model
                self.criterion.entries |= arguments.entries

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None, batch: Any = None) -> None:
        """Measure one batch with every metric, without waiting for the device.

        Args:
            y_pred: The outputs of the module.
            y: The targets.
            sample_weight: The sample weights, or None.
            batch: The batch on the device, for functions that have further parameters.
        """
        if not self._entries or self.window.is_padding or self._is_paused:
            return
        is_first, self._is_updated = not self._is_updated, True
        if sample_weight is not None:
            check_is_weight(sample_weight)
        y_pred = y_pred.detach() if isinstance(y_pred, Tensor) else map_leaves(_detach, y_pred)
        y = self.criterion.convert_targets(y_pred, y)
        for metric, output, is_weighted, _ in self._entries:
            prediction, target = self.criterion.select(y_pred, y, output)
            if not metric.takes_all_outputs and not isinstance(prediction, Tensor):
                prediction = self.criterion.compared_prediction(prediction, output)
            weight = self.criterion.select_weight(sample_weight, output) if is_weighted else None
            if is_first:
                metric.check(prediction, target)
            arguments = metric.further_arguments
            further = {} if arguments is None else arguments.values(batch, sample_weight)
            self._update_metric(metric, prediction, target, weight, further)

    def _update_metric(
        self, metric: Metric, y_pred: Any, y: Any, sample_weight: Any, further: Mapping[str, Any]
    ) -> None:
        """Measure one batch with one metric; diagnostics reads these arguments from the frame if it fails."""
        metric.update(y_pred, y, sample_weight, **further)

    def record(self, terms: Mapping[str, Any], size: int, prefix: str = "") -> None:
        """Add what a step returned.

        Args:
            terms: Values by name, each the mean of the batch, or a pair ``(sum, count)``.
            size: Number of samples of the batch, by which means are weighted unless the loss has divided by another count.
            prefix: What the names get in the logs.

        Raises:
            TypeError: If ``terms`` is no dict.
        """
        if type(terms) is not dict and not isinstance(terms, Mapping):
            raise TypeError(
                f"A step returned {describe(terms)}, expected a dict. Return the loss and other values to log by name from "
                "train_step and test_step: {'loss': loss}."
            )
        counts = self.criterion.take_counts()
        self.outputs = terms
        if self.window.is_padding or self._is_paused:
            return
        for name, value in terms.items():
            scalar: Scalar
            # A tensor without dimensions is by far the most frequent value.
            if isinstance(value, Tensor) and not value.ndim:
                scalar, count = value.detach(), counts.get(name, size)
            elif isinstance(value, tuple) and len(value) == 2:
                scalar, count = _divide_pair(name, value)
            else:
                scalar, count = _to_scalar(name, value), counts.get(name, size)
            key = f"{prefix}{name}" if prefix else name
            mean = self._terms.get(key) or self._new_term(key, is_sum=count is None)
            # What a loss of several outputs adds to the sum of its terms, which are averaged separately.
            if len(terms) > 1 and key == "loss":
                scalar = self._remainder(scalar, terms)
            mean.add(scalar, size if count is None else count)

    def _new_term(self, name: str, is_sum: bool) -> Mean:
        _check_term(name, self.names)
        self._terms[name] = mean = Sum() if is_sum else Mean()
        return mean

    def _remainder(self, loss: Scalar, terms: Mapping[str, Any]) -> Scalar:
        total = self.criterion.sum_of_terms(terms)
        return loss if total is None else loss - (total.detach() if isinstance(total, Tensor) else total)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Measure nothing inside with the metrics."""
        previous, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = previous

    def compute(self) -> dict[str, Scalar]:
        """Return all values at the end of a pass, as scalars that may be on the device."""
        self._warn_about_unused_metrics()
        self._warn_if_nothing_counts()
        return self._values(is_final=True)

    def reset(self) -> None:
        """Remove everything measured so far."""
        if not self._terms:
            # A new fit starts, so its warnings appear again.
            self._warnings.clear()
        self._terms, self._is_updated, self.outputs = {}, False, None
        for entry in self._entries:
            entry.metric.reset()

    def new_copy(self, *, evaluates: bool | None = None) -> MetricCollection:
        """Return a copy without measurements, for another pass at the same time.

        Args:
            evaluates: Whether that pass is an evaluation; None if it is of the same kind.
        """
        entries = [entry._replace(metric=entry.metric.new_copy()) for entry in self._all_entries]
        metrics = MetricCollection(entries, self.criterion, self.evaluates if evaluates is None else evaluates)
        metrics._warnings, metrics.data_sets = self._warnings, self.data_sets
        return metrics

    def flush(self) -> None:
        """Sum the waiting values, before the state is sent to other ranks."""
        for mean in self._terms.values():
            mean.flush()
        for entry in self._entries:
            entry.metric.flush()

    def merged(self, states: Sequence[Mapping[str, Any]]) -> MetricCollection:
        """Return a copy with the measurements of all ranks, given the ``state_dict`` of each."""
        self._warn_about_unused_metrics()
        metrics = self.new_copy()
        metrics._is_updated = True
        for name in dict.fromkeys(name for state in states for name in state["terms"]):
            metrics._terms[name] = Sum() if name in states[0].get("sums", ()) else Mean()
            metrics._terms[name].merge([state["terms"][name] for state in states if name in state["terms"]])
        for i, entry in enumerate(metrics._entries):
            entry.metric.merge([state["metrics"][i] for state in states])
        return metrics

    def mode(self, name: str) -> str:
        """Return ``"max"`` if a higher value of ``name`` is better, ``"min"`` if a lower one is.

        Raises:
            ValueError: If it is unknown.
        """
        metric_name = self.training_name(name)
        modes = dict(zip(self.evaluation_names, (entry.metric.mode for entry in self._all_entries), strict=True))
        is_loss = metric_name == "loss" or metric_name.endswith("_loss")
        # "f1_2" is an entry of "f1".
        mode = modes.get(metric_name, modes.get(re.sub(r"(_\d+)+$", "", metric_name))) or ("min" if is_loss else None)
        if mode is None:
            hint = did_you_mean(metric_name, {"loss", *self.evaluation_names} - {metric_name})
            raise ValueError(
                f"It is unknown whether higher or lower values of {name!r} are better.{hint} Pass mode='min' or mode='max'."
            )
        return mode

    def training_name(self, name: str) -> str:
        """Return ``name`` without the prefix of a validation: ``accuracy`` for ``val_clean_accuracy``."""
        prefixes = (f"val_{data_set}_" for data_set in sorted(self.data_sets, key=len, reverse=True))
        return name.removeprefix(next(filter(name.startswith, prefixes), "val_"))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint within a pass."""
        return {
            "names": self.names,
            "terms": {name: mean.state_dict() for name, mean in self._terms.items()},
            "sums": [name for name, mean in self._terms.items() if isinstance(mean, Sum)],
            "metrics": [entry.metric.state_dict() for entry in self._entries],
        }

    def snapshot(self) -> dict[str, Any]:
        """Return the state, which later updates do not change."""
        state = self.state_dict()
        return {**state, "metrics": [_copy_state(metric_state) for metric_state in state["metrics"]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        # The state does not show whether update() was called.
        self._is_updated = True
        self._terms = {name: Sum() if name in state["sums"] else Mean() for name in state["terms"]}
        for name, mean in self._terms.items():
            mean.load_state_dict(state["terms"][name])
        for entry, metric_state in zip(self._entries, state["metrics"], strict=True):
            metric = entry.metric
            if self._terms and not metric_state and type(metric).state_dict is Metric.state_dict:
                warn(
                    f"The checkpoint has no values of the metric {metric.name!r}, so its value for this epoch covers only the "
                    "rest of it. Store its values in tensors, numbers or an easytorch.Mean, or define state_dict() and "
                    "load_state_dict()."
                )
            metric.load_state_dict(metric_state)

    def _values(self, is_final: bool = False) -> dict[str, Scalar]:
        """Return all values, those that take long to compute only if the pass ``is_final``, that is complete."""
        values = self._term_values()
        for name, entry in zip(self.names, self._entries, strict=True):
            if is_final or not entry.metric.is_final:
                values.update(self._metric_values(name, entry.metric, is_final))
        return values

    def _value(self, name: str) -> dict[str, Scalar]:
        """Return the values that ``name`` needs, with its own among them; metrics take long to compute."""
        if name in self._terms:
            return self._term_values()
        entry = next((entry for key, entry in zip(self.names, self._entries, strict=True) if key == name), None)
        if entry is None:  # it may be one entry of a metric with several
            return self._values()
        return {} if entry.metric.is_final else self._metric_values(name, entry.metric)

    def _metric_values(self, name: str, metric: Metric, is_final: bool = False) -> dict[str, Scalar]:
        """Return the value of ``metric``, NaN if it cannot be computed yet, or each of its values by name."""
        try:
            value = metric.compute()
        except NOT_COMPUTABLE as error:
            if is_final and name not in self._warnings:
                self._warnings.add(name)
                warn(f"The metric {name!r} is NaN, because it cannot be computed: {type(error).__name__}: {error}")
            return {name: float("nan")}
        except Exception as error:
            raise ValueError(f"The metric {name!r} failed in compute(): {type(error).__name__}: {error}") from error
        return _entries(name, value)

    def _term_values(self) -> dict[str, Scalar]:
        values = {name: mean.compute() for name, mean in self._terms.items()}
        total = self.criterion.sum_of_terms(values)
        return values if total is None or "loss" not in values else {**values, "loss": values["loss"] + total}

    def may_have_entry(self, name: str) -> bool:
        """Return whether ``name`` may be an entry of a metric with several values, such as ``"recall_2"``."""
        pairs = zip(self.evaluation_names, self._all_entries, strict=True)
        return any(name.startswith(f"{key}_") and not isinstance(entry.metric, MeanMetric) for key, entry in pairs)

    def has_counted_nothing(self) -> bool:
        """Return whether a loss of this fit was NaN because nothing counts, which has been reported."""
        return NOTHING_COUNTS in self._warnings

    def _warn_if_nothing_counts(self) -> None:
        """Warn once in a fit if the loss or a metric has values, but none of them counts."""
        reasons = {name: reason for name in self._terms if (reason := self.criterion.why_zero(name)) is not None}
        kind, message = self._find_nothing_counted(reasons)
        if message and not self._warnings & {NOTHING_COUNTS, ZERO_LOSS, NO_METRIC}:
            self._warnings.add(kind)
            warn(message)

    def _find_nothing_counted(self, reasons: Mapping[str, str]) -> tuple[str, str]:
        """Return the kind of a value that counts nothing, and the message; empty if all values count something.

        Args:
            reasons: Why a term may be 0, by its name.
        """
        for name, mean in self._terms.items():
            if mean.counts_nothing():
                return NOTHING_COUNTS, (
                    f"{name} is NaN, because nothing counts: every label of this pass is ignored, or has the class weight 0. "
                    "Check the targets and the ignore_index of the loss."
                )
        for name, reason in reasons.items():
            if not self._terms[name].compute():
                return ZERO_LOSS, f"{name} is 0, because nothing counts: {reason}"
        for name, entry in zip(self.names, self._entries, strict=True):
            if isinstance(entry.metric, MeanMetric) and entry.metric.counts_nothing():
                return NO_METRIC, (
                    f"The metric {name!r} is NaN, because nothing counts: every label of this pass is ignored, or every sample "
                    "weight is 0. Check the targets and the weights."
                )
        return "", ""

    def _warn_about_unused_metrics(self) -> None:
        if self._is_updated or not self._terms or not self._entries or self._warnings:
            return
        self._warnings.add("unused metrics")
        verb, pronoun = ("was", "it") if len(self.names) == 1 else ("were", "them")
        warn(
            f"{', '.join(self.names)} {verb} never updated. Call self.metrics.update(y_pred, y) in train_step and test_step, or "
            f"remove {pronoun} from compile()."
        )


def _entries(name: str, value: Any) -> dict[str, Scalar]:
    """Return ``{name: value}``, or the entries of ``value`` with their index or key appended to ``name``."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return {name: value.detach()}
    if isinstance(value, (int, float, np.number)):
        return {name: float(value)}
    if isinstance(value, Mapping):
        entries = {f"{name}_{key}": entry for key, entry in value.items()}
        if all(
            isinstance(entry, (int, float)) or (isinstance(entry, Tensor) and entry.numel() == 1)
            for entry in value.values()
        ):
            return entries
    if isinstance(value, Tensor) and 1 <= value.ndim <= 2 and value.numel() <= MAX_ENTRIES:
        indices = itertools.product(*map(range, value.shape))
        return {"_".join([name, *map(str, index)]): value[index].detach() for index in indices}
    raise ValueError(
        f"The metric {name!r} must return numbers, but compute() returned {describe(value)}. Return a scalar, or at most "
        f"{MAX_ENTRIES} numbers, which are logged separately. Compute larger results after training, from predict()."
    )


def _copy_state(state: Any) -> Any:
    """Return a copy of the state of a metric; what its lists contain is never changed."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copy_state(value) for key, value in state.items()}
    return list(state) if type(state) is list else state


def _check_term(name: str, metric_names: Sequence[str]) -> None:
    if name in metric_names:
        raise ValueError(
            f"A step returned {name!r}, and compile(metrics=...) measures it too. Return it under another name, or remove it "
            "from metrics."
        )
    if name in RESERVED and name != "loss":
        raise ValueError(
            f"A step returned {name!r}, a reserved name: the logs have another value under it. Return it under another name."
        )


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _divide_pair(name: str, pair: tuple[Any, Any]) -> tuple[Scalar, Scalar]:
    """Return the mean and the count of a pair ``(sum, count)``."""
    total, count = map(functools.partial(_to_scalar, name), pair)
    return divide(total, count), count


def _to_scalar(name: str, value: Any) -> Scalar:
    """Return the mean of a tensor with one value per sample, or a number as a float."""
    if isinstance(value, Tensor):
        return value.detach().float().mean() if value.ndim else value.detach()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"A step returned {describe(value)} as {name!r}, which is not a number and cannot be logged. Return a number or a "
            "scalar tensor."
        ) from None


def _unique(names: list[str]) -> list[str]:
    """Return ``names`` with ``_1``, ``_2``, ... appended to repeated ones."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        count = counts[name] = counts.get(name, -1) + 1
        unique.append(f"{name}_{count}" if count else name)
    return unique
