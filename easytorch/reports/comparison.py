"""Comparison of two reports on the same samples."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from easytorch.reports.base import Array, Comparison, Report
from easytorch.reports.estimate import Estimate
from easytorch.reports.intervals import LEVEL, ratio_variance


def compare_reports(first: Report, second: Report) -> Comparison:
    """Return the difference of two reports: McNemar's exact test for shares, the paired t-test for other scores.

    Raises:
        TypeError: If the reports are of different kinds.
        ValueError: If the targets differ.
    """
    if type(first) is not type(second):
        raise TypeError(
            f"Expected a {type(first).__name__} to compare with, received {type(second).__name__}. Pass the report of another "
            "model on the same data: report.compare(other.report(x, y))."
        )
    if not np.array_equal(first.indices, second.indices) or not np.array_equal(first.y, second.y):
        raise ValueError(
            f"The targets of the reports differ: {len(first)} and {len(second)} samples. Compare two models on the same data, in "
            "the same order."
        )
    a, b = first.scores(), second.scores()
    if first.weights is not None:
        difference, p_value, test = _compare_weighted_means(a, b, first.weights)
    else:
        difference, p_value, test = (_compare_shares if a.dtype == bool else _compare_means)(a, b)
    means = [float(np.average(scores, weights=first.weights)) for scores in (a, b)]
    return Comparison(first.score_name, means[0], means[1], difference, p_value, test, first.higher_is_better)


def _compare_shares(first: Array, second: Array) -> tuple[Estimate, float, str]:
    """Return difference, p-value and test of two shares of right predictions on the same samples.

    Sources: Q. McNemar, 1947; for the interval A. Agresti and Y. Min, Simple improved confidence intervals for comparing matched
    proportions, 2005.
    """
    gains, losses, count = int((first & ~second).sum()), int((~first & second).sum()), len(first)
    p_value = float(stats.binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    center = (gains - losses) / (count + 2)
    spread = math.sqrt(gains + losses + 1 - (gains - losses) ** 2 / (count + 2)) / (count + 2)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * spread
    return Estimate((gains - losses) / count, center - half, center + half), p_value, "McNemar, exact"


def _compare_means(first: Array, second: Array) -> tuple[Estimate, float, str]:
    """Return difference, p-value and test of two means over the same samples, by the paired t-test."""
    differences = first - second
    mean = float(differences.mean())
    if len(differences) < 2:
        return Estimate(mean), 1.0, "paired t"
    if np.ptp(differences) == 0:  # the same difference for every sample: no chance is left
        return Estimate(mean, mean, mean), float(mean == 0), "paired t"
    result = stats.ttest_rel(first, second)
    low, high = result.confidence_interval(LEVEL)
    return Estimate(mean, float(low), float(high)), float(result.pvalue), "paired t"


def _compare_weighted_means(first: Array, second: Array, weights: Array) -> tuple[Estimate, float, str]:
    """Return difference, p-value and test of two means over the positions of samples, by the t-test of a ratio over samples.

    With equal weights it is the paired t-test over samples. Source: W. G. Cochran, Sampling Techniques, 1977, section 2.11.

    Args:
        first: The mean of each sample.
        second: The same of the other model.
        weights: The number of positions of each sample.
    """
    differences, test = first - second, "t over samples"
    mean = float(np.average(differences, weights=weights))
    if len(differences) < 2:
        return Estimate(mean), 1.0, test
    error = math.sqrt(ratio_variance((differences - mean) * weights, float(weights.sum())))
    if error == 0:
        return Estimate(mean, mean, mean), float(mean == 0), test
    degrees = len(differences) - 1
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    return Estimate(mean, mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, degrees)), test
