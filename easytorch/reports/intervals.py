"""95% intervals of proportions, means, quantiles and functions of a confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from easytorch.reports.estimate import Estimate

Array = np.ndarray[Any, Any]

LEVEL = 0.95
TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # in percent
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
    interval = stats.binomtest(int(count), int(total)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(count / total), float(interval.low), float(interval.high))


def quantile(values: Array, share: float) -> Estimate:
    """Return a quantile of ``values`` with the interval between two order statistics, which holds for any distribution.

    Source: W. J. Conover, Practical Nonparametric Statistics, 1999, section 3.2.
    """
    ordered, count = np.sort(values), len(values)
    low, high = stats.binom.ppf([TAILS[0] / 100, TAILS[1] / 100], count, share)
    bounds = np.clip([low - 1, high], 0, count - 1).astype(int)
    return Estimate(float(np.quantile(values, share)), float(ordered[bounds[0]]), float(ordered[bounds[1]]))


class Bootstrap:
    """Intervals from samples that are drawn again with replacement.

    The interval is that of the percentiles, after B. Efron, Bootstrap methods: another look at the jackknife, 1979.

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
            statistic: Returns values ``[..., values]`` for counts ``[..., *counts.shape]``.
            counts: How many samples are of each kind, in any shape.
        """
        values, total = np.atleast_1d(statistic(counts)), int(counts.sum())
        if not self.repeats or not total:
            return [Estimate(float(value)) for value in values]
        generator = np.random.default_rng(self.seed)
        cells = np.flatnonzero(counts)  # most cells of the confusion matrix of many classes are empty
        shares = counts.ravel()[cells] / total
        step, drawn = max(1, CHUNK // counts.size), []
        for start in range(0, self.repeats, step):
            chunk = np.zeros((min(step, self.repeats - start), counts.size), dtype=np.int64)
            chunk[:, cells] = generator.multinomial(total, shares, len(chunk))
            drawn.append(statistic(chunk.reshape(-1, *counts.shape)))
        return _percentiles(values, np.concatenate(drawn))

    def of_samples(self, statistic: Callable[[Array], Array], count: int, columns: int = 1) -> list[Estimate]:
        """Return the entries of ``statistic(weights)`` for weights that are all 1.

        Args:
            statistic: Returns values ``[repeats, values]`` for weights ``[repeats, count]``: how often each sample is drawn.
            count: The number of samples.
            columns: How often ``statistic`` reads all weights. If the work exceeds ``MAX_WORK``, there are fewer repeats, but at
                least 100.
        """
        values = statistic(np.ones((1, count)))[0]
        if not self.repeats or not count:
            return [Estimate(float(value)) for value in values]
        repeats = min(self.repeats, max(MIN_REPEATS, MAX_WORK // (count * columns)))
        return _percentiles(values, np.concatenate([statistic(weights) for weights in self.weights(count, repeats)]))

    def weights(self, count: int, repeats: int | None = None) -> Iterator[Array]:
        """Yield arrays ``[repeats, count]``: how often each sample is drawn."""
        generator = np.random.default_rng(self.seed)
        repeats = self.repeats if repeats is None else repeats
        step = max(1, CHUNK // count)
        for start in range(0, repeats, step):
            rows = min(step, repeats - start)
            indices = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            yield np.bincount(indices.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def _percentiles(values: Array, drawn: Array) -> list[Estimate]:
    with np.errstate(all="ignore"):
        defined = ~np.isnan(drawn).all(0)
        low, high = np.full((2, len(values)), np.nan)
        if defined.any():
            low[defined], high[defined] = np.nanpercentile(drawn[:, defined], TAILS, axis=0)
    return [Estimate(float(value), float(a), float(b)) for value, a, b in zip(values, low, high, strict=True)]
