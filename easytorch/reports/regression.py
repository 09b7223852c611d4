"""Reports on the predictions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from easytorch.reports.base import Array, Report, Row
from easytorch.reports.estimate import Estimate
from easytorch.reports.intervals import Bootstrap, Scale, nan_mean, quantile

SHARES = (0.5, 0.9, 0.95, 0.99)
GROUPS = 5
# A table of more outputs, such as the pixels of an image, is left out.
MAX_OUTPUTS = 100
# Points of a scatter plot.
MAX_POINTS = 20_000
# With fewer samples, an interval of squared errors cannot know the tail of their distribution.
FEW_SAMPLES = 100
FEW_SAMPLES_NOTE = (
    f"Too few samples for exact intervals of rmse and r2, which need {FEW_SAMPLES}: if a few errors are much larger than the "
    "others, they contain the true value in about 90% of cases with 50 samples, and 75% with 10."
)
# A variance below this part of the mean square is an error of rounding.
ROUNDING = 1e-12


class RegressionReport(Report):
    """A report on predictions of one or more numbers per sample.

    Attributes:
        errors: Prediction minus target, ``[N, outputs]``.
        names: The name of each output.
    """

    title, score_name, higher_is_better = "Regression", "mae", False

    def __init__(
        self,
        y: Array,
        predicted: Array,
        *,
        names: Sequence[str] | None = None,
        losses: Array | None = None,
        bootstrap: Bootstrap,
    ) -> None:
        y, predicted = (np.asarray(values, dtype=float).reshape(len(values), -1) for values in (y, predicted))
        if y.shape != predicted.shape:
            raise ValueError(
                f"Expected targets in the shape of the predictions, {predicted.shape}, received {y.shape}. Pass one target for "
                "each output."
            )
        super().__init__(y, predicted, losses, bootstrap)
        self.errors = predicted - y
        if self.losses is None:
            self.losses = (self.errors**2).mean(1)
        self.names = [str(i) for i in range(y.shape[1])] if names is None else list(names)
        if len(self.names) != y.shape[1]:
            raise ValueError(
                f"names expects {y.shape[1]} names, one for each output, received {self.names}. Pass them in the order of the "
                "outputs."
            )
        self._measure()

    def scores(self) -> Array:
        """Return the mean absolute error of each sample."""
        return np.asarray(np.abs(self.errors).mean(1))

    def _measure(self) -> None:
        if len(self.names) == 1:
            self.summary = self._measure_output(self.y[:, 0], self.errors[:, 0])
        else:
            self.summary = self._measure_output(self.y.mean(1), None)
        if 1 < len(self.names) <= MAX_OUTPUTS:
            self.tables["outputs"] = [
                {"output": name, **self._measure_output(self.y[:, i], self.errors[:, i])}
                for i, name in enumerate(self.names)
            ]
        if self.bootstrap.repeats and len(self) < FEW_SAMPLES:
            self.notes.append(FEW_SAMPLES_NOTE)
        absolute = self.scores()
        self.tables["absolute error"] = [{"quantile": share, "error": quantile(absolute, share)} for share in SHARES]
        self.tables["error by target"] = self._by_target()
        self.add_worst()

    def _measure_output(self, y: Array, errors: Array | None) -> dict[str, Estimate]:
        """Return the scores of one output; of the mean over all outputs if ``errors`` is None."""
        absolute = self.scores() if errors is None else np.abs(errors)
        squared = (self.errors**2).mean(1) if errors is None else errors**2
        signed = self.errors.mean(1) if errors is None else errors
        targets = self.y if errors is None else y[:, None]
        residuals = self.errors**2 if errors is None else (errors**2)[:, None]

        scales = [Scale.POSITIVE, Scale.POSITIVE, Scale.ANY]
        mae, mse, bias = self.bootstrap.of_means(np.column_stack([absolute, squared, signed]), scales)
        rmse = Estimate(*(math.sqrt(value) for value in mse))
        return {"mae": mae, "rmse": rmse, "r2": self._measure_r2(targets, residuals), "bias": bias}

    def _measure_r2(self, targets: Array, residuals: Array) -> Estimate:
        """Return the mean R2 of outputs, for targets and squared errors ``[N, outputs]``."""
        # Sums of squares lose no digits if the targets are near 0.
        targets = targets - targets.mean(0)

        def variances(weights: Array, total: Array) -> Array:
            squares = weights @ targets**2 / total
            variance: Array = squares - (weights @ targets / total) ** 2
            variance[variance <= ROUNDING * squares] = np.nan  # equal targets have no R2
            return variance

        def measure(weights: Array) -> Array:
            total = weights.sum(1, keepdims=True)
            return nan_mean(1 - weights @ residuals / total / variances(weights, total))[:, None]

        variance = variances(np.ones((1, len(targets))), np.array([[len(targets)]]))
        influence = nan_mean(residuals / variance - residuals.mean(0) * targets**2 / variance**2)
        return self.bootstrap.of_samples(measure, len(targets), [Scale.UP_TO_1], influences=influence[:, None])[0]

    def _by_target(self) -> list[Row]:
        """Return the error of the samples in each fifth of the targets."""
        if len(self.names) > 1:
            return []
        y, errors = self.y[:, 0], self.errors[:, 0]
        edges = np.unique(np.quantile(y, np.linspace(0, 1, GROUPS + 1)))
        groups = np.clip(np.searchsorted(edges, y, side="right") - 1, 0, max(len(edges) - 2, 0))
        rows: list[Row] = []
        for group in np.unique(groups):
            members = groups == group
            mae, bias = self._mean_errors(errors[members])
            ends = {"from": float(y[members].min()), "to": float(y[members].max())}
            rows.append({**ends, "samples": int(members.sum()), "mae": mae, "bias": bias})
        return rows

    def _mean_errors(self, errors: Array) -> list[Estimate]:
        """Return the mean of the absolute errors and of the errors."""
        return self.bootstrap.of_means(np.column_stack([np.abs(errors), errors]), [Scale.POSITIVE, Scale.ANY])

    def worst_rows(self, indices: Array) -> list[Row]:
        """Return index, targets, predictions and loss of samples."""
        assert self.losses is not None

        def shown(values: Array) -> Any:
            return float(values[0]) if len(values) == 1 else [float(value) for value in values]

        if len(self.names) > MAX_OUTPUTS:
            return [{"index": int(i), "loss": float(self.losses[i])} for i in indices]
        return [
            {
                "index": int(i),
                "true": shown(self.y[i]),
                "predicted": shown(self.predicted[i]),
                "loss": float(self.losses[i]),
            }
            for i in indices
        ]

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return predictions against targets, and the residuals."""
        return [("predictions", self._draw_predictions), ("residuals", self._draw_residuals)]

    def _draw_predictions(self, axes: Any) -> None:
        y, predicted = self.y.T, self.predicted.T
        if len(y) > 10:  # the outputs as one
            y, predicted = y.reshape(1, -1), predicted.reshape(1, -1)
        step = -(-y.size // MAX_POINTS)
        for targets, predictions, name in zip(y, predicted, self.names, strict=False):
            axes.scatter(targets[::step], predictions[::step], s=4, alpha=0.5, label=name)
        if len(y) > 1:
            axes.legend(fontsize=6)
        ends = [min(self.y.min(), self.predicted.min()), max(self.y.max(), self.predicted.max())]
        axes.plot(ends, ends, color="gray", linestyle=":")
        axes.set_xlabel("target")
        axes.set_ylabel("prediction")

    def _draw_residuals(self, axes: Any) -> None:
        axes.hist(self.errors if len(self.names) <= 10 else self.errors.ravel(), bins=40)
        axes.axvline(0, color="gray", linestyle=":")
        axes.set_xlabel("prediction - target")
