"""Adapters for metrics of torchmetrics."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easytorch._utils.pytree import map_leaves
from easytorch._utils.registry import snake_case
from easytorch._utils.warnings import warn
from easytorch.losses.criterion import Criterion
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
    "pearson_corrcoef": "PearsonCorrCoef",
    "r2": "R2Score",
    "r2_score": "R2Score",
    "relative_squared_error": "RelativeSquaredError",
    "spearman_corrcoef": "SpearmanCorrCoef",
    "symmetric_mean_absolute_percentage_error": "SymmetricMeanAbsolutePercentageError",
}
# Averages over classes, as a suffix of the names in AVERAGED.
AVERAGES = ("macro", "micro", "weighted", "binary")
AVERAGED = ("f1", "f1_score", "precision", "recall", "specificity", "iou", "jaccard_index", "negative_predictive_value")
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
        if _stores_rows(getattr(self.metric, "metric_state", None)):
            # A module or loader may use the memory for the next batch.
            y_pred, y = map_leaves(_copy, y_pred), map_leaves(_copy, y)
        self.metric.update(y_pred, y)
        # A metric that wraps other metrics does not count its own updates.
        self.count += 1

    def compute(self) -> Any:
        """Return the value over all batches, NaN before the first."""
        return self.metric.compute() if self.count else float("nan")

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
        average: ``"macro"``, ``"micro"``, ``"weighted"``, ``"binary"`` for the second of two classes; None for the default of
            torchmetrics, which is ``"macro"`` for most metrics.

    Raises:
        ImportError: If torchmetrics is not installed.
    """

    def __init__(self, name: str, path: str, criterion: Criterion, average: str | None = None) -> None:
        self.name, self.path, self.criterion, self.count = name, path, criterion, 0
        self.average, self.is_classification = average, "classification" in path
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
        if not self.is_classification:
            task = ""
            if y_pred.ndim > 2 or y_pred.shape[-1:] == (1,):
                y_pred, y = y_pred.flatten(), y.reshape(y_pred.shape).flatten()
        elif self.criterion.kind == "multiclass":
            task, y_pred, y = self._as_classes(self.criterion.probabilities(y_pred), y)
        else:
            task, y_pred, y = self._as_labels(self.criterion.probabilities(y_pred), (y > 0.5).long())
        if not len(y):  # every label is ignored
            return
        if self.metric is None:
            self._choose_class(task, y_pred)
            self._create()
        super().update(y_pred, y)

    def _as_classes(self, y_pred: Tensor, y: Tensor) -> tuple[str, Tensor, Tensor]:
        """Return the task, the probabilities and the class indices, without those that are ignored.

        Args:
            y_pred: Probabilities, ``[N, classes, ...]``.
            y: Class indices, ``[N, ...]``, or probabilities, ``[N, classes, ...]``.
        """
        if y.is_floating_point():
            y = y.argmax(1) if y.shape == y_pred.shape else y.long()
        elif self.criterion.may_ignore and (y.ndim == 1 or not self.path.endswith("ExactMatch")):
            y_pred, y = y_pred.movedim(1, -1).flatten(0, -2), y.flatten()
            counts = y != self.criterion.ignore_index
            y_pred, y = y_pred[counts], y[counts]
        if self.average != "binary":
            return "Multiclass", y_pred, y
        if y_pred.shape[1] != 2:
            raise ValueError(f"it needs two classes, but the module has {y_pred.shape[1]} outputs")
        return "Binary", y_pred[:, 1].flatten(), y.flatten()

    def _as_labels(self, y_pred: Tensor, y: Tensor) -> tuple[str, Tensor, Tensor]:
        """Return the task, the probabilities and the targets, 0 or 1.

        Outputs ``[N, labels]`` and ``[N, labels, height, width]`` have several labels. Time steps and pixels, ``[N, steps, 1]``,
        ``[N, height, width]``, ``[N, height, width, 1]`` and ``[N, 1, height, width]``, are values of one label.
        """
        if (y_pred.ndim == 2 or y_pred.ndim > 3) and y_pred.shape[1] > 1 and y_pred.shape[-1] > 1:
            if self.average == "binary":
                raise ValueError(f"it measures one label, but the module has {y_pred.shape[1]}")
            return "Multilabel", y_pred, y.reshape(y_pred.shape)
        y_pred, y = y_pred.flatten(), y.flatten()
        if self.average in (None, "binary"):
            return "Binary", y_pred, y
        return "Multiclass", torch.stack([1 - y_pred, y_pred], 1), y

    def compute(self) -> Any:
        """Return the value over all batches, NaN before the first."""
        if self.metric is None:
            return float("nan")
        if not self.path.endswith("AUROC"):
            return super().compute()
        with warnings.catch_warnings():
            # torchmetrics warns that a class has no sample, and gives it the area 0.
            warnings.simplefilter("ignore")
            areas = super().compute()
        return _mean_over_measured(areas, self.metric.target)

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

    def _choose_class(self, task: str, y_pred: Tensor) -> None:
        """Choose the class and its arguments from the first batch."""
        self.arguments = {}
        if self.path.endswith("CosineSimilarity"):
            # By default, torchmetrics sums similarities, so the value would grow with the data.
            self.arguments["reduction"] = "mean"
        if not task:
            if y_pred.ndim > 1 and self._takes("num_outputs"):
                self.arguments["num_outputs"] = y_pred.shape[1]
            return
        self.path = self.path.replace("Binary", task)
        if task != "Binary":
            self.arguments["num_classes" if task == "Multiclass" else "num_labels"] = y_pred.shape[1]
            if self.average is not None:
                self.arguments["average"] = self.average
            elif self.path.endswith("AUROC"):
                self.arguments["average"] = "none"
        if task == "Multiclass" and self.average is None and y_pred.shape[1] == 2 and self._takes("average"):
            warn(
                f"{self.name!r} is the macro average over both classes, not the value of class 1. Pass '{self.name}_binary' for "
                f"class 1, or '{self.name}_macro' for the average."
            )
        if self.path.endswith("MulticlassExactMatch") and self.criterion.ignore_index is not None:
            self.arguments["ignore_index"] = self.criterion.ignore_index

    def _takes(self, argument: str) -> bool:
        cls = getattr(_import_module(self.path), self.path.rpartition(".")[2], None)
        return cls is not None and argument in inspect.signature(cls).parameters

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


def _stores_rows(states: Any) -> bool:
    """Return whether a metric with these states, or with unknown ones, may store predictions and targets."""
    if isinstance(states, Mapping):
        return any(_stores_rows(state) for state in states.values())
    return states is None or isinstance(states, list)


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _mean_over_measured(areas: Tensor, targets: Any) -> Tensor:
    """Return the mean over the classes that have both kinds of samples, NaN if there are none."""
    target = torch.cat(list(targets)) if isinstance(targets, (list, tuple)) else targets
    if not areas.ndim:
        positives = (target == 1).sum()
    elif target.ndim == 1:
        positives = torch.bincount(target, minlength=len(areas))
    else:
        positives = (target == 1).sum(0)
    is_measured = (positives > 0) & (positives < len(target))
    return torch.where(is_measured, areas, 0.0).sum() / is_measured.sum()


def _import_module(path: str) -> Any:
    try:
        return importlib.import_module(path.rpartition(".")[0])
    except ImportError as error:
        raise ImportError(f"{path} is a metric of torchmetrics: pip install torchmetrics") from error
