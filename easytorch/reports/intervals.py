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


def f1_score(right: float, predicted: float, actual: float) -> Estimate:
    """Return the F1 of a class with its Wilson interval; NaN without samples.

    F1 is ``2 s / (1 + s)`` for the share ``s`` of right predictions among the samples that are of the class or predicted to be.

    Source: K. F. Y. Lam, V. Gopal and J. Qian, Confidence intervals for the F1 score: a comparison of four methods, 2023, the
    indirect method.
    """
    return Estimate(*(2 * x / (1 + x) for x in proportion(right, predicted + actual - right)))


def mean_of_parts(parts: Sequence[Estimate], drawn: Array) -> Estimate:
    """Return the mean of the parts that are defined, with an interval from those of the parts and their correlations.

    An interval of draws of the mean would be too narrow if a class has few samples: its draws vary less than samples do.

    Source: G. Y. Zou and A. Donner, Construction of confidence limits about effect measures, 2008.

    Args:
        parts: Estimates with intervals.
        drawn: The parts of each draw of a bootstrap, ``[repeats, parts]``, which show the correlations; empty for no interval.
    """
    values, lows, highs = np.array(parts, dtype=float).T
    is_defined = ~np.isnan(values)
    count = int(is_defined.sum())
    if not count:
        return Estimate(float("nan"))
    mean = float(values[is_defined].mean())
    has_ends = is_defined & ~np.isnan(lows)
    if len(drawn) < 2 or not has_ends.any():
        return Estimate(mean)
    draws = drawn[:, has_ends] - nan_mean(drawn[:, has_ends].T)
    spread = np.sqrt(nan_mean(draws.T**2))
    draws = np.nan_to_num(draws / np.where(spread > 0, spread, 1))

    def total(arms: Array) -> float:
        # A share of 0 or 1 has equal draws. It is independent of the others.
        squares = ((draws @ arms) ** 2).mean() + (np.where(spread > 0, 0, arms) ** 2).sum()
        return float(np.sqrt(squares)) / count

    arms = np.maximum([values - lows, highs - values], 0)[:, has_ends]
    return Estimate(mean, mean - total(arms[0]), mean + total(arms[1]))


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

    Few values do not bound a high quantile: the bound is then infinite. The quantile is interpolated between two values, which
    the interval contains.

    Source: W. J. Conover, Practical Nonparametric Statistics, 1999, section 3.2.
    """
    ordered = np.r_[0.0, np.sort(values), np.inf]
    low, high = stats.binom.ppf([TAILS[0] / 100, TAILS[1] / 100], len(values), share)
    value = float(np.quantile(values, share))
    return Estimate(value, min(value, float(ordered[int(low)])), max(value, float(ordered[int(high) + 1])))


def nan_mean(values: Array) -> Array:
    """Return the mean of the last dimension over all values that are defined; NaN if none is."""
    count = (~np.isnan(values)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nansum(values, -1) / count)


# Draws of fewer samples have standard errors near 0 too often.
MIN_STUDENTIZED = 30
# The share of the draws that need a standard error.
MIN_VALID = 0.95
MAX_EXPONENT = 700.0


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

    def draw_counts(self, statistic: Callable[[Array], Array], counts: Array) -> Array:
        """Return ``statistic`` of draws, ``[repeats, values]``, if it depends on the samples through ``counts`` alone.

        To draw the samples again is to draw their counts from a multinomial distribution.

        Args:
            statistic: Returns values ``[repeats, values]`` for counts ``[repeats, kinds]``.
            counts: How many samples are of each kind, ``[kinds]``.
        """
        total, generator, step = int(counts.sum()), np.random.default_rng(self.seed), max(1, CHUNK // len(counts))
        sizes = [min(step, self.repeats - start) for start in range(0, self.repeats, step)] or [0]
        return np.concatenate([statistic(generator.multinomial(total, counts / total, size)) for size in sizes])

    def draw_samples(self, statistic: Callable[[Array], Array], count: int, columns: int = 1) -> Array:
        """Return ``statistic`` of draws, ``[repeats, values]``; no rows if there are no draws.

        Args:
            statistic: Returns values ``[repeats, values]`` for weights ``[repeats, count]``: how often each sample is drawn.
            count: The number of samples.
            columns: How often ``statistic`` reads all weights. If the work exceeds ``MAX_WORK``, there are fewer repeats, but at
                least 100.
        """
        if not self.repeats or count < 2:  # the same sample again and again shows no variation
            return statistic(np.ones((1, count)))[:0]
        repeats = min(self.repeats, max(MIN_REPEATS, MAX_WORK // (count * columns)))
        return np.concatenate([statistic(weights) for weights in self.weights(count, repeats)])

    def of_means(self, values: Array, scales: Sequence[Scale]) -> list[Estimate]:
        """Return the means of columns, with the wider of two intervals at each end.

        One is the normal interval of the draws, the other one that of a studentized bootstrap, which has the skewness of the
        values: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5. Both quantiles are those of
        the t-distribution whose degrees of freedom follow from the kurtosis of the values: B. O'Neill, Some useful moment results
        in sampling problems, 2014.

        Args:
            values: ``[N, columns]``.
            scales: The scale of each mean: ``ANY`` or ``POSITIVE``.
        """
        count, means = len(values), values.mean(0)
        centered = values - means
        moments = np.concatenate([centered, centered**2], axis=1)
        drawn = self.draw_samples(lambda weights: weights @ moments / count, count)
        if not len(drawn):
            return [Estimate(float(mean)) for mean in means]
        shifts, squares = np.split(drawn, 2, axis=1)
        errors = np.sqrt(np.maximum(squares - shifts**2, 0) / count)
        quantiles = np.array([quantile_of_t(column) for column in centered.T])
        factors = quantiles * math.sqrt(count / (count - 1))
        estimates = normal_intervals(means, means + shifts, scales, count, factors=factors)
        if count < MIN_STUDENTIZED:
            return estimates
        widths = quantiles / stats.t.ppf((1 + LEVEL) / 2, count - 1)
        own_errors = centered.std(0) / math.sqrt(count)
        columns = zip(estimates, (means + shifts).T, errors.T, own_errors, widths, scales, strict=True)
        return [_widen(*column) for column in columns]

    def of_samples(
        self,
        statistic: Callable[[Array], Array],
        count: int,
        scales: Sequence[Scale],
        influences: Array | None = None,
    ) -> list[Estimate]:
        """Return the entries of ``statistic(weights)`` for weights that are all 1.

        Args:
            statistic: Returns values ``[repeats, values]`` for weights ``[repeats, count]``: how often each sample is drawn.
            count: The number of samples.
            scales: The scale of each value.
            influences: How much each sample changes each value, ``[count, values]``: heavy tails widen its interval.
        """
        values, drawn = statistic(np.ones((1, count)))[0], self.draw_samples(statistic, count)
        if not len(drawn):
            return [Estimate(float(value)) for value in values]
        factors = None
        if influences is not None and not np.isnan(influences).any():
            factors = np.array([quantile_of_t(column) for column in influences.T]) * math.sqrt(count / (count - 1))
        return normal_intervals(values, drawn, scales, count, factors=factors)

    def weights(self, count: int, repeats: int | None = None) -> Iterator[Array]:
        """Yield arrays ``[repeats, count]``: how often each sample is drawn."""
        generator = np.random.default_rng(self.seed)
        repeats = self.repeats if repeats is None else repeats
        step = max(1, CHUNK // count)
        for start in range(0, repeats, step):
            rows = min(step, repeats - start)
            indices = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            yield np.bincount(indices.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def quantile_of_t(values: Array) -> float:
    """Return the quantile of the t-distribution for a mean of ``values``, ``[N]``; heavy tails have few degrees of freedom."""
    count, squares = len(values), (values - values.mean()) ** 2
    degrees = count - 1.0
    if squares.any():
        excess = (squares**2).mean() / squares.mean() ** 2 - (count - 3) / (count - 1)
        degrees = min(degrees, max(1.0, 2 * count / excess)) if excess > 0 else degrees
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def _widen(estimate: Estimate, draws: Array, errors: Array, error: float, width: float, scale: Scale) -> Estimate:
    """Return the estimate of a mean with an interval that contains the studentized one too, if enough draws vary.

    Args:
        estimate: The mean, with an interval.
        draws: The means of the draws.
        errors: Their standard errors.
        error: The standard error of the mean.
        width: The factor of the interval.
        scale: The scale of the mean.
    """
    is_valid = errors > 0
    if scale is Scale.POSITIVE:
        is_valid &= draws > 0
    if is_valid.mean() < MIN_VALID or not error:
        return estimate
    to, back = FUNCTIONS[scale]
    center, (draws, errors) = estimate.value, (draws[is_valid], errors[is_valid])
    if scale is Scale.POSITIVE:  # the standard error of a logarithm
        error, errors = error / center, errors / draws
    low, high = np.percentile((to(draws) - to(center)) / errors, TAILS)
    ends = to(center) - width * error * np.array([high, low])
    return Estimate(center, min(estimate.low, back(ends[0])), max(estimate.high, back(ends[1])))


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

    A share of 0 or 1 has no interval: its draws are all the same, however few samples there are. So are those of two samples.

    Args:
        values: ``[values]``.
        drawn: Those of each draw, ``[repeats, values]``.
        scales: The scale of each value.
        count: The number of samples.
        factors: The half width of each interval in standard deviations of the draws; None for that of ``count`` samples.
        edges: How near a share of a draw may be to 0 and 1, of each value; None for half of a sample.
        limits: The largest standard deviation of the draws, on the scale of each value. Draws that exceed it depend on single
            samples and show no bias; None for no limit.
    """
    if factors is None:
        factors = np.full(len(values), stats.t.ppf((1 + LEVEL) / 2, count - 1) * math.sqrt(count / (count - 1)))
    edges = np.full(len(values), 0.5 / count) if edges is None else edges
    limits = np.full(len(values), np.inf) if limits is None else limits
    estimates = []
    for value, draws, scale, factor, edge, limit in zip(values, drawn.T, scales, factors, edges, limits, strict=True):
        draws = draws[~np.isnan(draws)]
        if np.isnan(value) or len(draws) < 2 or not np.ptp(draws) or (scale is Scale.SHARE and value in (0, 1)):
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
    Scale.POSITIVE: (np.log, lambda value: math.exp(min(value, MAX_EXPONENT))),
    Scale.UP_TO_1: (lambda values: -np.log(1 - values), lambda value: 1 - math.exp(-value)),
    Scale.SHARE: (special.logit, lambda value: float(special.expit(value))),
}


def area_intervals(values: Array, drawn: Array, positives: Array, count: int) -> list[Estimate]:
    """Return AUC and average precision of each class, with normal intervals of their logits.

    Near 0 and 1 the draws are skewed, and percentiles contain the true value too rarely. The smallest step of an area from 0 or 1
    depends on the number of samples of the class, and so does the variance of the average precision. Above 0.9, the standard
    deviation of a logit is at most that of a share of the rarer class, as in the interval of Boyd et al.

    Source: M. S. Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2, for the area below the ROC curve; K. Boyd,
    K. H. Eng and C. D. Page, Area under the precision-recall curve: point estimates and confidence intervals, 2013.

    Args:
        values: The areas, ``[2 * classes]``.
        drawn: Those of each draw, ``[repeats, 2 * classes]``.
        positives: The samples of each class, ``[classes]``.
        count: The number of samples.
    """
    members = np.maximum(positives.astype(float), 1)
    auc_edges = 0.5 / (members * np.maximum(count - members, 1))
    precision_edges = 0.5 / np.maximum(members, 2) ** 2
    edges = np.r_[auc_edges, precision_edges]
    spread = np.sqrt(members / np.maximum(members - 1, 1))
    factors = Z * np.r_[np.ones(len(members)), spread]
    rarer = np.maximum(np.minimum(members, count - members), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        limits = 1 / np.sqrt(np.r_[rarer, members] * values * (1 - values))
    limits = np.where((values > HIGH_AREA) & np.isfinite(limits), limits, np.inf)
    scales = [Scale.SHARE] * len(values)
    return normal_intervals(values, drawn, scales, count, factors=factors, edges=edges, limits=limits)
