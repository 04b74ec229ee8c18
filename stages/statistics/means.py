"""Means of independent values, and the bounds that other intervals are built from."""

from __future__ import annotations

import math

import numpy as np

from kdpipe.stages.statistics.distributions import check_fraction, exact_high, t_quantile
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
    """The median of independent values (N,), one for each process, with `mean_bounds`.

    The bounds always hold the median, too. A single value gives none.
    """
    point, low, high = float(np.median(values)), -math.inf, math.inf
    if values.size > 1:
        low, high = mean_bounds(values, confidence)
    return around(point, low, high, values)


def bounded_t(values: Array, least: float, most: float, confidence: float) -> tuple[float, float]:
    """Bounds of the mean of values known to lie from `least` to `most`.

    Student's t, made wider on the side of the longer tail by Johnson's term for skewness (J. Am.
    Stat. Assoc. 73, 536, 1978), as few large losses make plain t miss too often. When all values
    are equal t has no width, and `unseen` counts.
    """
    mean, n = float(values.mean()), values.size
    if np.ptp(values) == 0:
        return unseen(mean, n, least, most, confidence)
    t = t_quantile(confidence, n - 1)
    skewness = float(((values - mean) ** 3).mean() / values.std() ** 3)
    tilt = skewness * (1 + 2 * t * t) / (6 * math.sqrt(n))
    error = math.sqrt(variance(values) / n)
    low, high = mean - error * (t + max(-tilt, 0.0)), mean + error * (t + max(tilt, 0.0))
    return max(low, least), min(high, most)


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
