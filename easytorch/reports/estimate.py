"""A number with the interval in which it may be."""

from __future__ import annotations

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number with the bounds of its 95% interval; NaN bounds if there is no interval.

    Attributes:
        value: The number.
        low: The lower bound.
        high: The upper bound.

    Examples:
        >>> str(easytorch.reports.Estimate(0.9, 0.85, 0.94))
        '0.9 [0.85, 0.94]'
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
