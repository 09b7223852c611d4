"""95% intervals of proportions, means, quantiles and functions of a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import special, stats

from easytorch.reports.estimate import Estimate

Array = np.ndarray[Any, Any]

LEVEL = 0.95
TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # in percent
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
# An area of a draw that is 0 or 1 counts as so much more or less, since it has no logit.
EDGE = 1e-6
# Numbers that are drawn at a time, so that a bootstrap over many samples does not fill the memory.
CHUNK = 5_000_000
# Numbers that one bootstrap reads, which takes less than a minute; more samples and columns get fewer repeats.
MAX_WORK, MIN_REPEATS = 2_000_000_000, 100


def proportion(count: float, total: float) -> Estimate:
    """Return ``count / total`` with its Wilson interval; NaN if ``total`` is 0.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if total == 0:
        return Estimate(float("nan"))
    return wilson(float(count / total), float(total), Z)


def wilson(share: float, count: float, z: float) -> Estimate:
    """Return a share of ``count`` members with its Wilson interval, for ``z`` standard deviations."""
    scale = 1 + z**2 / count
    center = (share + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, center - half if share > 0 else 0.0, center + half if share < 1 else 1.0)


def proportion_of_clusters(counts: Array, totals: Array) -> Estimate:
    """Return the sum of ``counts`` by that of ``totals``, with an interval for clusters whose members depend on each other.

    It is the Wilson interval for the effective number of members: that of independent ones with the same variance. With one
    cluster there is no interval. If all members are equal, each cluster counts as one of them.

    Source: E. L. Korn and B. I. Graubard, Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data, 1998; the variance is that of a ratio, W. G. Cochran, Sampling Techniques, 1977, section 2.11.

    Args:
        counts: Members of each cluster that have the property, ``[clusters]``.
        totals: All members of each cluster.
    """
    counts, totals = counts[totals > 0].astype(float), totals[totals > 0].astype(float)
    clusters, total = len(totals), totals.sum()
    if not clusters:
        return Estimate(float("nan"))
    share = float(counts.sum() / total)
    if clusters == 1:
        return Estimate(share)
    variance = ratio_variance(counts - share * totals, total)
    effective = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else float(clusters)
    z = float(stats.t.ppf((1 + LEVEL) / 2, clusters - 1))
    return wilson(share, effective, z)


def ratio_variance(residuals: Array, total: float) -> float:
    """Return the variance of a ratio of two sums over clusters.

    Args:
        residuals: Numerator minus ratio times denominator, of each cluster.
        total: The sum of the denominators.
    """
    clusters = len(residuals)
    return float(clusters / (clusters - 1) * (residuals**2).sum() / total**2)


def quantile(values: Array, share: float) -> Estimate:
    """Return a quantile of ``values`` with the interval between two order statistics, which holds for any distribution.

    Source: W. J. Conover, Practical Nonparametric Statistics, 1999, section 3.2.
    """
    ordered, count = np.sort(values), len(values)
    low, high = stats.binom.ppf([TAILS[0] / 100, TAILS[1] / 100], count, share)
    bounds = np.clip([low - 1, high], 0, count - 1).astype(int)
    return Estimate(float(np.quantile(values, share)), float(ordered[bounds[0]]), float(ordered[bounds[1]]))


def nan_mean(values: Array) -> Array:
    """Return the mean of the last dimension over all values that are defined; NaN if none is."""
    count = (~np.isnan(values)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nansum(values, -1) / count)


class Bootstrap:
    """Intervals from samples that are drawn again with replacement.

    By default the interval is that of the percentiles, after B. Efron, Bootstrap methods: another look at the jackknife, 1979,
    moved by the bias that the draws show, after B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    10.

    Args:
        repeats: How often all samples are drawn; 0 for no intervals.
        seed: The seed of the draws.
    """

    def __init__(self, repeats: int, seed: int) -> None:
        self.repeats, self.seed = repeats, seed

    def of_counts(self, statistic: Callable[[Array], Array], counts: Array) -> list[Estimate]:
        """Return the entries of ``statistic(counts)``, which depends on the samples through ``counts`` alone.

        To draw the samples again is to draw their counts from a multinomial distribution.

        Args:
            statistic: Returns values ``[..., values]`` for counts ``[..., kinds]``.
            counts: How many samples are of each kind, ``[kinds]``.
        """
        values, total = np.atleast_1d(statistic(counts)), int(counts.sum())
        if not self.repeats or not total:
            return [Estimate(float(value)) for value in values]
        generator, step = np.random.default_rng(self.seed), max(1, CHUNK // len(counts))
        sizes = [min(step, self.repeats - start) for start in range(0, self.repeats, step)]
        drawn = [statistic(generator.multinomial(total, counts / total, size)) for size in sizes]
        return _percentiles(values, np.concatenate(drawn))

    def of_samples(
        self,
        statistic: Callable[[Array], Array],
        count: int,
        columns: int = 1,
        intervals: Callable[[Array, Array], list[Estimate]] | None = None,
    ) -> list[Estimate]:
        """Return the entries of ``statistic(weights)`` for weights that are all 1.

        Args:
            statistic: Returns values ``[repeats, values]`` for weights ``[repeats, count]``: how often each sample is drawn.
            count: The number of samples.
            columns: How often ``statistic`` reads all weights. If the work exceeds ``MAX_WORK``, there are fewer repeats, but at
                least 100.
            intervals: Returns an estimate for each value, given ``[values]`` and the draws ``[repeats, values]``; None for
                percentiles.
        """
        values = statistic(np.ones((1, count)))[0]
        if not self.repeats or count < 2:  # the same sample again and again shows no variation
            return [Estimate(float(value)) for value in values]
        repeats = min(self.repeats, max(MIN_REPEATS, MAX_WORK // (count * columns)))
        drawn = np.concatenate([statistic(weights) for weights in self.weights(count, repeats)])
        return (intervals or _percentiles)(values, drawn)

    def weights(self, count: int, repeats: int | None = None) -> Iterator[Array]:
        """Yield arrays ``[repeats, count]``: how often each sample is drawn."""
        generator = np.random.default_rng(self.seed)
        repeats = self.repeats if repeats is None else repeats
        step = max(1, CHUNK // count)
        for start in range(0, repeats, step):
            rows = min(step, repeats - start)
            indices = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            yield np.bincount(indices.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def logit_intervals(values: Array, drawn: Array) -> list[Estimate]:
    """Return areas, which are from 0 to 1, with normal intervals of their logits, minus the bias that the draws show.

    Near 0 and 1 the draws are skewed, and percentiles contain the true value too rarely. An area of 0 or 1 has percentiles.

    Source: M. S. Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2, for the area below the ROC curve; K. Boyd,
    K. H. Eng and C. D. Page, Area under the precision-recall curve: point estimates and confidence intervals, 2013.

    Args:
        values: The areas, ``[values]``.
        drawn: Those of each draw, ``[repeats, values]``.
    """
    estimates = _percentiles(values, drawn)
    usable = (values > 0) & (values < 1) & ((~np.isnan(drawn)).sum(0) > 1)
    if not usable.any():
        return estimates
    logits, center = special.logit(np.clip(drawn[:, usable], EDGE, 1 - EDGE)), special.logit(values[usable])
    center -= np.nanmean(logits, axis=0) - center
    half = Z * np.nanstd(logits, axis=0, ddof=1)
    low, high = special.expit(center - half), special.expit(center + half)
    for i, a, b in zip(np.flatnonzero(usable), low, high, strict=True):
        estimates[i] = Estimate(float(values[i]), float(a), float(b))
    return estimates


def _percentiles(values: Array, drawn: Array) -> list[Estimate]:
    """Return ``values`` with the percentiles of ``drawn``, ``[repeats, values]``, minus twice the mean of ``drawn - values``.

    A statistic with a bias has it once in the sample, and a second time in the draws.
    """
    with np.errstate(all="ignore"):
        defined = ~np.isnan(drawn).all(0)
        low, high = np.full((2, len(values)), np.nan)
        if defined.any():
            known = drawn[:, defined]
            bounds = np.nanpercentile(known, TAILS, axis=0) - 2 * (np.nanmean(known, axis=0) - values[defined])
            # A share stays between 0 and 1.
            low[defined] = np.where(np.nanmin(known, axis=0) >= 0, np.maximum(bounds[0], 0), bounds[0])
            high[defined] = np.where(np.nanmax(known, axis=0) <= 1, np.minimum(bounds[1], 1), bounds[1])
    return [Estimate(float(value), float(a), float(b)) for value, a, b in zip(values, low, high, strict=True)]
