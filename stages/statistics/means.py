"""Means of independent values, and the bounds that other intervals are built from."""

from __future__ import annotations

import math

import numpy as np

from kdpipe.stages.statistics.distributions import (
    binomial_cdf,
    check_fraction,
    exact_high,
    t_quantile,
)
from kdpipe.stages.statistics.intervals import Array, Interval


def mean_bounds(values: Array, confidence: float) -> tuple[float, float]:
    """Student's t bounds of the mean of independent values (N,), N >= 2, for example of seeds.

    For plain quantities that no range bounds. Raises ValueError for fewer than two values, whose
    spread is unknown.
    """
    check_fraction(confidence=confidence)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"values of shape {values.shape} have no spread")
    reach = t_quantile(confidence, values.size - 1) * math.sqrt(variance(values) / values.size)
    return float(values.mean() - reach), float(values.mean() + reach)


def central(values: Array, confidence: float) -> Interval:
    """The median of independent values (N,), one for each process, with its bounds.

    The wider of `mean_bounds`, whose median is the mean where the spread is symmetric, and of the
    sorted values that bound a median of any distribution, where there are enough: 5 at 95 %. With
    fewer, or none of them far off, a skewed spread is not seen. A single value gives no bounds.
    """
    point, low, high = float(np.median(values)), -math.inf, math.inf
    if values.size > 1:
        low, high = mean_bounds(values, confidence)
        outside = _outside(values.size, confidence)
        if outside:
            ends = np.sort(values)[[outside - 1, -outside]]
            low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return around(point, low, high, values)


def _outside(n: int, confidence: float) -> int:
    """Which sorted value, from either end, bounds the median; 0 where none does.

    The largest k with P(X < k) <= 1 - confidence, X ~ Binomial(n, 1/2).
    """
    return int((binomial_cdf(np.arange(n), n, 0.5) <= 1 - confidence + 1e-12).sum())


def unseen(
    mean: float, n: int, least: float, most: float, confidence: float
) -> tuple[float, float]:
    """Bounds of a mean from n values that are all equal.

    Up to p = 1 - (1 - confidence)^(1/n) of the population may differ unseen, as far as it can.
    """
    share = exact_high(0, n, confidence)
    return mean - share * (mean - least), mean + share * (most - mean)


def variance(values: Array) -> float:
    """Unbiased; exactly 0 for equal values and for a single one, which its callers know of."""
    return float(values.var(ddof=1)) if np.ptp(values) > 0 else 0.0


def around(point: float, low: float, high: float, replicates: Array) -> Interval:
    """Bounds that hold the point: pooling weighs processes by length, their mean log does not."""
    low, high = min(low, point), max(high, point)
    return Interval(point, low, high, replicates.size, variance(replicates))
