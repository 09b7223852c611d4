"""95% intervals of proportions, means, quantiles and functions of a confusion matrix."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from easytorch.reports.estimate import Estimate

Array = np.ndarray[Any, Any]

LEVEL = 0.95
TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # in percent
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
# Above this area, the draws depend on whether a few samples are in them.
HIGH_AREA = 0.9
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
    """Return a quantile of ``values``, none below 0, with the interval between two order statistics, for any distribution.

    Few values do not bound a high quantile: the bound is then infinite.

    Source: W. J. Conover, Practical Nonparametric Statistics, 1999, section 3.2.
    """
    ordered = np.r_[0.0, np.sort(values), np.inf]
    low, high = stats.binom.ppf([TAILS[0] / 100, TAILS[1] / 100], len(values), share)
    return Estimate(float(np.quantile(values, share)), float(ordered[int(low)]), float(ordered[int(high) + 1]))


def nan_mean(values: Array) -> Array:
    """Return the mean of the last dimension over all values that are defined; NaN if none is."""
    count = (~np.isnan(values)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nansum(values, -1) / count)


class Scale(enum.Enum):
    """On which scale the draws of a number are about normal."""

    ANY = "any"  # as they are
    POSITIVE = "positive"  # their logarithms
    SHARE = "share"  # their logits
    UP_TO_1 = "up to 1"  # the logarithms of 1 minus them, for R2


class Bootstrap:
    """Intervals from samples that are drawn again with replacement.

    They are normal intervals on the scale of the number, minus the bias that the draws show, after B. Efron and R. J. Tibshirani,
    An Introduction to the Bootstrap, 1993, chapters 10 and 12. The draws vary less than samples do, by a factor of
    ``sqrt(1 - 1 / N)``, and the quantile is that of the t-distribution, after T. C. Hesterberg, What teachers should know about
    the bootstrap, 2015, section 3.

    Args:
        repeats: How often all samples are drawn; 0 for no intervals.
        seed: The seed of the draws.
    """

    def __init__(self, repeats: int, seed: int) -> None:
        self.repeats, self.seed = repeats, seed

    def of_counts(self, statistic: Callable[[Array], Array], counts: Array, scale: Scale) -> list[Estimate]:
        """Return the entries of ``statistic(counts)``, which depends on the samples through ``counts`` alone.

        To draw the samples again is to draw their counts from a multinomial distribution.

        Args:
            statistic: Returns values ``[..., values]`` for counts ``[..., kinds]``.
            counts: How many samples are of each kind, ``[kinds]``.
            scale: The scale of all values.
        """
        values, total = np.atleast_1d(statistic(counts)), int(counts.sum())
        if not self.repeats or not total:
            return [Estimate(float(value)) for value in values]
        generator, step = np.random.default_rng(self.seed), max(1, CHUNK // len(counts))
        sizes = [min(step, self.repeats - start) for start in range(0, self.repeats, step)]
        drawn = [statistic(generator.multinomial(total, counts / total, size)) for size in sizes]
        return normal_intervals(values, np.concatenate(drawn), [scale] * len(values), total)

    def of_samples(
        self,
        statistic: Callable[[Array], Array],
        count: int,
        scales: Sequence[Scale],
        columns: int = 1,
        intervals: Callable[[Array, Array], list[Estimate]] | None = None,
    ) -> list[Estimate]:
        """Return the entries of ``statistic(weights)`` for weights that are all 1.

        Args:
            statistic: Returns values ``[repeats, values]`` for weights ``[repeats, count]``: how often each sample is drawn.
            count: The number of samples.
            scales: The scale of each value.
            columns: How often ``statistic`` reads all weights. If the work exceeds ``MAX_WORK``, there are fewer repeats, but at
                least 100.
            intervals: Returns an estimate for each value, given ``[values]`` and the draws ``[repeats, values]``; None for
                ``normal_intervals``.
        """
        values = statistic(np.ones((1, count)))[0]
        if not self.repeats or count < 2:  # the same sample again and again shows no variation
            return [Estimate(float(value)) for value in values]
        repeats = min(self.repeats, max(MIN_REPEATS, MAX_WORK // (count * columns)))
        drawn = np.concatenate([statistic(weights) for weights in self.weights(count, repeats)])
        return intervals(values, drawn) if intervals else normal_intervals(values, drawn, scales, count)

    def weights(self, count: int, repeats: int | None = None) -> Iterator[Array]:
        """Yield arrays ``[repeats, count]``: how often each sample is drawn."""
        generator = np.random.default_rng(self.seed)
        repeats = self.repeats if repeats is None else repeats
        step = max(1, CHUNK // count)
        for start in range(0, repeats, step):
            rows = min(step, repeats - start)
            indices = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            yield np.bincount(indices.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def normal_intervals(
    values: Array,
    drawn: Array,
    scales: Sequence[Scale],
    count: int,
    *,
    factors: Array | None = None,
    edges: Array | None = None,
    limits: Array | None = None,
) -> list[Estimate]:
    """Return values with normal intervals on their scales, minus the bias that the draws show.

    A share of 0 or 1 has no interval: its draws are all the same, however few samples there are.

    Args:
        values: ``[values]``.
        drawn: Those of each draw, ``[repeats, values]``.
        scales: The scale of each value.
        count: The number of samples.
        factors: The half width of each interval in standard deviations of the draws; None for that of ``count`` samples.
        edges: How near a share of a draw may be to 0 and 1, of each value; None for half of a sample.
        limits: The largest standard deviation of the draws, on the scale of each value. Draws that exceed it depend on single
            samples, and tell nothing about the bias; None for no limit.
    """
    if factors is None:
        factors = np.full(len(values), stats.t.ppf((1 + LEVEL) / 2, count - 1) * math.sqrt(count / (count - 1)))
    edges = np.full(len(values), 0.5 / count) if edges is None else edges
    limits = np.full(len(values), np.inf) if limits is None else limits
    estimates = []
    for value, draws, scale, factor, edge, limit in zip(values, drawn.T, scales, factors, edges, limits, strict=True):
        draws = draws[~np.isnan(draws)]
        if np.isnan(value) or len(draws) < 2 or (scale is Scale.SHARE and value in (0, 1)):
            estimates.append(Estimate(float(value)))
        elif scale is Scale.POSITIVE and min(value, draws.min()) <= 0:
            estimates.append(_interval(value, draws, factor, lowest=0.0))
        elif scale is Scale.UP_TO_1 and max(value, draws.max()) >= 1:
            estimates.append(_interval(value, draws, factor, highest=1.0))
        else:
            to, back = FUNCTIONS[scale]
            if scale is Scale.SHARE:
                value, draws = np.clip(value, edge, 1 - edge), np.clip(draws, edge, 1 - edge)
            center, draws = float(to(value)), to(draws)
            if draws.std(ddof=1) > limit:
                ends = Estimate(center, center - factor * limit, center + factor * limit)
            else:
                ends = _interval(center, draws, factor)
            estimates.append(Estimate(float(value), back(ends.low), back(ends.high)))
    return [Estimate(float(value), *each[1:]) for value, each in zip(values, estimates, strict=True)]


def _interval(
    value: float, draws: Array, factor: float, lowest: float = -math.inf, highest: float = math.inf
) -> Estimate:
    """Return a value with its normal interval, minus the bias of its draws: they have it a second time."""
    center, half = 2 * value - draws.mean(), factor * draws.std(ddof=1)
    return Estimate(value, max(float(center - half), lowest), min(float(center + half), highest))


def _unchanged(values: Any) -> Any:
    return values


FUNCTIONS: dict[Scale, tuple[Callable[[Any], Any], Callable[[float], float]]] = {
    Scale.ANY: (_unchanged, float),
    Scale.POSITIVE: (np.log, math.exp),
    Scale.UP_TO_1: (lambda values: -np.log(1 - values), lambda value: 1 - math.exp(-value)),
    Scale.SHARE: (special.logit, lambda value: float(special.expit(value))),
}


def area_intervals(values: Array, drawn: Array, positives: Array, count: int) -> list[Estimate]:
    """Return AUC and average precision of each class, then both means, with normal intervals of their logits.

    Near 0 and 1 the draws are skewed, and percentiles contain the true value too rarely. The smallest step of an area from 0 or 1
    depends on the number of samples of the class, and so does the variance of the average precision. Above 0.9, the standard
    deviation of a logit is at most that of a share of the rarer class, as in the interval of Boyd et al.

    Source: M. S. Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2, for the area below the ROC curve; K. Boyd,
    K. H. Eng and C. D. Page, Area under the precision-recall curve: point estimates and confidence intervals, 2013.

    Args:
        values: The areas, ``[2 * classes + 2]``.
        drawn: Those of each draw, ``[repeats, 2 * classes + 2]``.
        positives: The samples of each class, ``[classes]``.
        count: The number of samples.
    """
    members = np.maximum(positives.astype(float), 1)
    auc_edges = 0.5 / (members * np.maximum(count - members, 1))
    precision_edges = 0.5 / np.maximum(members, 2) ** 2
    edges = np.r_[auc_edges, precision_edges, auc_edges.mean(), precision_edges.mean()]
    spread = np.sqrt(members / np.maximum(members - 1, 1))
    factors = Z * np.r_[np.ones(len(members)), spread, 1, math.sqrt(count / (count - 1))]
    rarer = np.maximum(np.minimum(members, count - members), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        limits = 1 / np.sqrt(np.r_[rarer, members, np.nan, np.nan] * values * (1 - values))
    limits = np.where((values > HIGH_AREA) & np.isfinite(limits), limits, np.inf)
    scales = [Scale.SHARE] * len(values)
    return normal_intervals(values, drawn, scales, count, factors=factors, edges=edges, limits=limits)
