"""Reports on a class for each position of a sample: the pixels of an image, the tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from torch import Tensor

from easytorch.reports.base import WORST, Array, Report, Row, find_largest
from easytorch.reports.classification import (
    confidence_bins,
    draw_calibration,
    draw_confusion,
    score_probabilities,
)
from easytorch.reports.estimate import Estimate
from easytorch.reports.finite import check_finite
from easytorch.reports.intervals import Bootstrap, Scale, nan_mean, proportion_of_clusters

# Probabilities that are computed at a time, and numbers that one step of a bootstrap computes.
CHUNK = 4_000_000
# A confusion matrix of more classes is not stored as a whole.
MAX_CONFUSION = 1000
# With more classes, the table has only those that occur.
MAX_ROWS = 100


class Positions(NamedTuple):
    """The positions with a label that counts, each array ``[positions]``."""

    sample: Array  # the index of the sample
    place: Array  # the index among all positions of the sample
    y: Array
    predicted: Array
    confidence: Array  # the probability of the prediction
    log_loss: Array
    brier: Array


class PositionReport(Report):
    """A report on predictions of one class for each position of a sample, such as a pixel or a token.

    Every position counts once. The positions of one sample depend on each other, so the intervals are about samples.

    Attributes:
        names: The name of each class.
        confusion: Number of positions by true class (row) and predicted class (column); None for more than 1,000 classes.
        counts: The number of positions of each sample with a label that counts, ``[N]``.
        shape: The shape of the positions of a sample, such as ``(height, width)``.
        threshold: For two classes from one output, the probability above which class 1 is predicted; otherwise None.
    """

    title, score_name, higher_is_better = "Classification of positions", "accuracy", True

    def __init__(
        self,
        positions: Positions,
        *,
        shape: tuple[int, ...],
        classes: int,
        names: Sequence[str] | None = None,
        losses: Array | None = None,
        threshold: float | None = None,
        bootstrap: Bootstrap,
    ) -> None:
        indices, self._sample = np.unique(positions.sample, return_inverse=True)
        super().__init__(positions.y, positions.predicted, losses, bootstrap, indices)
        self.positions, self.shape, self.threshold = positions, shape, threshold
        self.names = [str(i) for i in range(classes)] if names is None else list(names)
        self.weights = self.counts = np.bincount(self._sample)
        self.confusion: Array | None = None
        if classes <= MAX_CONFUSION:
            pairs = positions.y.astype(np.int64) * classes + positions.predicted
            self.confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self._measure()

    def __len__(self) -> int:
        """Return the number of samples that have a label that counts."""
        return len(self.indices)

    @property
    def size(self) -> str:
        """The number of positions and samples, as text."""
        return f"{len(self.y):,} positions of {len(self):,} samples"

    def scores(self) -> Array:
        """Return the share of right positions of each sample, ``[N]``."""
        return np.asarray(self._sum_by_sample(self.y == self.predicted) / self.counts)

    def score(self, members: Array) -> Estimate:
        """Return the share of right positions of the samples ``members``, ``[N]`` of booleans."""
        right = self._sum_by_sample(self.y == self.predicted)
        return proportion_of_clusters(right[members], self.counts[members])

    def _sum_by_sample(self, values: Array) -> Array:
        return np.bincount(self._sample, weights=values, minlength=len(self))

    def _measure(self) -> None:
        is_right, classes = self.y == self.predicted, len(self.names)
        occurring = np.union1d(self.y, self.predicted) if classes > MAX_ROWS else np.arange(classes)
        true, predicted, right = (
            self._count_by_class(labels[mask], self._sample[mask], occurring)
            for labels, mask in ((self.y, slice(None)), (self.predicted, slice(None)), (self.y, is_right))
        )
        scores = self._bootstrap_classes(true, predicted, right)
        self.summary = {
            "accuracy": self.score(np.ones(len(self), dtype=bool)),
            "balanced_accuracy": scores[-3],
            "f1 (macro)": scores[-2],
            "iou (macro)": scores[-1],
            **self._probability_scores(),
        }
        count = len(occurring)
        columns = [matrix.tocsc() for matrix in (true, predicted, right)]
        rows = []
        for i, number in enumerate(occurring):
            actual, found, hits = (matrix[:, [i]].toarray().ravel() for matrix in columns)
            rows.append(
                {
                    "class": self.names[number],
                    "precision": proportion_of_clusters(hits, found),
                    "recall": proportion_of_clusters(hits, actual),
                    "f1": scores[i],
                    "iou": scores[count + i],
                    "support": int(actual.sum()),
                }
            )
        self.tables["classes"] = rows
        self.tables["confusions"] = self._confusions()
        self.add_worst()
        self.tables["confident_errors"] = self._confident_errors()

    def _count_by_class(self, labels: Array, sample: Array, occurring: Array) -> Any:
        """Return how many positions of each sample have each class, a sparse matrix ``[N, classes]``."""
        columns = np.searchsorted(occurring, labels)
        ones = np.ones(len(labels))
        return sparse.csr_array(sparse.coo_array((ones, (sample, columns)), shape=(len(self), len(occurring))))

    def _bootstrap_classes(self, true: Any, predicted: Any, right: Any) -> list[Estimate]:
        """Return F1 and IoU of each class, then balanced accuracy, macro F1 and macro IoU."""

        def measure(weights: Array) -> Array:
            step = max(1, CHUNK // true.shape[1])
            return np.concatenate([of_rows(weights[start : start + step]) for start in range(0, len(weights), step)])

        def of_rows(weights: Array) -> Array:
            actual, found, hits = (np.asarray((matrix.T @ weights.T).T) for matrix in (true, predicted, right))
            with np.errstate(invalid="ignore", divide="ignore"):
                f1, iou, recall = 2 * hits / (actual + found), hits / (actual + found - hits), hits / actual
            means = [nan_mean(values) for values in (recall, f1, iou)]
            return np.column_stack([f1, iou, *means])

        return self.bootstrap.of_samples(measure, len(self), [Scale.SHARE] * (2 * true.shape[1] + 3))

    def _probability_scores(self) -> dict[str, Estimate]:
        """Return mean log loss, Brier score and calibration error."""
        columns = [self.counts, *map(self._sum_by_sample, (self.positions.log_loss, self.positions.brier))]
        sums = np.column_stack(columns)
        gaps = (self.y == self.predicted) - self.positions.confidence
        by_bin = np.bincount(confidence_bins(self.positions.confidence), weights=gaps)

        def measure(weights: Array) -> Array:
            total, log_loss, brier = (weights @ sums).T
            return np.column_stack([log_loss / total, brier / total])

        log_loss, brier_score = self.bootstrap.of_samples(measure, len(self), [Scale.POSITIVE] * 2)
        calibration = Estimate(float(np.abs(by_bin).sum() / len(self.y)))
        return {"log_loss": log_loss, "brier_score": brier_score, "calibration_error": calibration}

    def _confusions(self) -> list[Row]:
        """Return the most frequent errors."""
        wrong = self.y != self.predicted
        pairs, inverse = np.unique(
            self.y[wrong].astype(np.int64) * len(self.names) + self.predicted[wrong], return_inverse=True
        )
        counts = np.bincount(inverse, minlength=len(pairs))
        rows = []
        for i in np.argsort(-counts, kind="stable")[:WORST]:
            true, predicted = divmod(int(pairs[i]), len(self.names))
            is_true = self.y == true
            share = proportion_of_clusters(
                self._sum_by_sample(is_true & (self.predicted == predicted)), self._sum_by_sample(is_true)
            )
            names = {"true": self.names[true], "predicted": self.names[predicted]}
            rows.append({**names, "count": int(counts[i]), "share": share})
        return rows

    def worst_rows(self, indices: Array) -> list[Row]:
        """Return index, number of positions, accuracy and loss of samples."""
        accuracy = self.scores()
        assert self.losses is not None
        return [
            {
                "index": int(self.indices[i]),
                "positions": int(self.counts[i]),
                "accuracy": float(accuracy[i]),
                "loss": float(self.losses[i]),
            }
            for i in indices
        ]

    def _confident_errors(self) -> list[Row]:
        """Return the wrong predictions with the highest probability, with the position in the sample."""
        positions = self.positions
        wrong = np.flatnonzero(self.y != self.predicted)
        rows = []
        for i in wrong[find_largest(positions.confidence[wrong], WORST)]:
            place = ", ".join(str(int(index)) for index in np.unravel_index(int(positions.place[i]), self.shape))
            names = {"true": self.names[self.y[i]], "predicted": self.names[self.predicted[i]]}
            row = {"index": int(positions.sample[i]), "position": place, **names}
            rows.append(row | {"probability": float(positions.confidence[i])})
        return rows

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return confusion matrix, IoU of each class, and calibration."""
        drawn: list[tuple[str, Callable[[Any], None]]] = []
        if self.confusion is not None:
            confusion = self.confusion
            drawn.append(("confusion matrix (rows: true)", lambda axes: draw_confusion(axes, confusion, self.names)))
        return [*drawn, ("calibration", self._draw_calibration)]

    def _draw_calibration(self, axes: Any) -> None:
        positions, points = self.positions, []
        bins, is_right = confidence_bins(positions.confidence), self.y == self.predicted
        for i in np.unique(bins):
            members = bins == i
            hits, counts = self._sum_by_sample(members & is_right), self._sum_by_sample(members)
            points.append((float(positions.confidence[members].mean()), proportion_of_clusters(hits, counts)))
        draw_calibration(axes, points)


def read_positions(
    y: Tensor,
    outputs: Tensor,
    *,
    probabilities: Callable[[Tensor], Tensor],
    ignore_index: int | None,
    threshold: float | None = None,
) -> Positions:
    """Return all positions with a label that counts, without the probabilities of all classes at once.

    Args:
        y: Labels, ``[N, ...]``.
        outputs: Outputs of the module, ``[N, classes, ...]``, or ``[N, 1, ...]`` for two classes.
        probabilities: Returns the probabilities of outputs, in their shape.
        ignore_index: The label that does not count; None if all count.
        threshold: For one output, the probability above which class 1 is predicted; None for the class with the highest one.

    Raises:
        ValueError: If an output is NaN, or no label counts.
    """
    size = outputs[0].numel()
    step = max(1, CHUNK // max(1, size))
    parts, is_finite = [], np.ones(len(y), dtype=bool)
    for start in range(0, len(y), step):
        chunk = probabilities(outputs[start : start + step].double()).flatten(2).transpose(1, 2).numpy()
        labels = y[start : start + step].flatten(1).numpy()
        counted = np.ones(labels.shape, dtype=bool) if ignore_index is None else labels != ignore_index
        sample, place = np.nonzero(counted)
        chosen = chunk[counted]
        is_finite[sample[np.isnan(chosen).any(1)] + start] = False
        parts.append(_read_part(chosen, labels[counted], sample + start, place, threshold))
    check_finite("outputs", is_finite)
    positions = Positions(*map(np.concatenate, zip(*parts, strict=True)))
    if not len(positions.y):
        raise ValueError(
            f"A report needs at least one label, but all labels are {ignore_index}, which the loss ignores. Pass samples with "
            "labels of classes."
        )
    return positions


def _read_part(values: Array, y: Array, sample: Array, place: Array, threshold: float | None) -> Positions:
    if values.shape[1] == 1:
        values = np.concatenate([1 - values, values], axis=1)
    predicted = values.argmax(1) if threshold is None else (values[:, 1] > threshold).astype(int)
    log_loss, brier, confidence = score_probabilities(values, y, predicted)
    return Positions(sample, place, y, predicted, confidence, log_loss, brier)
