"""Metrics by name, weighted by true sample counts, on the device until somebody reads them."""

from __future__ import annotations

import collections
import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easytorch.logs import Logs, Mean, Scalar
from easytorch.lookup import nearest, quoted, snake_case
from easytorch.losses import Criterion, SeveralLosses, name_of
from easytorch.tree import describe


class Metric:
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

    def fresh(self) -> Metric:
        """Return a copy that has measured nothing."""
        twin = copy.deepcopy(self)
        twin.reset()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs: of every attribute that has a ``state_dict``, its state."""
        return {key: value.state_dict() for key, value in vars(self).items() if hasattr(value, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        for key, value in state.items():
            getattr(self, key).load_state_dict(value)


class MeanMetric(Metric):
    """The mean of ``function(y_pred, y)`` over all samples.

    Args:
        function: Returns the mean of the batch, as a scalar; or one value for each sample; or a pair, the sum over
            those samples that count and their number.
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
        self.function, self.name, self.mode, self.finish = function, name or name_of(function), mode, finish
        super().__init__()

    def reset(self) -> None:
        """Forget everything measured so far."""
        self.mean = Mean()

    def fresh(self) -> Metric:
        """Return a copy that has measured nothing."""
        twin = copy.copy(self)
        twin.reset()
        return twin

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch."""
        value = self.function(y_pred, y)
        if isinstance(value, tuple):
            self.mean.add_sum(*value)
        elif not isinstance(value, Tensor):
            self.mean.add(float(value), _rows(y_pred, y))
        elif value.ndim == 0:
            self.mean.add(value, _rows(y_pred, y))
        elif sample_weight is None:
            self.mean.add_sum(value.sum(), value.numel())
        else:
            weight = _expand(sample_weight, value)
            self.mean.add_sum((value * weight).sum(), weight.sum())

    def compute(self) -> Scalar:
        """Return the mean so far."""
        value = self.mean.compute()
        return self.finish(value) if self.finish else value


class TorchMetric(Metric):
    """A torchmetrics object, measured as it is."""

    def __init__(self, metric: Any) -> None:
        higher = getattr(metric, "higher_is_better", None)
        self.metric, self.name = metric, snake_case(type(metric).__name__)
        self.mode = None if higher is None else ("max" if higher else "min")

    def reset(self) -> None:
        """Forget everything measured so far."""
        self.metric.reset()

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch."""
        if isinstance(y, Tensor) and self.metric.device != y.device:
            self.metric.to(y.device)
        self.metric.update(y_pred, y)

    def compute(self) -> Scalar:
        """Return the value over all batches; the mean of it where it is one for each class."""
        if not self.metric.update_called:  # torchmetrics warns of it; nothing was measured yet
            return float("nan")
        value = self.metric.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"The metric {self.name!r} returns {describe(value)}, which is not one number. Use it outside of fit(), or "
                "wrap it in a function f(y_pred, y) that returns one."
            )
        return value.float().mean() if value.ndim else value

    def state_dict(self) -> dict[str, Any]:
        """Return the metric's own states."""
        states = {name: getattr(self.metric, name) for name in self.metric._defaults}
        return {"states": states, "count": self.metric.update_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        for name, value in state["states"].items():
            setattr(self.metric, name, value)
        self.metric._update_count = state["count"]


class NamedTorchMetric(TorchMetric):
    """A metric of torchmetrics known by its name, made when the first batch tells the number of classes."""

    def __init__(self, name: str, path: str, criterion: Criterion) -> None:
        self.name, self.path, self.criterion = name, path, criterion
        self.mode = "min" if path.endswith(("Error", "Distance")) else "max"
        self.metric: Any = None
        self.arguments: dict[str, Any] = {}
        _torchmetrics_module(path)  # a missing package is found out now, not in the first step

    def reset(self) -> None:
        """Forget everything measured so far."""
        if self.metric is not None:
            self.metric.reset()

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch, of probabilities where the loss tells how to get them."""
        if self.criterion.kind is not None and "classification" in self.path:
            y_pred = self.criterion.probabilities(y_pred)
            y = (y.argmax(1) if y.is_floating_point() and self.criterion.kind == "multiclass" else y).long()
        if y_pred.ndim > 1 and y_pred.shape[-1] == 1:
            y_pred, y = y_pred.squeeze(-1), y.reshape(y_pred.shape[:-1])
        if self.metric is None:
            self._choose(y_pred)
            self._make()
        super().update(y_pred, y)

    def compute(self) -> Scalar:
        """Return the value over all batches."""
        return float("nan") if self.metric is None else super().compute()

    def state_dict(self) -> dict[str, Any]:
        """Return the metric's own states, none before the first batch."""
        return {} if self.metric is None else super().state_dict() | {"path": self.path, "arguments": self.arguments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        if state:
            self.path, self.arguments = state["path"], dict(state["arguments"])
            self._make()
            super().load_state_dict(state)

    def _choose(self, y_pred: Tensor) -> None:
        if "classification" not in self.path:
            return
        if self.criterion.kind == "multiclass":
            self.path, self.arguments = self.path.replace("Binary", "Multiclass"), {"num_classes": y_pred.shape[1]}
        elif self.criterion.kind == "binary" and y_pred.ndim > 1:
            self.path, self.arguments = self.path.replace("Binary", "Multilabel"), {"num_labels": y_pred.shape[-1]}

    def _make(self) -> None:
        cls = getattr(_torchmetrics_module(self.path), self.path.rpartition(".")[2], None)
        if cls is None:
            raise ValueError(
                f"The metric {self.name!r} is not defined for these targets: torchmetrics has no {self.path}."
            )
        # Checks of the arguments would wait for the device in every step.
        quick = {"validate_args": False} if "classification" in self.path else {}
        self.metric = cls(**self.arguments, **quick)


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
        self._recent: collections.deque[Mapping[str, Any]] = collections.deque(maxlen=64)
        self.names = _unique(
            [f"{output}_{metric.name}" if output else metric.name for metric, output, _ in self._metrics]
        )
        self.logs = Logs(self.compute)

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch with every metric; nothing waits for the device."""
        if self._metrics:
            with torch.no_grad():
                for metric, output, weighted in self._metrics:
                    part, target = self.criterion.part(y_pred, y, output)
                    metric.update(part, target, sample_weight if weighted else None)

    def record(self, terms: Mapping[str, Any], size: int) -> None:
        """Count what a step returned, each value the mean of ``size`` samples."""
        values = {name: value.detach() if isinstance(value, Tensor) else value for name, value in terms.items()}
        self._recent.append(values)
        for name, value in values.items():
            if name not in self._terms:
                self._terms[name] = Mean()
            self._terms[name].add(value, size)

    def recent(self, count: int) -> list[Mapping[str, Any]]:
        """Return what the last ``count`` steps returned, at most 64."""
        return list(self._recent)[-count:]

    def compute(self) -> dict[str, Scalar]:
        """Return every value so far, as scalars that may still be on the device."""
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
        self._terms = {}
        for metric, *_ in self._metrics:
            metric.reset()

    def fresh(self) -> Metrics:
        """Return a copy that has measured nothing, for another pass at the same time."""
        twins = [(metric.fresh(), output, weighted) for metric, output, weighted in self._metrics]
        return Metrics(twins, self.criterion)

    def mode(self, name: str) -> str:
        """Return ``"min"`` or ``"max"``, whichever is better for a value in the logs.

        Raises:
            ValueError: If nobody knows.
        """
        bare = name.removeprefix("val_")
        known = dict(zip(self.names, (metric.mode for metric, *_ in self._metrics), strict=True))
        mode = known.get(bare) or ("min" if bare == "loss" or bare.endswith("_loss") else None)
        if mode is None:
            raise ValueError(
                f"Nobody knows whether {name!r} is better high or low.{nearest(bare, ['loss', *self.names])} Pass mode='min' or "
                "mode='max'."
            )
        return mode

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart in the middle of a pass needs."""
        return {
            "terms": {name: mean.state_dict() for name, mean in self._terms.items()},
            "metrics": [metric.state_dict() for metric, *_ in self._metrics],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._terms = {name: Mean() for name in state["terms"]}
        for name, mean in self._terms.items():
            mean.load_state_dict(state["terms"][name])
        for (metric, *_), saved in zip(self._metrics, state["metrics"], strict=True):
            metric.load_state_dict(saved)


def resolve(metrics: Any, criterion: Criterion, weighted: Any = ()) -> Metrics:
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
    for metric, _, _ in heavy:
        if isinstance(metric, TorchMetric):
            raise ValueError(
                f"The metric {metric.name!r} is one of torchmetrics, which takes no sample weights. Pass it in metrics=, "
                "or pass a function that returns one value for each sample."
            )
        metric.name = f"weighted_{metric.name}" if metric.name in {m.name for m, *_ in found} else metric.name
    return Metrics([*found, *heavy], criterion)


def _by_output(metrics: Any, criterion: Criterion) -> list[tuple[Metric, str | None]]:
    if metrics is None:
        return []
    if isinstance(metrics, Mapping) or (isinstance(criterion, SeveralLosses) and any(map(_listed, metrics))):
        if not isinstance(criterion, SeveralLosses):
            raise ValueError(
                f"metrics by output, {describe(metrics)}, need losses by output. Pass loss={{output: ...}} too, or a "
                "plain list of metrics."
            )
        named = metrics if isinstance(metrics, Mapping) else dict(zip(criterion.names, metrics, strict=False))
        for name in named:
            if name not in criterion.losses:
                raise ValueError(
                    f"metrics name the output {name!r}, which has no loss.{nearest(name, criterion.names)}"
                )
        return [
            (_resolve_one(metric, criterion.losses[name]), name)
            for name, some in named.items()
            for metric in (some if _listed(some) else [some])
        ]
    return [(_resolve_one(metric, criterion), None) for metric in (metrics if _listed(metrics) else [metrics])]


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _resolve_one(metric: Any, criterion: Criterion) -> Metric:
    if isinstance(metric, str):
        return _by_name(metric, criterion)
    if isinstance(metric, Metric):
        return metric
    if _is_torchmetric(metric):
        if not hasattr(metric, "_defaults"):
            raise TypeError(f"{metric!r} holds several metrics. Pass them one by one.")
        return TorchMetric(metric)
    if isinstance(metric, type):
        raise TypeError(
            f"Expected a metric, received the class {metric.__name__}. Make an object of it: {metric.__name__}()."
        )
    if callable(metric):
        return MeanMetric(metric)
    raise TypeError(
        f"Expected a metric, received {metric!r}. Pass a name such as 'accuracy', a function f(y_pred, y), an "
        "easytorch.Metric or a torchmetrics object."
    )


def _is_torchmetric(metric: Any) -> bool:
    return any(cls.__module__.startswith("torchmetrics.") for cls in type(metric).__mro__)


def _by_name(typed: str, criterion: Criterion) -> Metric:
    name = typed.strip().lower().replace("-", "_").replace(" ", "_")
    if name in ("accuracy", "acc"):
        if criterion.kind is None:
            raise ValueError(
                f"{typed!r} is resolved from the loss, but {criterion!r} does not tell what is counted. Name it: "
                "'multiclass_accuracy' (the largest output wins) or 'binary_accuracy' (probabilities above 0.5)."
            )
        name = f"{criterion.kind}_accuracy"
    if name in ("multiclass_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"):
        ignored = getattr(getattr(criterion, "function", None), "ignore_index", None)
        return MeanMetric(MulticlassHits(ignored), typed, "max")
    if name == "binary_accuracy":
        return MeanMetric(BinaryHits(criterion), typed, "max")
    if name.startswith("top_") and name.endswith("_accuracy") and name[4:-9].isdigit():
        return MeanMetric(TopHits(int(name[4:-9])), typed, "max")
    if name in ERRORS:
        function, finish = ERRORS[name]
        return MeanMetric(function, typed, "min", finish)
    if name in TORCHMETRICS:
        if "classification" in TORCHMETRICS[name] and criterion.kind is None:
            raise ValueError(
                f"{typed!r} needs to know the task, but {criterion!r} does not tell it. Pass the torchmetrics object itself, "
                "for example torchmetrics.classification.MulticlassF1Score(num_classes=10)."
            )
        return NamedTorchMetric(typed, TORCHMETRICS[name], criterion)
    lean = ["accuracy", "acc", "multiclass_accuracy", "binary_accuracy", "top_5_accuracy", *ERRORS]
    raise ValueError(
        f"Unknown metric {typed!r}.{nearest(name, [*lean, *TORCHMETRICS])} Pass one of {quoted([*lean, *TORCHMETRICS])}, a "
        "function f(y_pred, y), an easytorch.Metric or a torchmetrics object."
    )


class MulticlassHits:
    """How often the largest output is the target; targets may be class indices or probabilities."""

    def __init__(self, ignored: int | None = None) -> None:
        self.ignored = ignored

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return a hit or a miss for each target, or the hits and the number of those targets that count."""
        if y.is_floating_point():
            y = y.argmax(1)
        hits = y_pred.argmax(1) == y
        # -100 is torch's default for tokens or pixels that do not count; the label of a whole sample never is.
        if self.ignored is not None and (y.ndim > 1 or self.ignored >= 0):
            counts = y != self.ignored
            return (hits & counts).sum(), counts.sum()
        return hits


class BinaryHits:
    """Whether each probability is on the right side of 0.5."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return a hit or a miss for each label."""
        probabilities = self.criterion.probabilities(y_pred) if self.criterion.kind == "binary" else y_pred
        return (probabilities > 0.5) == (y > 0.5).reshape(probabilities.shape)


class TopHits:
    """Whether the target is among the ``k`` largest outputs."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return a hit or a miss for each sample."""
        y = y.argmax(1) if y.is_floating_point() else y
        return (y_pred.topk(min(self.k, y_pred.shape[1]), dim=1).indices == y.unsqueeze(1)).any(1)


def squared_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return the squared difference of each value."""
    return (_alike(y_pred, y) - y).square()


def absolute_error(y_pred: Tensor, y: Tensor) -> Tensor:
    """Return the absolute difference of each value."""
    return (_alike(y_pred, y) - y).abs()


ERRORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Any], Any] | None]] = {
    "mae": (absolute_error, None),
    "mean_absolute_error": (absolute_error, None),
    "mse": (squared_error, None),
    "mean_squared_error": (squared_error, None),
    "rmse": (squared_error, lambda mean: mean**0.5),
    "root_mean_squared_error": (squared_error, lambda mean: mean**0.5),
}

# Names of torchmetrics. "Binary" becomes Multiclass or Multilabel when the loss and the first batch tell so.
_CLASSIFICATION = {
    "auroc": "AUROC",
    "auc": "AUROC",
    "average_precision": "AveragePrecision",
    "calibration_error": "CalibrationError",
    "cohen_kappa": "CohenKappa",
    "exact_match": "ExactMatch",
    "f1": "F1Score",
    "f1_score": "F1Score",
    "hamming_distance": "HammingDistance",
    "iou": "JaccardIndex",
    "jaccard_index": "JaccardIndex",
    "matthews_corrcoef": "MatthewsCorrCoef",
    "negative_predictive_value": "NegativePredictiveValue",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
}
_REGRESSION = {
    "concordance_corrcoef": "ConcordanceCorrCoef",
    "cosine_similarity": "CosineSimilarity",
    "explained_variance": "ExplainedVariance",
    "kendall_corrcoef": "KendallRankCorrCoef",
    "log_cosh_error": "LogCoshError",
    "mape": "MeanAbsolutePercentageError",
    "mean_absolute_percentage_error": "MeanAbsolutePercentageError",
    "mean_squared_log_error": "MeanSquaredLogError",
    "msle": "MeanSquaredLogError",
    "pearson_corrcoef": "PearsonCorrCoef",
    "r2": "R2Score",
    "r2_score": "R2Score",
    "relative_squared_error": "RelativeSquaredError",
    "spearman_corrcoef": "SpearmanCorrCoef",
    "symmetric_mean_absolute_percentage_error": "SymmetricMeanAbsolutePercentageError",
}
TORCHMETRICS = {name: f"torchmetrics.classification.Binary{cls}" for name, cls in _CLASSIFICATION.items()} | {
    name: f"torchmetrics.regression.{cls}" for name, cls in _REGRESSION.items()
}


def _torchmetrics_module(path: str) -> Any:
    try:
        return importlib.import_module(path.rpartition(".")[0])
    except ImportError as error:
        raise ImportError(f"{path} is a metric of torchmetrics: pip install torchmetrics") from error


def _alike(y_pred: Tensor, y: Tensor) -> Tensor:
    return y_pred.reshape(y.shape) if y_pred.shape != y.shape and y_pred.numel() == y.numel() else y_pred


def _rows(y_pred: Any, y: Any) -> int:
    rows = y if isinstance(y, Tensor) and y.ndim else y_pred
    return len(rows) if isinstance(rows, Tensor) and rows.ndim else 1


def _expand(sample_weight: Tensor, value: Tensor) -> Tensor:
    weight = (
        sample_weight.reshape(len(value), *[1] * (value.ndim - 1))
        if sample_weight.numel() == len(value)
        else sample_weight
    )
    return weight.expand_as(value)


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{count}" if count else name)
    return unique
