"""Metrics that need all predictions and targets of a pass, such as those of scikit-learn."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easytorch._utils.api_hints import PREDICTION_NAMES, TARGET_NAMES
from easytorch._utils.pytree import describe, map_leaves
from easytorch._utils.registry import find, get_name
from easytorch.losses.criterion import Criterion
from easytorch.metrics.base import Metric

INPUTS = ("auto", "outputs", "probabilities", "classes")
# Names of arguments in scikit-learn that are scores or probabilities, not classes.
SCORE_NAMES = ("y_score", "y_proba", "y_prob", "probas_pred")
# Modules of scikit-learn whose ``y_pred`` are classes.
CLASS_MODULES = ("sklearn.metrics._classification",)
# Functions of scikit-learn that are means over samples, so their mean over batches, weighted by samples, is right.
MEANS = {
    "accuracy_score", "zero_one_loss", "hamming_loss", "log_loss", "brier_score_loss", "hinge_loss", "mean_absolute_error",
    "mean_squared_error", "mean_absolute_percentage_error", "mean_squared_log_error", "mean_poisson_deviance",
    "mean_gamma_deviance", "mean_tweedie_deviance", "mean_pinball_loss", "top_k_accuracy_score", "label_ranking_loss",
    "label_ranking_average_precision_score", "coverage_error", "dcg_score", "ndcg_score", "jaccard_score_samples",
}  # fmt: skip


class EpochMetric(Metric):
    """Any function of all predictions and targets of a pass, computed once at its end.

    The order of the two arguments is found from their names: ``function(y_true, y_pred)`` of scikit-learn and
    ``function(y_pred, y)`` both work. With several processes, the function gets the samples of all ranks.

    All predictions and targets of the pass stay in memory, on their device. For 1,000,000 samples of 10 classes, these are 40 MB
    of outputs in float32 and 8 MB of labels.

    Args:
        function: Takes NumPy arrays, predictions and targets with one row per sample, and returns a number; or an array or a dict
            of numbers, which are logged separately. Of a detector it takes two lists with a dict of arrays for each image.
        name: Name in the logs; by default that of the function.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is better, None if unknown.
        inputs: What the function gets as predictions. ``"classes"``: class indices, or 0 and 1 for a binary loss.
            ``"probabilities"``: what ``predict_proba`` returns; of two classes only the column of class 1. ``"outputs"``: what
            the module returns. ``"auto"``: classes for the classification metrics of scikit-learn, probabilities for an argument
            ``y_score`` or ``y_proba``, and outputs otherwise.
        options: Further keyword arguments of the function.

    Raises:
        ValueError: If ``inputs`` is invalid, or if the loss does not determine probabilities or classes.
        TypeError: If ``function`` is not callable.

    Examples:
        >>> from sklearn.metrics import f1_score, roc_auc_score
        >>> metrics = [easytorch.EpochMetric(f1_score, average="macro"), easytorch.EpochMetric(roc_auc_score)]
        >>> model.compile("adam", "cross_entropy", metrics=metrics)
    """

    takes_all_outputs = False
    is_final = True

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        mode: str | None = None,
        inputs: str = "auto",
        **options: Any,
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"EpochMetric expects a function of predictions and targets, received {function!r}. Use "
                "EpochMetric(sklearn.metrics.f1_score, average='macro')."
            )
        self.function, self.options = function, options
        self.name = name or get_name(function)
        self.mode = None if mode is None else find("mode", mode, {"max": "max", "min": "min"})
        self._first, self._second = _two_arguments(function)
        _check_options(self.name, function, options)
        self.inputs = find("inputs", inputs, {key: key for key in INPUTS})
        if self.inputs == "auto":
            self.inputs = self._infer_inputs()
        self.criterion: Criterion | None = None
        super().__init__()

    def bind(self, criterion: Criterion) -> EpochMetric:
        """Return a copy for ``compile`` whose loss is ``criterion``, which converts outputs and ignores labels."""
        if self.inputs in ("probabilities", "classes") and criterion.kind is None:
            raise ValueError(
                f"EpochMetric({self.name}) needs {self.inputs}, but they cannot be inferred from the loss, {criterion!r}. Pass "
                "inputs='outputs' and convert them in the function."
            )
        bound = copy.copy(self)
        bound.criterion = criterion
        bound.reset()
        return bound

    def new_copy(self) -> Metric:
        """Return a copy without measurements."""
        metric = copy.copy(self)
        metric.reset()
        return metric

    def reset(self) -> None:
        """Remove all predictions and targets."""
        self.rows: list[tuple[Any, ...]] = []

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Store a copy of one batch: a module or loader may use its memory for the next one."""
        assert self.criterion is not None, "compile() binds the metric"
        if self.inputs == "probabilities":
            y_pred = self.criterion.probabilities(y_pred)
        elif self.inputs == "classes":
            y_pred = self.criterion.classes(y_pred)
        self.rows.append(tuple(map_leaves(_copy, part) for part in (y_pred, y, sample_weight)))

    def compute(self) -> Any:
        """Return the value of the function for all samples that count, NaN if there are none."""
        if not self.rows:
            return float("nan")
        y_pred, y, weight = (_join(column) for column in zip(*self.rows, strict=True))
        y_pred, y, weight = self._counted(y_pred, y, weight)
        if isinstance(y, Tensor) and not len(y):
            return float("nan")
        if self.inputs == "probabilities" and y_pred.ndim == 2 and y_pred.shape[1] <= 2:
            y_pred = y_pred[:, -1]
        elif self.inputs == "classes" and y_pred.ndim == 2 and y_pred.shape[1] == 1:
            y_pred = y_pred[:, 0]
        arrays = [map_leaves(_to_numpy, value) for value in (y_pred, y)]
        if self._targets_come_first():
            arrays.reverse()
        options = self.options if weight is None else {**self.options, "sample_weight": _to_numpy(weight)}
        value = self.function(*arrays, **options)
        return torch.as_tensor(value) if hasattr(value, "__array__") and not isinstance(value, Tensor) else value

    def state_dict(self) -> dict[str, Any]:
        """Return all predictions and targets of the pass so far."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        self.rows = [tuple(row) for row in state["rows"]]

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Join the samples of all ranks."""
        self.rows = [tuple(row) for state in states for row in state["rows"]]

    def _infer_inputs(self) -> str:
        if self._second in SCORE_NAMES or self._first in SCORE_NAMES:
            return "probabilities"
        module = getattr(unwrap(self.function), "__module__", "") or ""
        return "classes" if module in CLASS_MODULES else "outputs"

    def _targets_come_first(self) -> bool:
        return self._first in TARGET_NAMES and self._second in (*PREDICTION_NAMES, *SCORE_NAMES)

    def _counted(self, y_pred: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        """Return one row for each label that counts, with targets of shape ``[M]`` where they are single labels."""
        if not isinstance(y, Tensor) or not isinstance(y_pred, Tensor) or self.criterion is None:
            return y_pred, y, weight
        if self.criterion.kind == "multiclass":
            y = y.argmax(1) if y.is_floating_point() and self.inputs != "outputs" else y
            if not y.is_floating_point():
                y_pred, y, weight = _counted_labels(y_pred, y, weight, self.criterion.ignore_index)
        elif self.criterion.kind == "binary" and self.inputs != "outputs":
            y = (y > 0.5).long()
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
            y_pred = y_pred[:, 0] if y_pred.ndim == 2 and y_pred.shape[1] == 1 else y_pred
        return y_pred, y, None if weight is None else weight.flatten()

    def __repr__(self) -> str:
        return f"EpochMetric({self.name})"


def _counted_labels(y_pred: Tensor, y: Tensor, weight: Any, ignore_index: int | None) -> tuple[Tensor, Tensor, Any]:
    """Return one row for each label that is not ignored.

    Args:
        y_pred: Classes, ``[N, ...]``, or outputs, ``[N, classes, ...]``.
        y: Labels, ``[N, ...]``.
        weight: One weight per sample or per label, or None.
        ignore_index: The label that does not count, None if all count.
    """
    if y.ndim > 1:
        has_columns = y_pred.ndim > y.ndim
        y_pred = y_pred.movedim(1, -1).flatten(0, -2) if has_columns else y_pred.flatten()
        weight = None if weight is None else weight.reshape(len(y), -1).expand(-1, y[0].numel()).flatten()
        y = y.flatten()
    counts = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    return y_pred[counts], y[counts], None if weight is None else weight[counts]


def find_epoch_function(function: Any) -> str | None:
    """Return the name of a function of scikit-learn that ``function`` is or calls and that is not a mean over samples."""
    if "sklearn.metrics" not in sys.modules:
        return None
    for candidate in (function, *_called(function)):
        name = getattr(candidate, "__name__", "")
        if str(getattr(candidate, "__module__", "")).startswith("sklearn.metrics") and name not in MEANS:
            return str(name)
    return None


def _called(function: Any) -> Iterator[Any]:
    """Yield the global, enclosed and attribute objects that the code of ``function`` names."""
    if inspect.ismethod(function):
        function = function.__func__
    elif not inspect.isfunction(function):
        function = vars(type(function)).get("__call__")
    if not inspect.isfunction(function):
        return
    names, scope = function.__code__.co_names, function.__globals__
    enclosed = inspect.getclosurevars(function).nonlocals.values()
    objects = [scope[name] for name in names if name in scope]
    for value in (*objects, *enclosed):
        yield unwrap(value)
        if inspect.ismodule(value):  # sklearn.metrics.f1_score
            for module in (value, getattr(value, "metrics", None)):
                yield from (getattr(module, name) for name in names if callable(getattr(module, name, None)))


def unwrap(function: Any) -> Any:
    """Return the function behind ``functools.partial`` and decorators."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function) if callable(function) else function


def _two_arguments(function: Any) -> tuple[str, str]:
    """Return the lower-case names of the first two arguments."""
    try:
        names = [name.lower() for name in inspect.signature(function).parameters]
    except (TypeError, ValueError):
        names = []
    return (names[0], names[1]) if len(names) > 1 else ("", "")


def _check_options(name: str, function: Any, options: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` if ``function`` requires more than predictions, targets, sample weights and ``options``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):
        return
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in required if p.name not in (*options, "sample_weight")]
    if missing:
        raise TypeError(
            f"EpochMetric({name}) calls its function with predictions and targets, but {name} also requires {missing[0]!r}. Pass "
            f"a value for all samples, EpochMetric({name}, {missing[0]}=...). For values of the batch, subclass easytorch.Metric."
        )


def _join(values: Sequence[Any]) -> Any:
    """Return the batches of one column as one tensor, on the CPU."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat([value.detach().cpu() for value in values])
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values]) for key in first}
    if _is_sample_list(first):
        return [map_leaves(_to_cpu, sample) for value in values for sample in value]
    if isinstance(first, (tuple, list)):
        return tuple(_join(column) for column in zip(*values, strict=True))
    raise TypeError(f"it needs tensors with one row per sample, but received {describe(first)}")


def _is_sample_list(value: Any) -> bool:
    """Return whether ``value`` has a dict for each sample, as the boxes and labels of object detection."""
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(sample, Mapping) for sample in value)


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf


def _to_numpy(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()
