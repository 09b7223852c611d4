"""Reports on the predictions of classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from easytorch.reports.base import WORST, Array, Report, Row, find_largest
from easytorch.reports.estimate import Estimate
from easytorch.reports.intervals import (
    Bootstrap,
    Scale,
    area_intervals,
    f1_score,
    mean_of_parts,
    proportion,
    proportion_of_clusters,
)

# Bins of the calibration error, as in C. Guo et al., On calibration of modern neural networks, 2017.
BINS = 15
# Classes whose curves fit in one panel.
MAX_CURVES = 10
# Weights that are read at a time, and draws at least.
IN_CACHE, MIN_COLUMNS = 1_000_000, 8
# Whole numbers below this one are exact as float32.
EXACT = 2**24


class ClassificationReport(Report):
    """A report on predictions of one class per sample.

    Attributes:
        probabilities: ``[N, classes]``.
        names: The name of each class.
        confusion: Number of samples by true class (row) and predicted class (column).
        threshold: For two classes from one output, the probability above which class 1 is predicted; otherwise None.
    """

    title, score_name, higher_is_better = "Classification", "accuracy", True

    def __init__(
        self,
        y: Array,
        probabilities: Array,
        *,
        names: Sequence[str] | None = None,
        losses: Array | None = None,
        threshold: float | None = None,
        bootstrap: Bootstrap,
        indices: Array | None = None,
    ) -> None:
        classes = probabilities.shape[1]
        predicted = probabilities.argmax(1) if threshold is None else (probabilities[:, 1] > threshold).astype(int)
        super().__init__(y, predicted, losses, bootstrap, indices)
        self.probabilities, self.threshold = probabilities, threshold
        self.names = [str(i) for i in range(classes)] if names is None else list(names)
        self.confusion = np.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)
        self._measure()

    def scores(self) -> Array:
        """Return whether each prediction is right."""
        return np.asarray(self.y == self.predicted)

    def _measure(self) -> None:
        right = int(np.trace(self.confusion))
        cells = self.confusion[self.confusion > 0]
        drawn, classes = self.bootstrap.draw_counts(ConfusionScores(self.confusion), cells), len(self.names)
        hits, true, predicted = np.diag(self.confusion), self.confusion.sum(1), self.confusion.sum(0)
        precision = [proportion(*counts) for counts in zip(hits, predicted, strict=True)]
        recall = [proportion(*counts) for counts in zip(hits, true, strict=True)]
        f1 = [f1_score(*counts) for counts in zip(hits, predicted, true, strict=True)]
        rankings = [Ranking(self.probabilities[:, i], self.y == i) for i in range(classes)]
        curves = measure_areas(rankings, self.bootstrap, len(self))
        self.summary = {
            "accuracy": proportion(right, len(self)),
            "balanced_accuracy": mean_of_parts(recall, drawn[:, classes:]),
            "f1 (macro)": mean_of_parts(f1, drawn[:, :classes]),
            "roc_auc (macro)": curves[-2],
            "average_precision (macro)": curves[-1],
            **self._probability_scores(),
        }
        self.tables["classes"] = [
            {
                "class": name,
                "precision": precision[i],
                "recall": recall[i],
                "f1": f1[i],
                "roc_auc": curves[i],
                "average_precision": curves[classes + i],
                "support": int(true[i]),
            }
            for i, name in enumerate(self.names)
        ]
        if classes == 2:
            self.tables["thresholds"] = self._thresholds()
        self.tables["confusions"] = self._confusions()
        self.add_worst()
        self.tables["confident_errors"] = self._confident_errors()

    def _probability_scores(self) -> dict[str, Estimate]:
        """Return the scores of the probabilities: mean log loss, Brier score, and calibration error."""
        log_losses, brier, confidence = score_probabilities(self.probabilities, self.y, self.predicted)
        members = np.eye(BINS)[confidence_bins(confidence)]
        gaps = members * (self.scores() - confidence)[:, None]

        values = np.column_stack([log_losses, brier])
        log_loss, brier_score = self.bootstrap.of_means(values, [Scale.POSITIVE] * 2)
        largest = 1.0 if self.probabilities.shape[1] == 2 else 2.0
        if brier_score.high > largest:
            brier_score = brier_score._replace(high=largest)
        # Chance makes it larger, the more so in the draws of a bootstrap, whose intervals would rarely contain the true value.
        calibration = Estimate(float(np.abs(gaps.sum(0)).sum() / len(self)))
        return {"log_loss": log_loss, "brier_score": brier_score, "calibration_error": calibration}

    def _thresholds(self) -> list[Row]:
        """Return the threshold with the highest F1 of class 1, and that with the highest sum of sensitivity and specificity."""
        scores, is_positive = self.probabilities[:, 1], self.y == 1
        if not 0 < is_positive.sum() < len(self):
            return []
        precision, recall, cuts = metrics.precision_recall_curve(is_positive, scores)
        with np.errstate(invalid="ignore"):
            f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
        false_rate, true_rate, roc_cuts = metrics.roc_curve(is_positive, scores, drop_intermediate=False)
        best = int(np.argmax(true_rate - false_rate))
        distinct = np.unique(scores)

        def above(cut: float) -> float:
            """Return the middle between ``cut`` and the next lower score: all scores of at least ``cut`` are above it."""
            position = int(np.searchsorted(distinct, cut))
            if position == len(distinct):  # no sample is above
                return 1.0
            lower = float(distinct[position - 1]) if position else 0.0
            middle = (lower + float(distinct[position])) / 2
            return middle if middle < distinct[position] else lower

        return [
            {"criterion": "f1", "threshold": above(cuts[f1.argmax()]), "value": float(f1.max())},
            {
                "criterion": "sensitivity + specificity - 1",
                "threshold": above(roc_cuts[best]),
                "value": float(true_rate[best] - false_rate[best]),
            },
        ]

    def _confusions(self) -> list[Row]:
        """Return the most frequent errors."""
        errors = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-errors, axis=None, kind="stable")[:WORST]
        pairs = [np.unravel_index(int(index), errors.shape) for index in order]
        return [
            {
                "true": self.names[i],
                "predicted": self.names[j],
                "count": int(errors[i, j]),
                "share": proportion(errors[i, j], self.confusion[i].sum()),
            }
            for i, j in pairs
            if errors[i, j]
        ]

    def worst_rows(self, indices: Array) -> list[Row]:
        """Return index, classes, probability and loss of samples."""
        return [
            {
                "index": int(self.indices[i]),
                "true": self.names[self.y[i]],
                "predicted": self.names[self.predicted[i]],
                "probability": float(self.probabilities[i, self.predicted[i]]),
                **({"loss": float(self.losses[i])} if self.losses is not None else {}),
            }
            for i in indices
        ]

    def image_title(self, i: int) -> str:
        """Return the index of sample ``i`` in the data, its class, and the predicted class if it differs."""
        true, predicted = self.names[self.y[i]], self.names[self.predicted[i]]
        return f"{self.indices[i]}: {true}" + (f", not {predicted}" if true != predicted else "")

    def _confident_errors(self) -> list[Row]:
        """Return the wrong predictions with the highest probability."""
        confidence = self.probabilities[np.arange(len(self)), self.predicted]
        wrong = np.flatnonzero(~self.scores())
        return self.worst_rows(wrong[find_largest(confidence[wrong], WORST)])

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return confusion matrix, ROC and precision-recall curves, and calibration."""
        return [
            ("confusion matrix (rows: true)", lambda axes: draw_confusion(axes, self.confusion, self.names)),
            ("ROC", self._draw_roc),
            ("precision and recall", self._draw_precision),
            ("calibration", self._draw_calibration),
        ]

    def _curve_classes(self) -> list[int]:
        """Return the classes whose curves are drawn: those with samples, the least separable first."""
        classes = [1] if len(self.names) == 2 else range(len(self.names))
        present = [i for i in classes if 0 < (self.y == i).sum() < len(self)]
        return sorted(present, key=lambda i: self.tables["classes"][i]["roc_auc"].value)[:MAX_CURVES]

    def _draw_roc(self, axes: Any) -> None:
        for i in self._curve_classes():
            false_rate, true_rate, _ = metrics.roc_curve(self.y == i, self.probabilities[:, i])
            axes.plot(false_rate, true_rate, label=self.names[i])
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        if self._curve_classes():
            axes.legend(fontsize=6)

    def _draw_precision(self, axes: Any) -> None:
        for i in self._curve_classes():
            precision, recall, _ = metrics.precision_recall_curve(self.y == i, self.probabilities[:, i])
            axes.plot(recall, precision, label=self.names[i])
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        axes.set_ylim(0, 1.02)

    def _draw_calibration(self, axes: Any) -> None:
        confidence = self.probabilities[np.arange(len(self)), self.predicted]
        bins = confidence_bins(confidence)
        points = [
            (confidence[bins == i].mean(), proportion(self.scores()[bins == i].sum(), (bins == i).sum()))
            for i in np.unique(bins)
        ]
        draw_calibration(axes, points)


class MultilabelReport(Report):
    """A report on predictions of any number of labels per sample.

    Attributes:
        probabilities: ``[N, labels]``.
        names: The name of each label.
        threshold: The probability above which a label is predicted.
    """

    title, score_name, higher_is_better = "Multilabel classification", "exact_match", True

    def __init__(
        self,
        y: Array,
        probabilities: Array,
        *,
        names: Sequence[str] | None = None,
        losses: Array | None = None,
        threshold: float = 0.5,
        bootstrap: Bootstrap,
    ) -> None:
        if y.shape != probabilities.shape or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"Expected labels 0 and 1 in the shape of the outputs, {list(probabilities.shape)}, received labels "
                f"{list(y.shape)} from {y.min():.4g} to {y.max():.4g}. Pass one column of 0 and 1 for each label."
            )
        super().__init__(y.astype(int), (probabilities > threshold).astype(int), losses, bootstrap)
        self.probabilities, self.threshold = probabilities, threshold
        self.names = [str(i) for i in range(y.shape[1])] if names is None else list(names)
        self._measure()

    def scores(self) -> Array:
        """Return whether all labels of each sample are right."""
        exact: Array = (self.y == self.predicted).all(1)
        return exact

    def _measure(self) -> None:
        hits = np.concatenate([self.y * self.predicted, self.predicted, self.y], axis=1).astype(float)
        right = (self.y == self.predicted).sum(1)

        def measure(weights: Array) -> Array:
            true, predicted, actual = np.split(weights @ hits, 3, axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                scores: Array = 2 * true / (predicted + actual)
            return scores

        labels = len(self.names)
        drawn = self.bootstrap.draw_samples(measure, len(self))
        true, predicted, actual = np.split(hits.sum(0), 3)
        f1 = [f1_score(*counts) for counts in zip(true, predicted, actual, strict=True)]
        rankings = [Ranking(self.probabilities[:, i], self.y[:, i] == 1) for i in range(labels)]
        areas = measure_areas(rankings, self.bootstrap, len(self))
        self.summary = {
            "exact_match": proportion(self.scores().sum(), len(self)),
            "accuracy of labels": proportion_of_clusters(right, np.full(len(self), labels)),
            "f1 (macro)": mean_of_parts(f1, drawn),
            "roc_auc (macro)": areas[-2],
            "average_precision (macro)": areas[-1],
        }
        self.tables["labels"] = [
            {
                "label": name,
                "precision": proportion(true[i], predicted[i]),
                "recall": proportion(true[i], actual[i]),
                "f1": f1[i],
                "roc_auc": areas[i],
                "average_precision": areas[labels + i],
                "support": int(actual[i]),
            }
            for i, name in enumerate(self.names)
        ]
        self.add_worst()

    def worst_rows(self, indices: Array) -> list[Row]:
        """Return index, labels and loss of samples."""

        def listed(row: Array) -> str:
            return ", ".join(name for name, is_set in zip(self.names, row, strict=True) if is_set) or "-"

        assert self.losses is not None
        return [
            {
                "index": int(i),
                "true": listed(self.y[i]),
                "predicted": listed(self.predicted[i]),
                "loss": float(self.losses[i]),
            }
            for i in indices
        ]

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return the scores of each label."""
        return [("f1 of each label", self._draw_labels)]

    def _draw_labels(self, axes: Any) -> None:
        rows = self.tables["labels"]
        values = [row["f1"] for row in rows]
        errors = np.nan_to_num(
            [[estimate.value - estimate.low, estimate.high - estimate.value] for estimate in values]
        ).T
        axes.errorbar(
            [estimate.value for estimate in values],
            range(len(rows)),
            xerr=np.maximum(errors, 0),
            marker="o",
            linestyle="",
        )
        axes.set_yticks(range(len(rows)), self.names)
        axes.set_xlim(0, 1)


def score_probabilities(probabilities: Array, y: Array, predicted: Array) -> tuple[Array, Array, Array]:
    """Return the log loss, the Brier score and the probability of the prediction, each ``[N]``.

    Args:
        probabilities: ``[N, classes]``.
        y: The true class of each row.
        predicted: The predicted class of each row.
    """
    rows = np.arange(len(y))
    log_losses = -np.log(np.clip(probabilities[rows, y], np.finfo(float).tiny, 1))
    errors = probabilities.copy()
    errors[rows, y] -= 1
    # For two classes, the square of the error of one of them.
    brier = np.einsum("ij,ij->i", errors, errors) / (2 if probabilities.shape[1] == 2 else 1)
    return log_losses, brier, probabilities[rows, predicted]


def confidence_bins(confidence: Array) -> Array:
    """Return the number of the bin of each probability, for the calibration error."""
    return np.asarray(np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1))


def draw_confusion(axes: Any, confusion: Array, names: Sequence[str]) -> None:
    """Draw a confusion matrix, with colors by share of the true class."""
    rows = confusion.sum(1, keepdims=True)
    axes.imshow(confusion / np.maximum(rows, 1), cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 12:
        for (i, j), count in np.ndenumerate(confusion):
            if count:
                color = "white" if 2 * count > rows[i, 0] else "black"
                axes.text(j, i, str(count), ha="center", va="center", fontsize=6, color=color)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def draw_calibration(axes: Any, points: Sequence[tuple[float, Estimate]]) -> None:
    """Draw the share of right predictions by predicted probability, with intervals."""
    x, shares = [x for x, _ in points], [estimate for _, estimate in points]
    low = np.nan_to_num([estimate.value - estimate.low for estimate in shares])
    high = np.nan_to_num([estimate.high - estimate.value for estimate in shares])
    axes.errorbar(x, [estimate.value for estimate in shares], [low, high], marker="o", linestyle="")
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of right predictions")


class ConfusionScores:
    """F1 and recall of each class, for counts of the cells of a confusion matrix.

    Most cells of the confusion matrix of many classes are empty, also in each draw of a bootstrap.

    Args:
        confusion: ``[classes, classes]``; its cells that are not empty are counted, in the order of rows.
    """

    def __init__(self, confusion: Array) -> None:
        self.classes = len(confusion)
        rows, columns = np.nonzero(confusion)
        self._by_column = np.argsort(columns, kind="stable")
        self._rows, self._row_starts = np.unique(rows, return_index=True)
        self._columns, self._column_starts = np.unique(columns[self._by_column], return_index=True)
        self._is_right = rows == columns
        self._right = rows[self._is_right]

    def __call__(self, counts: Array) -> Array:
        """Return the scores ``[..., 2 * classes]`` for counts ``[..., cells]``."""
        right, true, predicted = np.zeros((3, *counts.shape[:-1], self.classes))
        right[..., self._right] = counts[..., self._is_right]
        true[..., self._rows] = np.add.reduceat(counts, self._row_starts, axis=-1)
        predicted[..., self._columns] = np.add.reduceat(counts[..., self._by_column], self._column_starts, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([2 * right / (true + predicted), right / true], axis=-1)


class Ranking:
    """The samples in the order of their scores for one class, the highest first.

    Args:
        scores: The score of each sample, ``[N]``.
        is_positive: Whether each sample is of the class.
    """

    def __init__(self, scores: Array, is_positive: Array) -> None:
        order = np.argsort(-scores)  # the order of equal scores has no effect
        ranked = scores[order]
        edges = np.r_[0, np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, len(scores)]
        positives = np.flatnonzero(is_positive[order])
        tie = np.searchsorted(edges, positives, side="right")
        # Samples before and up to the end of the samples with the same score as each positive one.
        starts, ends = edges[tie - 1], edges[tie]
        # Only the sums between these positions matter.
        cuts = np.unique(np.r_[0, starts, ends, len(scores)])
        self.order, self.cuts = order, cuts[:-1]
        self.starts, self.ends = np.searchsorted(cuts, starts), np.searchsorted(cuts, ends)
        # The same among the positive ones.
        self.positives = order[positives]
        self.first, self.last = np.searchsorted(positives, starts), np.searchsorted(positives, ends)

    def areas(self, weights: Array) -> tuple[Array, Array]:
        """Return the area below the ROC curve, and the average precision, for weights ``[N, repeats]``; NaN without both classes.

        They equal ``sklearn.metrics.roc_auc_score`` and ``average_precision_score`` with ``sample_weight``.
        """
        all_sums = _sums_before(np.add.reduceat(weights.take(self.order, axis=0), self.cuts, axis=0))
        own = weights.take(self.positives, axis=0)
        sums = _sums_before(own)
        total = sums[-1]
        others = all_sums[-1] - total
        up_to, positives = all_sums[self.ends], sums[self.last]
        before = all_sums[self.starts] - sums[self.first]
        with np.errstate(invalid="ignore", divide="ignore"):
            # A positive sample ranks above all negative ones that come after it, and above half of those with the same score.
            higher = (before + (up_to - positives)) / 2
            auc = 1 - (own * higher).sum(0) / (total * others)
            average = (own * np.nan_to_num(positives / up_to)).sum(0) / total
        return auc, np.where(others > 0, average, np.nan)


def _sums_before(values: Array) -> Array:
    """Return the sum of the first 0, 1, 2, ... values of each column."""
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def measure_areas(rankings: Sequence[Ranking], bootstrap: Bootstrap, count: int) -> list[Estimate]:
    """Return AUC and average precision of each ranking of ``count`` samples, then both means."""
    positives = np.array([len(ranking.positives) for ranking in rankings])
    statistic, classes = functools.partial(_areas_of, rankings), len(rankings)
    values, drawn = statistic(np.ones((1, count)))[0], bootstrap.draw_samples(statistic, count, classes)
    parts = area_intervals(values, drawn, positives, count) if len(drawn) else [Estimate(float(x)) for x in values]
    return [
        *parts,
        mean_of_parts(parts[:classes], drawn[:, :classes]),
        mean_of_parts(parts[classes:], drawn[:, classes:]),
    ]


def _areas_of(rankings: Sequence[Ranking], weights: Array) -> Array:
    """Return AUC and average precision of each ranking, ``[repeats, 2 * rankings]``."""
    step = max(MIN_COLUMNS, IN_CACHE // weights.shape[1])
    # Sums of draws are exact in 32 bits. The weights of a sample in a row are read at once.
    kind = np.float32 if weights.shape[1] < EXACT else np.float64
    parts = []
    for start in range(0, len(weights), step):
        chunk = np.ascontiguousarray(weights[start : start + step].T, dtype=kind)
        columns = [ranking.areas(chunk) for ranking in rankings]
        auc, average = (np.stack(values, axis=1) for values in zip(*columns, strict=True))
        parts.append(np.column_stack([auc, average]))
    return np.concatenate(parts)
