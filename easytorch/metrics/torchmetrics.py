"""Adapters for metrics of torchmetrics."""

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

# Names of the classes in torchmetrics.classification, without their prefix Binary, Multiclass or Multilabel.
CLASSIFICATION = {
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
REGRESSION = {
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
# The prefix Binary is replaced once the loss and the first batch show the task.
TORCHMETRICS = {name: f"torchmetrics.classification.Binary{cls}" for name, cls in CLASSIFICATION.items()} | {
    name: f"torchmetrics.regression.{cls}" for name, cls in REGRESSION.items()
}


def is_torchmetric(metric: Any) -> bool:
    """Return whether ``metric`` is an object of torchmetrics, without importing torchmetrics."""
    return any(cls.__module__.startswith("torchmetrics.") for cls in type(metric).__mro__)


class TorchMetric(Metric):
    """Adapter for a torchmetrics object.

    Args:
        metric: The torchmetrics object.
        criterion: The loss. Classification metrics get integer targets if it is binary.
    """

    takes_all_outputs = False

    def __init__(self, metric: Any, criterion: Criterion | None = None) -> None:
        is_classification = type(metric).__module__.startswith("torchmetrics.classification")
        # Binary losses take float targets, but these metrics take integers.
        self._rounds_targets = is_classification and criterion is not None and criterion.kind == "binary"
        # compute() would wait for other ranks, but one rank may read the logs alone. See merge().
        metric.sync_on_compute = False
        self.metric, self.name, self.count = metric, snake_case(type(metric).__name__), 0
        higher = getattr(metric, "higher_is_better", None)
        self.mode = None if higher is None else ("max" if higher else "min")

    def reset(self) -> None:
        """Remove everything measured so far."""
        self.metric.reset()
        self.count = 0

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch."""
        if isinstance(y, Tensor) and self.metric.device != y.device:
            self.metric.to(y.device)
        if self._rounds_targets and isinstance(y, Tensor) and y.is_floating_point():
            y = (y > 0.5).long()
        self.metric.update(y_pred, y)
        # A metric that wraps other metrics does not count its own updates.
        self.count += 1

    def compute(self) -> Scalar:
        """Return the value over all batches, the mean over classes if there is one per class, NaN before the first."""
        if not self.count:
            return float("nan")
        value = self.metric.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"The metric {self.name!r} must return one number, but it returns {describe(value)}. Use it outside of fit(), "
                "or pass a function f(y_pred, y) that returns one number."
            )
        return value.float().mean() if value.ndim else value

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the torchmetrics object, for a checkpoint."""
        states = {key: getattr(module, name) for key, (module, name) in self._state_locations().items()}
        return {"states": states, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        locations = self._state_locations()
        for key, value in state["states"].items():
            module, name = locations[key]
            setattr(module, name, value)
            module._update_count = state["count"]
        self.metric._update_count = self.count = state["count"]

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the ``states`` of all ranks, reduced as torchmetrics reduces them."""
        states = [state for state in states if state.get("count")]
        if not states:
            return
        counts = [state["count"] for state in states]
        reduced = {
            key: self._reduce(key, [state["states"][key] for state in states], counts) for key in states[0]["states"]
        }
        self.metric.to("cpu")
        TorchMetric.load_state_dict(self, {"states": reduced, "count": sum(counts)})

    def _state_locations(self) -> dict[str, tuple[Any, str]]:
        """Return the module and attribute of each state; a metric that wraps others has its states in them."""
        modules = [module for module in self.metric.modules() if hasattr(module, "_defaults")]
        return {
            f"{i}.{name}" if i else name: (module, name)
            for i, module in enumerate(modules)
            for name in module._defaults
        }

    def _reduce(self, key: str, values: list[Any], counts: list[int]) -> Any:
        """Return the state ``key`` of all ranks, given that of each and its number of updates."""
        module, name = self._state_locations()[key]
        reduction = module._reductions[name]
        if isinstance(values[0], list):
            return [tensor for value in values for tensor in value]
        if getattr(reduction, "__name__", "") == "dim_zero_mean":
            # torchmetrics weights the means of all ranks equally, even if they have unequal numbers of updates.
            return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
        stacked = torch.stack(values)
        return stacked if reduction is None else reduction(stacked)


class NamedTorchMetric(TorchMetric):
    """A metric of torchmetrics by name, created at the first batch, which shows the number of classes.

    Args:
        name: Name in the logs.
        path: Module and class, such as ``torchmetrics.classification.BinaryF1Score``.
        criterion: The loss, which determines the task and converts outputs to probabilities.

    Raises:
        ImportError: If torchmetrics is not installed.
    """

    def __init__(self, name: str, path: str, criterion: Criterion) -> None:
        self.name, self.path, self.criterion, self.count = name, path, criterion, 0
        # update() converts the targets.
        self._rounds_targets = False
        self.mode = "min" if path.endswith(("Error", "Distance")) else "max"
        self.metric: Any = None
        self.arguments: dict[str, Any] = {}
        # A missing package is an error of compile(), not of the first step.
        _import_module(path)

    def reset(self) -> None:
        """Remove everything measured so far."""
        if self.metric is not None:
            super().reset()

    def update(self, y_pred: Any, y: Any, sample_weight: Any = None) -> None:
        """Measure one batch, as probabilities if the loss determines them."""
        kind = self.criterion.kind
        if kind is not None and "classification" in self.path:
            y_pred = self.criterion.probabilities(y_pred)
            if y.is_floating_point():
                # As for accuracy, the target is the largest probability, or the side of 0.5.
                y = y.argmax(1) if kind == "multiclass" else y > 0.5
            y = y.long()
            if kind == "binary" and y_pred.ndim > 2 and y_pred.shape[1] == 1:
                # Masks with one channel are a binary task, not a multilabel task.
                y_pred, y = y_pred.flatten(), y.flatten()
        if y_pred.ndim > 1 and y_pred.shape[-1] == 1:
            y_pred, y = y_pred.squeeze(-1), y.reshape(y_pred.shape[:-1])
        if self.metric is None:
            self._choose_class(y_pred, y)
            self._create()
        super().update(y_pred, y)

    def compute(self) -> Scalar:
        """Return the value over all batches, NaN before the first."""
        return float("nan") if self.metric is None else super().compute()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the torchmetrics object, none before the first batch."""
        return {} if self.metric is None else super().state_dict() | {"path": self.path, "arguments": self.arguments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        if state:
            self._create_from(state)
            super().load_state_dict(state)

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the ``states`` of all ranks, some of which may have had no batch."""
        state = next(filter(None, states), None)
        if state is not None:
            self._create_from(state)
            super().merge(states)

    def _choose_class(self, y_pred: Tensor, y: Tensor) -> None:
        """Choose the class and its arguments from the first batch."""
        if "classification" not in self.path:
            # By default, torchmetrics sums similarities, so the value would grow with the data.
            self.arguments = {"reduction": "mean"} if self.path.endswith("CosineSimilarity") else {}
            return
        ignore_index = self.criterion.ignore_index
        if self.criterion.kind == "multiclass":
            self.path, self.arguments = self.path.replace("Binary", "Multiclass"), {"num_classes": y_pred.shape[1]}
            if ignore_index is not None and (y.ndim > 1 or ignore_index >= 0):
                # As for accuracy, a negative index marks tokens or pixels only.
                self.arguments["ignore_index"] = ignore_index
        elif self.criterion.kind == "binary" and y_pred.ndim > 1:
            self.path, self.arguments = self.path.replace("Binary", "Multilabel"), {"num_labels": y_pred.shape[1]}

    def _create_from(self, state: Mapping[str, Any]) -> None:
        self.path, self.arguments = state["path"], dict(state["arguments"])
        self._create()

    def _create(self) -> None:
        cls = getattr(_import_module(self.path), self.path.rpartition(".")[2], None)
        if cls is None:
            raise ValueError(
                f"The metric {self.name!r} is not defined for these targets: torchmetrics has no {self.path}. Remove it from "
                "compile(metrics=...)."
            )
        # Validation of the arguments would synchronize with the device in every step.
        options = {"validate_args": False} if "classification" in self.path else {}
        self.metric = cls(**self.arguments, **options, sync_on_compute=False)


def _import_module(path: str) -> Any:
    try:
        return importlib.import_module(path.rpartition(".")[0])
    except ImportError as error:
        raise ImportError(f"{path} is a metric of torchmetrics: pip install torchmetrics") from error
