"""Comparison of two reports on the same samples."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from easytorch.reports.base import Array, Comparison, Report
from easytorch.reports.estimate import Estimate
from easytorch.reports.intervals import LEVEL


def compare_reports(first: Report, second: Report) -> Comparison:
    """Return the difference of two reports: McNemar's exact test for shares, the paired t-test for other scores.

    Raises:
        TypeError: If the reports are of different kinds.
        ValueError: If the targets differ.
    """
    if type(first) is not type(second):
        raise TypeError(f"Expected a {type(first).__name__} to compare with, received {type(second).__name__}.")
    if not np.array_equal(first.indices, second.indices) or not np.array_equal(first.y, second.y):
        raise ValueError(
            f"The targets of the reports differ: {len(first)} and {len(second)} samples. Compare two models on the same data, in "
            "the same order."
        )
    a, b = first.scores(), second.scores()
    measure = _compare_shares if a.dtype == bool else _compare_means
    difference, p_value, test = measure(a, b)
    return Comparison(
        first.score_name, float(a.mean()), float(b.mean()), difference, p_value, test, first.higher_is_better
    )


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
