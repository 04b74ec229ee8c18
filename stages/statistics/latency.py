"""Latencies: means, percentiles and ratios, where the process is the replicate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kdpipe.stages.statistics.distributions import binomial_cdf, check_fraction, t_quantile
from kdpipe.stages.statistics.intervals import Array, Interval
from kdpipe.stages.statistics.means import around, variance


def order_bounds(n: int, percentile: float, confidence: float) -> tuple[int | None, int | None]:
    """Which sorted samples (1-based) bound a percentile (0 to 1) from below and from above.

    The largest l with F(l - 1) <= 1 - confidence and the smallest u with F(u - 1) >= confidence,
    F the Binomial(n, percentile) distribution; None where n is too small for that side.
    """
    check_fraction(percentile=percentile, confidence=confidence)
    cdf = binomial_cdf(np.arange(n), n, percentile)
    # 1e-12: with the fewest samples that suffice, F may equal the confidence to the last bit
    low = int((cdf <= 1 - confidence + 1e-12).sum())
    high = int((cdf < confidence - 1e-12).sum()) + 1
    return (low if low > 0 else None, high if high <= n else None)


def mean_latency(processes: Sequence[Array], confidence: float) -> Interval:
    """Mean of all iterations; bounds from the log means of the processes (the replicates)."""
    logs = np.log([samples.mean() for samples in processes])
    low, high = _process_bounds(logs, confidence)
    return around(float(np.concatenate(processes).mean()), low, high, logs)


def latency_percentile(
    processes: Sequence[Array], percentile: float, confidence: float
) -> Interval:
    """Percentile (0 to 1) of all iterations, with bounds of that of a typical process.

    Two doubts count, the wider bound wins. Iterations of a process resemble one another: t
    interval over the logs of each process's percentile. The tail is thin: order statistics of the
    pooled iterations. The bounds always hold the pooled point, too, but they do not bound the
    percentile over all processes there may ever be: that takes `needed_samples` processes. With
    fewer iterations than `needed_samples`, or with a single process, there are no bounds.
    """
    pooled = np.sort(np.concatenate(processes))
    point = float(np.quantile(pooled, percentile))
    # type 8 of Hyndman and Fan (1996): numpy's default is biased low in the tail of one process
    each = [np.quantile(samples, percentile, method="median_unbiased") for samples in processes]
    logs = np.log(each)
    first, last = order_bounds(pooled.size, percentile, confidence)
    if last is None:
        return around(point, 0.0, math.inf, logs)
    low, high = _process_bounds(logs, confidence)
    thin = float(pooled[first - 1]) if first else 0.0
    return around(point, min(low, thin), max(high, float(pooled[last - 1])), logs)


def latency_ratio(
    reference: Sequence[Array], artifact: Sequence[Array], confidence: float
) -> Interval:
    """How many times faster `artifact` is than `reference`: ratio of geometric mean latencies.

    Welch's t interval (1947) on the mean log latency of each process, then exp(). `variance` is
    the sum of both sides, for as many processes on each. One process on a side gives no bounds.
    """
    slow = np.array([np.log(samples).mean() for samples in reference])
    fast = np.array([np.log(samples).mean() for samples in artifact])
    centre = float(slow.mean() - fast.mean())
    errors = (variance(slow) / slow.size, variance(fast) / fast.size)
    freedom = _welch_freedom(errors, (slow.size - 1, fast.size - 1))
    low, high = _exp_bounds(centre, sum(errors), freedom, confidence)
    both = variance(slow) + variance(fast)
    return Interval(math.exp(centre), low, high, min(slow.size, fast.size), both)


def _welch_freedom(errors: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """Welch and Satterthwaite's degrees of freedom, 0 where a side has a single process."""
    smallest = min(freedoms)
    if smallest == 0 or sum(errors) == 0:  # without spread any freedom gives the same bounds
        return float(smallest)
    parts = sum(error**2 / freedom for error, freedom in zip(errors, freedoms, strict=True))
    return sum(errors) ** 2 / parts


def _process_bounds(logs: Array, confidence: float) -> tuple[float, float]:
    """Student's t bounds of exp(mean), one logarithm for each process."""
    error = variance(logs) / logs.size
    return _exp_bounds(float(logs.mean()), error, logs.size - 1, confidence)


def _exp_bounds(
    centre: float, error: float, freedom: float, confidence: float
) -> tuple[float, float]:
    """exp(centre -+ t sqrt(error)), `error` a squared standard error; (0, inf) without freedom."""
    if freedom <= 0:
        return 0.0, math.inf
    reach = t_quantile(confidence, freedom) * math.sqrt(error)
    return math.exp(centre - reach), math.exp(centre + reach)
