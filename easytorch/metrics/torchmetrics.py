"""Adapter for metrics of torchmetrics."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easytorch._utils.pytree import describe
from easytorch._utils.registry import snake_case
from easytorch.losses.criterion import Criterion
from easytorch.metrics.aggregation import Scalar
from easytorch.metrics.base import Metric


class TorchMetric(Metric):
    """A torchmetrics object, measured as it is."""

    takes_all_outputs = False

    def __init__(self, metric: Any, criterion: Criterion | None = None) -> None:
        # Losses of yes and no take floats as targets, these metrics whole numbers.
        self._rounds = getattr(criterion, "kind", None) == "binary" and _is_classification(metric)
        higher = getattr(metric, "higher_is_better", None)
        self.metric, self.name, self.count = metric, snake_case(type(metric).__name__), 0
        metric.sync_on_compute = False  # a log that one process reads must not wait for the others: see merge
        self.mode = None if higher is None else ("max" if higher else "min")

    def reset(self) -> None:
        """Forget everything measured so far."""
        self.metric.reset()
        self.count = 0

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch."""
        if isinstance(y, Tensor) and self.metric.device != y.device:
            self.metric.to(y.device)
        if self._rounds and isinstance(y, Tensor) and y.is_floating_point():
            y = (y > 0.5).long()
        self.metric.update(y_pred, y)
        self.count += 1  # which a metric around other metrics does not do itself

    def compute(self) -> Scalar:
        """Return the value over all batches; the mean of it where it is one for each class."""
        if not self.count:  # torchmetrics warns of it; nothing was measured yet
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
        states = {key: getattr(part, name) for key, (part, name) in self._states().items()}
        return {"states": states, "count": self.count}

    def _states(self) -> dict[str, tuple[Any, str]]:
        """Return where each state is: a metric around other metrics has its numbers in those."""
        parts = [part for part in self.metric.modules() if hasattr(part, "_defaults")]
        return {f"{i}.{name}" if i else name: (part, name) for i, part in enumerate(parts) for name in part._defaults}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        states = self._states()
        for key, value in state["states"].items():
            part, name = states[key]
            setattr(part, name, value)
            part._update_count = state["count"]
        self.metric._update_count = self.count = state["count"]

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the ``states`` of several processes, as torchmetrics would join them."""
        states = [state for state in states if state.get("count")]
        if not states:
            return
        counts = [state["count"] for state in states]
        joined = {
            name: self._joined(name, [state["states"][name] for state in states], counts)
            for name in states[0]["states"]
        }
        self.metric.to("cpu")
        TorchMetric.load_state_dict(self, {"states": joined, "count": sum(counts)})

    def _joined(self, name: str, values: list[Any], counts: list[int]) -> Any:
        part, state = self._states()[name]
        how = part._reductions[state]
        if isinstance(values[0], list):
            return [tensor for value in values for tensor in value]
        if (
            getattr(how, "__name__", "") == "dim_zero_mean"
        ):  # which torchmetrics takes of means that may have unequal weights
            return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
        stack_samples = torch.stack(values)
        return stack_samples if how is None else how(stack_samples)


def _is_classification(metric: Any) -> bool:
    return type(metric).__module__.startswith("torchmetrics.classification")


class NamedTorchMetric(TorchMetric):
    """A metric of torchmetrics known by its name, made when the first batch tells the number of classes."""

    def __init__(self, name: str, path: str, criterion: Criterion) -> None:
        self.name, self.path, self.criterion, self.count = name, path, criterion, 0
        self._rounds = False  # which is done here
        self.mode = "min" if path.endswith(("Error", "Distance")) else "max"
        self.metric: Any = None
        self.arguments: dict[str, Any] = {}
        _torchmetrics_module(path)  # a missing package is found out now, not in the first step

    def reset(self) -> None:
        """Forget everything measured so far."""
        if self.metric is not None:
            super().reset()

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch, of probabilities where the loss tells how to get them."""
        if self.criterion.kind is not None and "classification" in self.path:
            y_pred = self.criterion.probabilities(y_pred)
            if y.is_floating_point():  # probabilities: the largest, or on which side of 0.5, as for accuracy
                y = y.argmax(1) if self.criterion.kind == "multiclass" else y > 0.5
            y = y.long()
            if self.criterion.kind == "binary" and y_pred.ndim > 2 and y_pred.shape[1] == 1:  # masks with one channel
                y_pred, y = y_pred.flatten(), y.flatten()
        if y_pred.ndim > 1 and y_pred.shape[-1] == 1:
            y_pred, y = y_pred.squeeze(-1), y.reshape(y_pred.shape[:-1])
        if self.metric is None:
            self._choose(y_pred, y)
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

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the ``states`` of several processes, of which some may have had no batch."""
        known = next((state for state in states if state), None)
        if known is not None:
            self.path, self.arguments = known["path"], dict(known["arguments"])
            self._make()
            super().merge(states)

    def _choose(self, y_pred: Tensor, y: Tensor) -> None:
        if "classification" not in self.path:
            # Torchmetrics adds the similarities up, so that its value would grow with the data.
            self.arguments = {"reduction": "mean"} if self.path.endswith("CosineSimilarity") else {}
            return
        ignored = self.criterion.ignored
        if self.criterion.kind == "multiclass":
            self.path, self.arguments = self.path.replace("Binary", "Multiclass"), {"num_classes": y_pred.shape[1]}
            if ignored is not None and (y.ndim > 1 or ignored >= 0):  # as for accuracy
                self.arguments["ignore_index"] = ignored
        elif self.criterion.kind == "binary" and y_pred.ndim > 1:
            self.path, self.arguments = self.path.replace("Binary", "Multilabel"), {"num_labels": y_pred.shape[1]}

    def _make(self) -> None:
        cls = getattr(_torchmetrics_module(self.path), self.path.rpartition(".")[2], None)
        if cls is None:
            raise ValueError(
                f"The metric {self.name!r} is not defined for these targets: torchmetrics has no {self.path}."
            )
        # Checks of the arguments would wait for the device in every step.
        quick = {"validate_args": False} if "classification" in self.path else {}
        self.metric = cls(**self.arguments, **quick, sync_on_compute=False)


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


def is_torchmetric(metric: Any) -> bool:
    """Whether ``metric`` is an object of torchmetrics, told without importing it."""
    return any(cls.__module__.startswith("torchmetrics.") for cls in type(metric).__mro__)


def _torchmetrics_module(path: str) -> Any:
    try:
        return importlib.import_module(path.rpartition(".")[0])
    except ImportError as error:
        raise ImportError(f"{path} is a metric of torchmetrics: pip install torchmetrics") from error
